"""Own data: what tables, columns and labels are taken for, and what is said of wrong ones."""

import json
from pathlib import Path

import own_data
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value

from lora_drop.cli.app import main
from lora_drop.config.identity import config_hash
from lora_drop.config.loading import load_config
from lora_drop.config.schema import Config, DataConfig
from lora_drop.data.content import content_digest
from lora_drop.errors import UserError
from lora_drop.evaluation import kinds
from lora_drop.files import digest
from lora_drop.models.backbones import load_tokenizer, locate
from lora_drop.progress import Reporter
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.reading import Reading
from lora_drop.tasks.own.splits import table_of
from lora_drop.tasks.own.task import OwnData, own_task, stored_task
from lora_drop.tasks.own.values import as_label, kind_of, ordered, several


class Notices(Reporter):
    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


def read(path, report=None, **data) -> OwnData:
    source = Source(None, offline=True, report=report or Reporter())
    return OwnData(DataConfig(path=str(path), **data), source)


def rows(data: OwnData, split="train"):
    return data.load(data.source, split).to_list()


def error(path, **data) -> str:
    with pytest.raises(UserError) as found:
        read(path, **data)
    return str(found.value)


def csv_file(tmp_path: Path, text: str, name="t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2", "-3"], "classification"),
        (["good", "bad"], "classification"),
        (["1.5", "2"], "regression"),
        (["1.0", "2.0"], "regression"),
        (["1", "bad"], "classification"),
        (["a;b", "a"], "multilabel"),
        ([["a", "b"], []], "multilabel"),
        (["['a', 'b']", "['b']"], "multilabel"),
        ([1, 2], "classification"),
        ([0.5, 2], "regression"),
        ([True, False], "classification"),
    ],
)
def test_the_kind_is_that_of_all_labels(cells, kind):
    assert kind_of([as_label(cell) for cell in cells]) == kind


def test_labels_are_ordered_as_numbers_or_by_the_alphabet():
    assert ordered(["10", "9", "-1"]) == ("-1", "9", "10")
    assert ordered(["10", "b", "9"]) == ("10", "9", "b")
    assert several(as_label("a; b ;;")) == ("a", "b") and several(as_label("[1, 2]")) == ("1", "2")


