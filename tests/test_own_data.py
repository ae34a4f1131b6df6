"""Own data: what tables, columns and labels are taken for."""

import json
from pathlib import Path

import own_data
import pytest
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from own_data import Notices, csv_file, error, read, rows

from lora_drop.cli.app import main
from lora_drop.cli.options import own_run_dir
from lora_drop.config.identity import config_hash
from lora_drop.config.loading import load_config
from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.reading import Reading
from lora_drop.tasks.own.task import OwnData, stored_task
from lora_drop.tasks.own.values import as_label, kind_of, ordered, several


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["1", "2", "-3"], "classification"),
        (["good", "bad"], "classification"),
        (["1.5", "2"], "regression"),
        (["1.0", "2.0"], "classification"),  # pandas writes whole numbers so where one is missing
        (["1", "bad"], "classification"),
        (["1_0", "2_1"], "classification"),
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


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_whole_number_is_one_class_also_where_a_point_follows(suffix, tmp_path):
    written = ["1", "2.0", "2", "1.0"] if suffix == "csv" else [1.0, 2.0]
    plain = [{"text": f"t{n}", "label": n % 2 + 1} for n in range(40)]
    mixed = [{"text": f"t{n}", "label": written[n % len(written)]} for n in range(40)]
    train = own_data.write(tmp_path / f"train.{suffix}", mixed)
    for evaluated in (mixed, plain):
        path = own_data.write(tmp_path / f"dev.{suffix}", evaluated)
        data = read(train, validation=str(path))
        assert data.reading.labels == ("1", "2")
        expected = [{"1": 0, "2": 1}[str(row["label"])[0]] for row in evaluated]
        assert [row["label"] for row in rows(data, "validation")] == expected
    held_out = rows(read(train, validation=0.5), "validation")
    assert sorted(row["label"] for row in held_out) == [0] * 10 + [1] * 10


def test_whole_numbers_among_several_labels_are_one_label_each(tmp_path):
    data = read(csv_file(tmp_path, "text,tags\n" + "one,1.0;2\ntwo,1; 2.0\nthree,2\n" * 10))
    assert data.reading.labels == ("1", "2")
    assert {tuple(row["label"]) for row in rows(data)} == {(1.0, 1.0), (0.0, 1.0)}


def test_labels_that_only_look_like_numbers_stay_as_they_are(tmp_path):
    for cells in (("1.0", "1.1"), ("01", "1"), ("1.0", "old")):
        text = "text,label\n" + "".join(f"t{n},{cells[n % 2]}\n" for n in range(20))
        assert set(read(csv_file(tmp_path, text), kind="classification").reading.labels) == set(cells)


def test_a_run_of_an_earlier_version_knows_its_labels_without_a_point():
    earlier = Reading("classification", ("text",), "", "label", labels=("0.0", "1.0"))
    found = [earlier.answer("", {"text": "t", "label": cell}) for cell in ("0", "1.0", 1, 1.0, "2", None)]
    assert found == ["0.0", "1.0", "1.0", "1.0", "2", None]


def test_the_held_out_rows_have_the_classes_in_proportion_and_are_the_same_each_time(tmp_path):
    text = "text,label\n" + "".join(f"t{number},{'rare' if number % 10 == 0 else 'common'}\n" for number in range(100))
    path = csv_file(tmp_path, text)
    data = read(path)
    held = rows(data, "validation")
    assert sum(row["label"] == data.reading.labels.index("rare") for row in held) == 2 and len(held) == 20
    assert rows(read(path), "validation") == held
    assert not {row["text"] for row in held} & {row["text"] for row in rows(data)}
    assert len(rows(read(path, validation=0.5), "validation")) == 50


def test_the_only_row_of_a_class_is_trained_on(tmp_path):
    rare = "".join(f"only {number},rare {number}\n" for number in range(12))
    path = csv_file(tmp_path, "text,label\n" + "".join(f"t{number},c{number % 6}\n" for number in range(120)) + rare)
    data = read(path)
    trained = {row["label"] for row in rows(data)}
    assert trained == set(range(len(data.reading.labels))) and len(rows(data, "validation")) > 20
    several = "".join(f"t{number},a;{'b' if number % 2 else 'c'}\n" for number in range(40))
    path = csv_file(tmp_path, "text,label\n" + several + "".join(f"only {n},x{n};a\n" for n in range(6)), "m.csv")
    data = read(path)
    assert all(map(any, zip(*(row["label"] for row in rows(data)), strict=True)))


def test_a_test_file_without_labels_is_not_evaluated_on(tmp_path):
    own_data.write(tmp_path / "train.csv", own_data.reviews(40))
    bare = [{"review": row["review"], "id": 1} for row in own_data.reviews(10, seed=1)]
    own_data.write(tmp_path / "test.csv", bare)
    notices = own_data.Notices()
    data = read(tmp_path, notices, text=("review",), label="stars")
    assert (len(rows(data)), len(rows(data, "validation"))) == (32, 8)
    assert any(
        "test.csv has no column 'stars': a part of the training rows is held out" in text for text in notices.texts
    )
    own_data.write(tmp_path / "test.csv", [{**row, "stars": ""} for row in bare])
    notices = own_data.Notices()
    assert len(rows(read(tmp_path, notices, text=("review",), label="stars"), "validation")) == 8
    assert any("test.csv has no label in 'stars': a part of the" in text for text in notices.texts)
    own_data.write(tmp_path / "test.csv", bare)
    said = error(tmp_path, text=("review",), label="stars", validation="test")
    assert "test.csv has no column 'stars', which" in said and "lora-drop predict" in said


