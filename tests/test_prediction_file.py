"""The file of predictions: a row of the data, then what the model says of it."""

import csv
import errno
import json
import os

import pytest

from lora_drop.errors import UserError
from lora_drop.runs.prediction_file import check_target, writing


def constant(name):
    raise ValueError(f"{name} is not JSON")


def test_a_missing_number_is_null_in_json(tmp_path):
    """Tables have NaN for it, which JSON does not know."""
    row = {"text": "a", "price": float("nan"), "sizes": [1.0, float("inf")], "of": {"one": float("nan")}}
    with writing(tmp_path / "out.jsonl", tuple(row), ()) as writer:
        writer.write(row, {"prediction": "x"})
    (line,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    told = json.loads(line, parse_constant=constant)
    assert told == {"text": "a", "price": None, "sizes": [1.0, None], "of": {"one": None}, "prediction": "x"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_every_line_end_in_a_text_is_read_again(suffix, tmp_path):
    texts = ["a\rb", "\r", "c\nd", "e\r\nf", 'g"h,\ti', "plain"]
    with writing(tmp_path / f"out{suffix}", ("text",), ()) as writer:
        for text in texts:
            writer.write({"text": text}, {"prediction": "x"})
    with (tmp_path / f"out{suffix}").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, "excel-tab" if suffix == ".tsv" else "excel", strict=True)
    assert header == ["text", "prediction"] and [row[0].lstrip("'") for row in rows] == texts


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_file_appears_when_it_is_whole_and_may_then_be_replaced(suffix, tmp_path):
    path = tmp_path / f"out{suffix}"
    with pytest.raises(KeyboardInterrupt), writing(path, ("text",), ("no", "yes")) as writer:
        writer.write({"text": "a"}, {"prediction": "no", "score": 0.75, "scores": {"no": 0.75, "yes": 0.25}})
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    for text in ("a", "b"):
        check_target(path, [])
        with writing(path, ("text",), ("no", "yes")) as writer:
            writer.write({"text": text}, {"prediction": "no", "score": 0.75, "scores": {"no": 0.75, "yes": 0.25}})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert '"b"' in path.read_text() if suffix == ".jsonl" else "\nb" in path.read_text()


def test_files_of_a_run_are_not_replaced(tmp_path):
    (tmp_path / "config.yaml").touch()
    path = tmp_path / "predictions.jsonl"
    path.write_text('{"id": "0", "prediction": "no"}\n')
    with pytest.raises(UserError, match="is a file of the run itself"):
        check_target(path, [])
    check_target(tmp_path / "predictions-new.jsonl", [])


def test_a_full_disk_is_said_of_the_file(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(UserError, match=r"out\.csv cannot be written \(No space left on device\)"),
        writing(tmp_path / "out.csv", ("text",), ()) as writer,
    ):
        writer.write({"text": "x"}, {"prediction": "y"})
    assert not list(tmp_path.iterdir())


def test_a_failure_of_something_else_is_not_said_of_the_file(tmp_path):
    with pytest.raises(ConnectionError), writing(tmp_path / "out.csv", ("text",), ()):
        raise ConnectionError("the Hub is gone")