@pytest.mark.parametrize("name", ["r.csv", "r.tsv", "r.json", "r.jsonl", "r.parquet"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    reviews = own_data.reviews(50)
    data = read(own_data.write(tmp_path / name, reviews), text=("review",), label="stars", validation=0.2)
    assert data.reading.kind == "classification" and data.reading.labels == ("1", "2", "3", "4", "5")
    texts = {row["text"]: row["label"] for split in ("train", "validation") for row in rows(data, split)}
    assert texts == {row["review"]: row["stars"] - 1 for row in reviews}
    assert len(rows(data)) == 40 and len(rows(data, "validation")) == 10


def test_the_held_out_rows_have_the_classes_in_proportion_and_are_the_same_each_time(tmp_path):
    text = "text,label\n" + "".join(f"t{number},{'rare' if number % 10 == 0 else 'common'}\n" for number in range(100))
    path = csv_file(tmp_path, text)
    data = read(path)
    held = rows(data, "validation")
    assert sum(row["label"] == data.reading.labels.index("rare") for row in held) == 2 and len(held) == 20
    assert rows(read(path), "validation") == held
    assert not {row["text"] for row in held} & {row["text"] for row in rows(data)}
    assert len(rows(read(path, validation=0.5), "validation")) == 50


def test_a_kept_copy_that_is_damaged_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    path = own_data.write(tmp_path / "r.csv", own_data.reviews(20))
    before = rows(read(path, label="stars"))
    (copy,) = (tmp_path / "cache" / "rows").glob("*.arrow")
    copy.write_bytes(copy.read_bytes()[:100])
    assert rows(read(path, label="stars")) == before and copy.stat().st_size > 100
    monkeypatch.setenv("LORA_DROP_CACHE", str(path))  # a file, in which no folder can be made
    assert rows(read(path, label="stars")) == before


def test_columns_are_found_by_name_or_by_their_texts(tmp_path):
    found = read(own_data.write(tmp_path / "p.csv", own_data.pairs(30)))
    assert found.reading.texts == ("sentence1", "sentence2") and found.reading.label == "label"
    assert rows(found)[0].keys() == {"id", "text", "text_pair", "label"}
    path = csv_file(tmp_path, "no,words,stars\n" + "".join(f"{n},some words here,{n % 2}\n" for n in range(10)))
    assert read(path).reading.texts == ("words",)
    assert read(path, text=("words",), label="no", kind="regression").reading.label == "no"


def test_a_template_fills_in_columns(tmp_path):
    path = csv_file(tmp_path, "title,body,y\n" + 'A,"b, c",yes\nB,,no\n' * 6)
    for given in ({"template": "{title}: {body}"}, {"text": ("{title}: {body}",)}):
        assert {row["text"] for row in rows(read(path, **given))} == {"A: b, c", "B: "}
    assert "no column 'nothing'" in error(path, template="{title} {nothing}")
    assert "no column in braces" in error(path, template="title")
    assert "exclude" in error(path, template="{title}", text=("body",))


def test_numbers_are_regression_and_are_held_out_over_their_range(tmp_path):
    path = csv_file(tmp_path, "text,score\n" + "".join(f"t{number},{number / 10}\n" for number in range(200)))
    data = read(path)
    held = [data.task().number(row["label"]) for row in rows(data, "validation")]
    assert data.task().outputs == 1 and data.task().primary == "spearman"
    both = [row["label"] for split in ("train", "validation") for row in rows(data, split)]
    assert sum(both) == pytest.approx(0, abs=1e-9) and sum(value**2 for value in both) == pytest.approx(200)
    assert set(held) <= {number / 10 for number in range(200)}  # in the unit of the file
    assert [sum(low <= value < low + 2 for value in held) for low in range(0, 20, 2)] == [4] * 10


def test_several_labels_are_one_number_each(tmp_path):
    path = csv_file(tmp_path, "text,tags\n" + "one,a;b\ntwo,b\nthree,\n" * 10)
    data = read(path)
    assert data.reading.kind == "multilabel" and data.reading.labels == ("a", "b")
    assert {row["text"]: row["label"] for row in rows(data)} == {
        "one": [1.0, 1.0],
        "two": [0.0, 1.0],
        "three": [0.0, 0.0],
    }
    assert set(data.task().strata(data.load(data.source, "train"))) == {"a", "b", "no label"}


def test_a_folder_has_splits_and_a_file_may_be_named_for_evaluation(tmp_path):
    reviews = own_data.reviews(60)
    own_data.write(tmp_path / "train-0.jsonl", reviews[:20])
    own_data.write(tmp_path / "train-1.jsonl", reviews[20:40])
    dev = own_data.write(tmp_path / "dev.jsonl", reviews[40:])
    folder = read(tmp_path, label="stars")
    assert len(rows(folder)) == 40 and len(rows(folder, "validation")) == 20
    apart = read(tmp_path / "train-0.jsonl", label="stars", validation=str(dev))
    assert rows(apart, "validation") == rows(folder, "validation")
    assert len(rows(read(tmp_path, label="stars", split="validation", validation="train"), "validation")) == 40
    assert "no file of the split 'tset'" in error(tmp_path, split="tset")


def test_rows_without_text_or_label_are_left_out_and_named(tmp_path):
    path = csv_file(tmp_path, "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(10)) + ",1\nt,\n")
    notices = Notices()
    data = read(path, notices)
    assert len(rows(data)) + len(rows(data, "validation")) == 10
    assert f"1 train row has no text ({path}, line 12): left out" in notices.texts
    assert f"1 train row has no 'label' ({path}, line 13): left out" in notices.texts


GOOD = "text,label\n" + "a,1\nb,2\n" * 5


@pytest.mark.parametrize(
    ("text", "given", "says"),
    [
        (GOOD + "c\n", {}, "line 12: 1 cells where the header has 2 (text, label)"),
        (GOOD + '"c,1\n', {}, "line 12: not readable as CSV"),
        (GOOD + '"two\nlines",1\nc\n', {}, "line 14: 1 cells"),
        (GOOD.replace("b,2", "b,1"), {}, "all 10 rows have the label '1'"),
        ("text,text\na,b\n", {}, "line 1: two columns are named 'text'"),
        ("text,label\n", {}, "has no rows"),
        ("text,label\n,1\n", {}, "none of 1 rows has text and a label in 'label' (1 have no text, 0 no label)"),
        (GOOD, {"label": "labl"}, "no column 'labl', which data.label (--label) names. Did you mean 'label'?"),
        (GOOD, {"text": ("text",), "label": "text"}, "both the text and the label"),
        (GOOD, {"text": ("txt",)}, "Did you mean 'text'?"),
        (GOOD + "c,many\n", {"kind": "regression"}, "line 12, column 'label': 'many' is not a number"),
        (GOOD, {"validation": 1.5}, "a share lies between 0 and 1"),
        (GOOD, {"validation": "valid"}, "neither a share, nor a file"),
        (GOOD, {"validation": "valid.csv"}, "valid.csv do not exist"),
        (GOOD, {"metric": ("f1_makro",)}, "no metric of classification. Did you mean 'f1_macro'?"),
        ("a,b\nx,y\n", {}, "Which column of"),
        (GOOD, {"text": ("text", "label", "text")}, "More go into a template"),
    ],
)
def test_faults_are_named_with_file_line_and_column(text, given, says, tmp_path):
    path = csv_file(tmp_path, text)
    with pytest.raises(UserError) as found:
        own_task(DataConfig(path=str(path), **given), Source(None, offline=True))
    assert says in str(found.value)
    assert given or str(path) in str(found.value)


def test_a_number_that_is_none_among_numbers_is_found(tmp_path):
    path = csv_file(tmp_path, "text,price\n" + "".join(f"t{n},{n}.5\n" for n in range(60)) + "t,n/a\n")
    message = error(path, label="price")
    assert f"{path}, line 62, column 'price': 'n/a'" in message and "--kind regression" in message
    words = csv_file(tmp_path, "text,label\n" + "".join(f"t{n},an answer {n}\n" for n in range(60)))
    assert "For free text use --kind generation" in error(words)


def test_text_and_label_that_are_swapped_are_noticed(tmp_path):
    reviews = own_data.reviews(1000)
    for number, row in enumerate(reviews):
        row["review"] = reviews[number % 400]["review"]  # texts come again: 400 "classes" of 2.5 rows each
    path = own_data.write(tmp_path / "r.csv", reviews)
    message = error(path, text=("stars",), label="review")
    assert "different labels in 1,000 rows" in message
    assert "Are text and label swapped? Try --text review --label stars." in message
    for number, row in enumerate(reviews):
        row["intent"] = f"intent {number % 400}"
    assert len(read(own_data.write(tmp_path / "i.csv", reviews), label="intent").reading.labels) == 400


def test_a_key_that_only_late_objects_have_is_a_column(tmp_path):
    lines = [{"text": f"t{number}"} for number in range(2500)] + [
        {"text": f"u{number}", "label": number % 2} for number in range(20)
    ]
    for name in ("late.jsonl", "late.json"):
        notices = Notices()
        data = read(own_data.write(tmp_path / name, lines), notices, label="label")
        assert len(rows(data)) + len(rows(data, "validation")) == 20
        assert any(text.startswith("2,500 train rows have no 'label'") for text in notices.texts)


def test_evaluation_rows_whose_text_was_trained_on_are_told(tmp_path):
    reviews = own_data.reviews(60)
    dev = [reviews[3], reviews[4], *own_data.reviews(18, seed=1)]
    path, other = own_data.write(tmp_path / "r.csv", reviews), own_data.write(tmp_path / "d.csv", dev)
    notices = Notices()
    assert read(path, notices, label="stars", validation=str(other)).known == 2
    assert any("2 of 20 evaluation rows have a text that a training row has" in text for text in notices.texts)
    notices = Notices()
    assert read(path, notices, label="stars").known == 0 and not notices.texts
    twice = own_data.write(tmp_path / "t.csv", reviews * 2)
    held_out = read(twice, label="stars")
    trained = {row["text"] for row in rows(held_out)}
    assert held_out.known == sum(row["text"] in trained for row in rows(held_out, "validation")) > 10
    for kind, name in ((own_data.pairs, "p.csv"), (own_data.chats, "c.jsonl")):
        given = kind(40)
        path, other = own_data.write(tmp_path / name, given), own_data.write(tmp_path / f"dev-{name}", given[:3])
        assert read(path, validation=str(other)).known == 3


def test_other_faults_of_files(tmp_path):
    assert "do not exist" in error(tmp_path / "none.csv")
    for name in ("../outside", "a--b/c", "a/b..c", "a/-b"):
        assert f"The data {name} do not exist" in error(name)
    assert "not a table that can be read" in error(csv_file(tmp_path, "x", "x.txt"))
    half = csv_file(tmp_path, '{"text": "a", "label": 1}\n{"text": "\\ud83d", "label": 2}\n', "h.jsonl")
    assert f"{half}, line 2, column 'text': half a character" in error(half)
    assert "line 2: not JSON" in error(csv_file(tmp_path, '{"text": "a", "label": 1}\n{"text"', "x.jsonl"))
    swapped = "".join(f"{'good' if number % 2 else 'bad'},a dog of farm {number}\n" for number in range(24))
    assert "has 24 different labels in 24 rows. Is it the label?" in error(csv_file(tmp_path, f"text,label\n{swapped}"))
    for text in ('{"text": "a", "label": ' + "9" * 5000 + "}", '{"text": ' + "[" * 100_000):
        assert "from line 2: not JSON that can be read" in error(csv_file(tmp_path, f"{{}}\n{text}", "y.jsonl"))
    turns = json.dumps({"messages": "[" * 100_000})
    assert "y.jsonl, line 1, column 'messages': not JSON" in error(csv_file(tmp_path, turns, "y.jsonl"))
    assert "all 1 rows have the label" in error(csv_file(tmp_path, "text,label\na,[" + "-" * 20_000 + "1]\n"))
    assert "line 1: a JSON object is expected, not int" in error(csv_file(tmp_path, "[1]", "x.json"))
    assert "not readable as Parquet" in error(csv_file(tmp_path, "PAR1", "x.parquet"))
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert "line 2: not UTF-8" in error(latin)
    other = csv_file(tmp_path, GOOD + "c,3\n", "v.csv")
    message = error(csv_file(tmp_path, GOOD), validation=str(other))
    assert f"{other}, line 12, column 'label': '3' is not a label of the training rows" in message


def test_a_stored_task_reads_rows_as_the_trained_one_did(tmp_path):
    task = read(own_data.write(tmp_path / "r.csv", own_data.reviews(40)), label="aspects").task()
    record = json.loads(json.dumps(task.record))
    again = stored_task(record)
    assert (again.kind, again.labels, again.outputs) == (task.kind, task.labels, 5)
    assert Reading.of_record(record).text({"review": "Good."}) == ("Good.",)


def test_classes_of_the_hub_have_their_names():
    features = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    table = table_of("org/name", Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features), "")
    assert list(table.rows()) == [
        ("org/name, row 1", {"text": "a", "label": "good"}),
        ("org/name, row 2", {"text": "b", "label": None}),
    ]


def test_the_hash_of_rows_is_that_of_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lora_drop.data.content.AT_A_TIME", 7)
    for label in ("stars", "delight", "aspects"):
        data = read(own_data.write(tmp_path / "r.jsonl", own_data.reviews(40)), label=label)
        loaded = data.load(data.source, "train")
        assert content_digest(loaded) == digest([loaded[:]])
    assert content_digest(Dataset.from_dict({})) == digest([{}])


def test_a_configuration_with_data_has_the_task_own(tmp_path):
    config = load_config(overrides=["data.path=r.csv", "data.validation=0.1", "data.text=[a, b]"])
    assert (config.task, config.data.validation) == ("own", 0.1)
    assert load_config(overrides=["data.path=r.csv", "data.validation=dev.csv"]).data.validation == "dev.csv"
    for wrong in (["task=own"], ["data.label=x"], ["task=rte", "data.path=r.csv"], ["data.name=x", "data.path=r.csv"]):
        with pytest.raises(UserError, match=r"data\.path|dataset_info"):
            load_config(overrides=wrong)
    assert config_hash(config) != config_hash(load_config(overrides=["data.path=r.csv"]))


def test_configurations_without_own_data_keep_their_names():
    assert config_hash(Config()) == "38fe3611c8ca"


def test_inspect_says_what_a_run_will_do(tmp_path, capsys):
    reviews = own_data.reviews(100)
    reviews[3] |= {"review": " "}
    reviews[5] = reviews[4]
    path = own_data.write(tmp_path / "r.csv", reviews)
    arguments = ["tasks", "--inspect", str(path), "--label", "stars", "-b", "packaged:minilm-l6"]
    main_exits([*arguments, "-o", "train.max_length=24", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["kind"] == "classification" and found["rows"] == {"train": 79, "validation": 20}
    assert sum(found["labels"]["train"].values()) == 79
    assert sum(found["repeated"].values()) == 1 and found["empty"] == [f"{path}, line 5"]
    assert 0 < found["lengths"]["cut"] < 79 and found["lengths"]["100 %"] > 24
    pasted = tmp_path / "own.yaml"
    pasted.write_text(found["yaml"])
    assert load_config([pasted]).data.label == "stars"
    main_exits(arguments[:-2])
    table = capsys.readouterr().out
    assert "rows without text" in table and yaml.safe_load(table[table.index("data:\n") :])["data"]["text"] == "review"


def main_exits(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


@pytest.mark.parametrize("name", ["p.csv", "q.csv"])
def test_rows_tokenised_in_parts_are_those_tokenised_at_once(name, tmp_path, monkeypatch):
    questions = [{"prompt": f"{'long ' * n}:", "completion": f"answer {n}"} for n in range(30)]
    data = read(own_data.write(tmp_path / name, own_data.pairs(30) if name == "p.csv" else questions))
    kind, loaded = kinds.get_kind(data.task()), data.load(data.source, "train")
    config = load_config(overrides=["train.max_length=40", "generation.max_new_tokens=8"])
    tokenizer = load_tokenizer(locate("tiny:llama" if kind.causal else "tiny:bert"), kind.causal)
    for encode in (kind.encode_training, kind.encode_evaluation):
        whole, told = encode(loaded, tokenizer, config, "some")
        monkeypatch.setattr(kinds, "PART", 7)
        parts, told_of_parts = encode(loaded, tokenizer, config, "some")
        monkeypatch.undo()
        assert parts.to_list() == whole.to_list() and told == told_of_parts != []


@pytest.mark.parametrize(
    "entry",
    [
        "x",
        {"file_name": 3},
        {"file_name": "rows.jsonl", "columns": "x"},
        {"file_name": "rows.jsonl", "columns": {"prompt": 1, "response": "r"}},
        {"file_name": "rows.jsonl", "tags": [1]},
        {"hf_hub_url": ["x"]},
        {"file_name": "rows.jsonl", "columns": {"prompt": "p", "response": "r", "history": "p"}},
        {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "m"}},
    ],
    ids=str,
)
def test_a_description_of_data_that_is_none_is_a_sentence(tmp_path, entry):
    (tmp_path / "dataset_info.json").write_text(json.dumps({"x": entry}))
    row = {"p": "say a", "r": "a", "m": [{"from": ["x"], "value": "a"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert "rows.jsonl, line 1" in (
        told := error(None, dataset_info=str(tmp_path / "dataset_info.json"), name="x")
    ) or ("dataset_info.json, x: " in told)


def test_kept_rows_that_were_damaged_are_written_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    path = csv_file(tmp_path, "text,label\n" + "a good dog,x\na bad dog,y\n" * 10)

    def texts() -> list[str]:
        data = read(path)
        return sorted(data.load(Source(None), "train")["text"])

    before = texts()
    (kept,) = [each for each in (tmp_path / "cache" / "rows").glob("*.arrow") if b"good" in each.read_bytes()][:1]
    kept.write_bytes(kept.read_bytes().replace(b"good", b"evil"))
    assert texts() == before and b"evil" not in kept.read_bytes()
