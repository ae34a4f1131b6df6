"""Own data: what is said of wrong files, rows and values."""

import json

import own_data
import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from own_data import Notices, csv_file, error, read, rows
from pyarrow import parquet

from lora_drop.cli.app import main
from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.task import OwnData

GOOD = "text,label\n" + "a,1\nb,2\n" * 5


def test_rows_without_text_or_label_are_left_out_and_named(tmp_path):
    path = csv_file(tmp_path, "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(10)) + ",1\nt,\n")
    notices = Notices()
    data = read(path, notices)
    assert len(rows(data)) + len(rows(data, "validation")) == 10
    assert f"1 train row has no text ({path}, line 12): left out" in notices.texts
    assert f"1 train row has no 'label' ({path}, line 13): left out" in notices.texts


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
        (GOOD, {"metric": ("f1_makro",)}, "is not a metric for classification. Did you mean 'f1_macro'?"),
        ("a,b\nx,y\n", {}, "Which column of"),
        (GOOD, {"text": ("text", "label", "text")}, "For more, use a template"),
        ("text,label\n" + "a,2.5\nb,2.5\n" * 5, {}, "all rows have the number 2.5"),
    ],
)
def test_faults_are_named_with_file_line_and_column(text, given, says, tmp_path):
    path = csv_file(tmp_path, text)
    with pytest.raises(UserError) as found:
        OwnData(DataConfig(path=str(path), **given), Source(None, offline=True)).task()
    assert says in str(found.value)
    assert given or str(path) in str(found.value)


def test_a_number_that_is_none_among_numbers_is_found(tmp_path):
    path = csv_file(tmp_path, "text,price\n" + "".join(f"t{n},{n}.5\n" for n in range(60)) + "t,n/a\n")
    message = error(path, label="price")
    assert f"{path}, line 62, column 'price': 'n/a'" in message and "Leave such cells empty" in message
    few = "".join(json.dumps({"text": f"t{n}", "price": (1.5, 2.5)[n % 2]}) + "\n" for n in range(20))
    path = csv_file(tmp_path, few + '{"text": "t", "price": Infinity}\n', "few.jsonl")
    assert f"{path}, line 21, column 'price': 'Infinity'" in error(path, label="price")
    path = csv_file(tmp_path, "text,price\n" + "".join(f"t{n},{n}.5\n" for n in range(60)) + "t,cheap\n")
    message = error(path, label="price")
    assert f"{path}, line 62, column 'price': 'cheap'" in message and "--kind regression" in message
    commas = csv_file(tmp_path, "text;price\n" + "".join(f"t{n};{n},5\n" for n in range(60)))
    assert "Numbers need a decimal point, not a comma: write 0,5 as 0.5" in error(commas, label="price")
    words = csv_file(tmp_path, "text,label\n" + "".join(f"t{n},an answer {n}\n" for n in range(60)))
    assert "For free text use --kind generation" in error(words)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_is_there_twice_is_refused(name, tmp_path):
    """One of its values would be lost without a word."""
    rows = [json.dumps({"text": f"t{n}", "label": "ab"[n % 2]}) for n in range(20)]
    rows.append('{"text": "late", "label": "a", "label": "b"}')
    path = tmp_path / name
    path.write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")
    message = error(path)
    assert (
        "an object has the key 'label' twice" in message
        and f"{path}, from line {21 if name.endswith('l') else 1}" in message
    )


def test_whole_numbers_that_a_missing_one_has_made_floats_are_classes(tmp_path):
    lines = "".join(f"t{n},{n % 2}.0\n" for n in range(20))
    data = OwnData(DataConfig(path=str(csv_file(tmp_path, f"text,label\n{lines}t,\n"))), Source(None, offline=True))
    assert (data.task().kind, data.task().labels) == ("classification", ("0", "1"))
    path = csv_file(tmp_path, f"text,label\n{lines}t,NA\nt,NA\n")
    assert f"{path}, line 22, column 'label': 'NA', and the other labels are numbers" in error(path)
    named = OwnData(DataConfig(path=str(path), kind="classification"), Source(None, offline=True)).task()
    assert named.labels == ("0.0", "1.0", "NA")


