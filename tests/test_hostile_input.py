"""Files and names that are made to do harm, or are none: a sentence each, and nothing believed unseen."""

import errno
import json
import time
from pathlib import Path

import pytest
import yaml
from commands import call

from lora_drop.config.loading import from_dict, load_config
from lora_drop.config.strict_yaml import parse
from lora_drop.errors import UserError
from lora_drop.experiments.records import read_records
from lora_drop.faults import foreign
from lora_drop.files import csv_cell, read_json, write_json
from lora_drop.methods import lora
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source

BOMB = "a: &a [1, 1, 1]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 9)}]" for n in range(9)
)
"""Ten lines that would be billions of values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "'seed' occurs twice"),
        ("train: {epochs: 1, epochs: 2}", "'epochs' occurs twice"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "[" * 50 + "]" * 50, "more than 20 deep"),
        ("seed: " + "9" * 5000, "not readable YAML"),
        (BOMB, "more than 20,000 values"),
        ("a: &a [*a]", "nested more than"),
        ("seed: " + "59:" * 3000 + "59", "a number that is too large"),
        ("seed: 0x" + "f" * 5000, "a number that is too large"),
        ("x: " + "y" * 300_000, "too large for a configuration"),
        ("? [1]\n: 2", "not readable YAML"),
        ("!!python/object/apply:os.system [ls]", "not readable YAML"),
        ("\x00", "not readable YAML"),
    ],
    ids=range(13),
)
def test_hostile_yaml_is_a_sentence_at_once(text, message):
    began = time.process_time()
    with pytest.raises(UserError, match=message):
        parse(text.encode(), "a.yaml")
    assert time.process_time() - began < 5


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e300, "1e999", 10**12, "9" * 5000])
@pytest.mark.parametrize("key", ["train.epochs", "train.batch_size", "score.bootstrap", "seed"])
def test_huge_numbers_are_refused(key, value):
    with pytest.raises(UserError, match=key):
        load_config(flags={key: value})


def test_many_mistakes_are_told_at_once():
    began = time.process_time()
    with pytest.raises(UserError, match=r"2000 errors(.|\n)*and 1980 more"):
        from_dict({f"trian{number}": 1 for number in range(2000)})
    assert time.process_time() - began < 5
    with pytest.raises(UserError, match="no such key"):
        load_config(overrides=[".".join("a" * 3000) + "=1"])


def test_the_safe_loader_reads_what_it_did():
    text = "a: [1, 2.5, x]\nb: {c: null, d: true}\ne: 1e-3\nf: &x {g: 1}\nh: {<<: *x, i: 2}\n"
    assert parse(text.encode(), "") == yaml.safe_load(text)


def test_an_adapter_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("run/adapter", "org/adapter"):
        with pytest.raises(UserError, match="holds no readable PEFT adapter"):
            lora.read_config(tmp_path.__class__(name))
        with pytest.raises(OSError, match="adapter_model"):
            lora.read_weights(tmp_path.__class__(name))


def test_an_adapter_in_a_pickle_is_not_read(tmp_path):
    import torch

    torch.save({}, tmp_path / "adapter_model.bin")
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        lora.read_weights(tmp_path)


def test_a_module_that_an_adapter_names_is_not_imported(tmp_path, monkeypatch):
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=8)
    )
    (tmp_path / "evil.py").write_text(f"import os; os.mkdir({str(tmp_path / 'mark')!r})")
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["query"], "megatron_core": "evil"}
    write_json(tmp_path / "adapter_config.json", {**settings, "megatron_config": {"x": 1}})
    with pytest.raises(UserError, match="for Megatron"):
        lora.wrapped(model, tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("key", ["r", "lora_alpha"])
@pytest.mark.parametrize("value", [None, "8", [8], -1e400])
def test_a_size_of_an_adapter_that_is_none_is_a_sentence(tmp_path, key, value):
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["query"], key: value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=rf"its (rank )?{key} is"):
        lora.read_config(tmp_path)


def test_json_that_cannot_be_read_is_a_sentence(tmp_path):
    for content in (b"[" * 100_000, b"9" * 5000, b"\xff"):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(UserError, match="is not valid JSON"):
            read_json(tmp_path / "a.json")
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


def test_a_bad_record_is_named_and_left_out(tmp_path, capsys):
    source = next(iter(sorted((Path(__file__).parent.parent / "results").glob("*/*/*.json"))))
    folder = tmp_path / source.parent.parent.name / source.parent.name
    record = read_json(source)
    write_json(folder / "good.json", record)
    broken = {
        "empty": {},
        "list": [],
        "metrics": {**record, "metrics": {"accuracy": "high"}},
        "layout": {**record, "layout": {}},
        "task": {**record, "task": "rte" if record["task"] != "rte" else "mrpc"},
        "scores": {**record, "scores": [{}]},
        "best": {**record, "best": {"epoch": 1}},
        "huge": {**record, "seed": 10**30},
        "unknown": {**record, "other": 1},
    }
    for name, content in broken.items():
        write_json(folder / f"{name}.json", content)
    (folder / "deep.json").write_text("[" * 100_000)
    assert call("report", "--results", tmp_path, "--no-figures") == 0
    shown = capsys.readouterr().err
    assert all(f"{name}.json is not" in shown for name in (*broken, "deep")) and "good.json" not in shown
    with pytest.raises(UserError, match=r"best\.json is not a result"):
        read_records(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, '{"prediction": "entailment", "x": ' + "[" * 100_000])
def test_predictions_that_are_no_json_are_a_sentence(tmp_path, capsys, text):
    for name in ("a.jsonl", "a.txt"):
        (tmp_path / name).write_text(text)
        assert call("eval", "--task", "toy-nli", "--predictions", tmp_path / name) == 2
        assert f"Error: {tmp_path / name}" in capsys.readouterr().err


def test_ids_of_another_split_are_refused(tmp_path, capsys):
    rows = TASKS.get("toy-nli").load(Source(None), "validation")
    lines = [{"id": row["id"], "prediction": TASKS.get("toy-nli").labels[row["label"]]} for row in rows]

    def score(lines):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
        code = call("eval", "--task", "toy-nli", "--predictions", tmp_path / "a.jsonl", "--json")
        shown = capsys.readouterr()
        return code, shown.out if code == 0 else shown.err

    code, out = score(lines[::-1])
    assert code == 0 and json.loads(out)["metrics"]["accuracy"] == 1
    assert score([{**line, "id": f"x{line['id']}"} for line in lines])[1].count("is not an id of the split") == 1
    assert "others have none" in score([*lines[:-1], {"prediction": "entailment"}])[1]


def test_a_name_of_an_experiment_is_no_path(tmp_path, capsys):
    for name in ("../outside", "a/b", "..", ""):
        content = {"name": name, "rows": {"a": {}}, "tasks": ["toy-nli"], "seeds": [0], "title": "x"}
        write_json(tmp_path / "e.yaml", content)
        assert call("reproduce", tmp_path / "e.yaml", "--dry-run", "--results", tmp_path / "results") == 2
        assert "it names a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "."])
def test_the_name_of_a_data_set_is_no_path(name, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "inside"
    write_json(folder / "info.json", {name: {"file_name": "rows.jsonl", "columns": {"prompt": "p", "response": "r"}}})
    monkeypatch.chdir(folder)
    assert call("run", "--dataset-info", "info.json", "--name", name) == 2
    assert "cannot name a folder in runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "info.json"]


def test_a_cell_is_no_formula():
    for text in ("=1+1", "+1 and", "-x", "@a", "\ta", "\r=1", "+A1", "-2+SUM(A1)", "-1|x"):
        assert csv_cell(text) == f"'{text}"
    for text in ("", "a=1", "-1.5", "+3", "-1e-3", "1-2", "+49 170 (12)", "-1,5", "-inf"):
        assert csv_cell(text) == text


def test_what_a_library_makes_of_a_foreign_file_is_a_sentence():
    for error in (
        KeyError("os.system"),
        RecursionError("deep"),
        TypeError("a\n  b"),
        Exception("x" * 1000),
        ImportError(),
    ):
        with pytest.raises(UserError) as found, foreign("The file is bad"):
            raise error
        assert str(found.value).startswith("The file is bad: ") and "\n" not in str(found.value)
        assert len(str(found.value)) < 450
    for error in (MemoryError(), OSError(errno.ENOSPC, "", "/x"), KeyboardInterrupt()):
        with pytest.raises(type(error)), foreign("The file is bad"):
            raise error
    with pytest.raises(UserError, match=r"^as it was$"), foreign("The file is bad"):
        raise UserError("as it was")