@pytest.mark.parametrize("word", ["evaluation", "dev", "Validset", "testset", "val_2024"])
def test_the_first_word_of_a_files_name_tells_its_split(word, tmp_path):
    own_data.write(tmp_path / "trainset.csv", own_data.reviews(40))
    own_data.write(tmp_path / f"{word}.csv", own_data.reviews(12, seed=1))
    asked = {"text": ("review",), "label": "stars"}
    for given in ({}, {"validation": "test" if "test" in word else "eval"}):
        data = read(tmp_path, **asked, **given)
        assert (len(rows(data)), len(rows(data, "validation"))) == (40, 12)


def test_bytes_of_a_parquet_file_are_texts(tmp_path):
    """As Spark and Impala write them."""
    made = [{"text": f"naïve {n}".encode(), "label": (b"no", b"yes")[n % 2]} for n in range(20)]
    data = read(own_data.write(tmp_path / "b.parquet", made))
    assert data.reading.labels == ("no", "yes") and rows(data)[0]["text"].startswith("naïve ")


def test_labels_of_an_unexpected_kind_are_told(tmp_path):
    for name, cells, word in (
        ("odd", ["x", "y"] * 20 + ["a; b"], "If the ';' is part of a name, use"),
        ("comma", ["0,0", "1,5"] * 20, "write 0,0 as 0.0, with a decimal point"),
        ("thousands", ["1,000", "2,500"] * 20, "write 1,000 as 1000, or, if the comma is a decimal point, as 1.000"),
        ("money", ["$4.50", "$5.50"] * 20, "written with digits and a decimal point alone"),
        ("missing", ["x", "nan"] * 20, "If it means that the label is missing, leave these cells empty"),
        ("case", ["Good", "good"] * 20, "'Good' and 'good' are taken for two classes"),
        ("plain", ["x", "y"] * 20, ""),
    ):
        path = csv_file(
            tmp_path, "text\tlabel\n" + "".join(f"t{n}\t{cell}\n" for n, cell in enumerate(cells)), f"{name}.tsv"
        )
        notices = own_data.Notices()
        read(path, notices)
        assert [word in text for text in notices.texts] == ([True] if word else []), notices.texts


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


def test_a_key_that_only_late_objects_have_is_a_column(tmp_path):
    lines = [{"text": f"t{number}"} for number in range(2500)] + [
        {"text": f"u{number}", "label": number % 2} for number in range(20)
    ]
    for name in ("late.jsonl", "late.json"):
        notices = Notices()
        data = read(own_data.write(tmp_path / name, lines), notices, label="label")
        assert len(rows(data)) + len(rows(data, "validation")) == 20
        assert any(text.startswith("2,500 train rows have no 'label'") for text in notices.texts)


def test_a_stored_task_reads_rows_as_the_trained_one_did(tmp_path):
    task = read(own_data.write(tmp_path / "r.csv", own_data.reviews(40)), label="aspects").task()
    record = json.loads(json.dumps(task.record))
    again = stored_task(record)
    assert (again.kind, again.labels, again.outputs) == (task.kind, task.labels, 5)
    assert Reading.of_record(record).text({"review": "Good."}) == ("Good.",)


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


def test_the_file_to_paste_names_the_split_that_was_inspected(tmp_path, capsys):
    own_data.write(tmp_path / "train.csv", own_data.reviews(20))
    own_data.write(tmp_path / "validation.csv", own_data.reviews(40))
    pasted = tmp_path / "own.yaml"
    for split, count in (("train", 20), ("validation", 40)):
        chosen = ["-o", f"data.split={split}", "--validation", "0.5", "--label", "stars"]
        main_exits(["tasks", "--inspect", str(tmp_path), *chosen, "--json"])
        pasted.write_text(json.loads(capsys.readouterr().out)["yaml"])
        data = load_config([pasted]).data
        assert data.split == split and len(OwnData(data, Source(None, offline=True)).surveys["train"].used) == count


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("me@corp/reviews.csv", "reviews"),
        ("a:b/c@d.csv", "c@d"),
        ("on/that@day", "that@day"),
        ("org/reviews:german@main", "reviews"),
        ("missing@here/reviews.csv", "reviews"),
    ],
)
def test_a_run_is_named_after_its_data(data, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("me@corp", "a:b", "on/that@day"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "me@corp" / "reviews.csv").touch(), (tmp_path / "a:b" / "c@d.csv").touch()
    assert own_run_dir({"data": data, "name": None}) == Path("runs") / name


def main_exits(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


def test_parquet_keeps_the_names_of_its_classes(tmp_path):
    """`Dataset.to_parquet` writes indices, and the names beside them."""
    told = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    path = tmp_path / "named.parquet"
    Dataset.from_dict({"text": [f"t{n}" for n in range(20)], "label": [0, 1] * 9 + [0, -1]}, told).to_parquet(path)
    data = read(path)
    assert data.reading.labels == ("bad", "good") and data.surveys["train"].counts == {"bad": 10, "good": 9}
    assert len(data.surveys["train"].unlabelled) == 1