def test_text_and_label_that_are_swapped_are_noticed(tmp_path):
    reviews = own_data.reviews(1000)
    for number, row in enumerate(reviews):
        row["review"] = reviews[number % 400]["review"]  # texts come again: 400 "classes" of 2.5 rows each
    path = own_data.write(tmp_path / "r.csv", reviews)
    message = error(path, text=("stars",), label="review")
    assert "different labels in 1,000 rows" in message
    assert "Text and label may be swapped: try --text review --label stars." in message
    for number, row in enumerate(reviews):
        row["intent"] = f"intent {number % 400}"
    assert len(read(own_data.write(tmp_path / "i.csv", reviews), label="intent").reading.labels) == 400


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
    assert "has 24 different labels in 24 rows. Check that it is the label." in error(
        csv_file(tmp_path, f"text,label\n{swapped}")
    )
    for text in ('{"text": "a", "label": ' + "9" * 5000 + "}", '{"text": ' + "[" * 100_000):
        assert "from line 2: not JSON that can be read" in error(csv_file(tmp_path, f"{{}}\n{text}", "y.jsonl"))
    turns = json.dumps({"messages": "[" * 100_000})
    assert "y.jsonl, line 1, column 'messages': not JSON" in error(csv_file(tmp_path, turns, "y.jsonl"))
    assert "all 1 rows have the label" in error(csv_file(tmp_path, "text,label\na,[" + "-" * 20_000 + "1]\n"))
    assert "line 1: a JSON object is expected, not int" in error(csv_file(tmp_path, "[1]", "x.json"))
    columns = csv_file(tmp_path, '{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}', "columns.json")
    assert "this one holds columns. pandas writes rows with orient='records'" in error(columns)
    assert "not readable as Parquet" in error(csv_file(tmp_path, "PAR1", "x.parquet"))
    columns = {"text": [b"\xff\xfe"] * 4, "label": [0, 1] * 2}
    parquet.write_table(pyarrow.table(columns), tmp_path / "b.parquet")
    assert "row 1, column 'text': a text is expected, not bytes that are no UTF-8" in error(tmp_path / "b.parquet")
    never = pyarrow.array([10**15] * 4, pyarrow.timestamp("ms"))
    parquet.write_table(
        pyarrow.table({"text": list("abcd"), "label": [0, 1] * 2, "day": never}), tmp_path / "d.parquet"
    )
    assert "d.parquet, rows 1 to 4: a date or a time is outside the years 1 to 9999" in error(tmp_path / "d.parquet")
    twice = pyarrow.table([list("abcd"), [0, 1] * 2, list("efgh")], names=["text", "label", "text"])
    parquet.write_table(twice, tmp_path / "t.parquet")
    assert "t.parquet: two columns are named 'text'" in error(tmp_path / "t.parquet")
    latin = tmp_path / "latin.csv"
    latin.write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    assert "line 2: not UTF-8" in error(latin)
    wide = tmp_path / "wide.csv"
    wide.write_bytes("text,label\na,1\n".encode("utf-16"))
    assert "It looks like UTF-16" in error(wide)
    other = csv_file(tmp_path, GOOD + "c,3\n", "v.csv")
    message = error(csv_file(tmp_path, GOOD), validation=str(other))
    assert f"{other}, line 12, column 'label': '3' is not a label of the training rows" in message


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


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": ["I", "want"], "label": 1}, "column 'text': a text is expected, not a list"),
        ({"text": {"en": "I"}, "label": 1}, "column 'text': a text is expected, not an object"),
        ({"text": "a", "label": {"name": "x"}}, "column 'label': a label is expected, not an object"),
        ({"prompt": "a", "completion": ["b"]}, "column 'completion': a text is expected, not a list"),
        ({"text": "a", "labels": [1.0, 0.0, 0.0]}, "Write the names of the classes that hold instead"),
        ({"messages": [{"role": "user", "content": "a"}]}, "none of 9 rows has text and an answer of the assistant"),
    ],
)
def test_cells_that_are_no_text_are_refused(row, says, tmp_path):
    assert says in error(own_data.write(tmp_path / "t.jsonl", [row] * 9))


def test_a_folder_of_save_to_disk_is_recognised(tmp_path):
    DatasetDict(train=Dataset.from_dict({"text": ["a"], "label": [1]})).save_to_disk(tmp_path / "saved")
    assert "was written by datasets.save_to_disk" in error(tmp_path / "saved")


def test_one_column_is_predicted(tmp_path, capsys):
    path = csv_file(tmp_path, "text,rude,angry\na,1,0\n")
    with pytest.raises(SystemExit):
        main(["tasks", "--inspect", str(path), "--label", "rude", "--label", "angry"])
    assert "put their names into one column, such as angry;rude" in " ".join(capsys.readouterr().err.split())
