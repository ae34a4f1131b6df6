"""Damage, hostile input and failures of the machine: a sentence each, and nothing believed unseen."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError

from lora_drop.cli import app as cli
from lora_drop.config.loading import from_dict, load_config
from lora_drop.config.schema import Config
from lora_drop.config.strict_yaml import parse
from lora_drop.errors import UserError
from lora_drop.experiments.records import read_records
from lora_drop.faults import as_sentences, foreign
from lora_drop.files import csv_cell, read_json, remove, sweep, write_json, write_text
from lora_drop.interruption import Stopped, stoppable
from lora_drop.methods import lora
from lora_drop.progress import Reporter
from lora_drop.registry import TASKS
from lora_drop.runs import pipeline
from lora_drop.runs.facts import read_facts
from lora_drop.runs.job import Job
from lora_drop.runs.stages.base import Stage
from lora_drop.runs.store import Run, stored_config
from lora_drop.tasks.base import Source


def stage(work, name="a") -> Stage:
    """A stage that reads no rows and writes `a.txt`."""
    return Stage(
        name=name,
        help="",
        version=1,
        outputs=("a.txt",),
        needs=(),
        settings=lambda job: {},
        inputs=lambda job: {},
        work=work,
        rows=lambda job: (),
    )


def write(job):
    write_text(job.run.file("a.txt"), "x")
    return "a note", {"fact": 1}


def finished(path, work=write) -> Run:
    run = Run(path, Config())
    with run.working():
        pipeline.perform(Job(run), stage(work))
    return run


def call(*arguments) -> int:
    try:
        cli.main([str(each) for each in arguments])
    except SystemExit as ended:
        return ended.code or 0
    return 0


# what a run directory says of itself


def damaged(content: bytes):
    middle = len(content) // 2
    yield from (b"", content[:middle], bytes(len(content)), content[:middle] + bytes(len(content) - middle), b"[]")
    yield content + b"\x00garbage"
    for place in range(0, len(content), max(1, len(content) // 40)):
        yield content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_damaged_configuration_is_never_another_one(tmp_path, capsys):
    finished(tmp_path)
    stored = tmp_path / "config.yaml"
    for content in damaged(stored.read_bytes()):
        stored.write_bytes(content)
        with pytest.raises(UserError, match=r"config\.yaml is not as lora-drop wrote it"):
            Run(tmp_path)
        assert call("select", "-d", tmp_path) == 2 and stored.read_bytes() == content
    stored.unlink()
    assert call("run", "-d", tmp_path) == 2
    assert "its config.yaml is missing" in capsys.readouterr().err
    stored.mkdir()
    assert call("run", "-d", tmp_path) == 2


def test_a_run_that_was_stopped_before_its_configuration_was_written_begins_anew(tmp_path):
    write_json(tmp_path / "run.json", {"format": 3, "status": "interrupted", "stages": {}})
    with Run(tmp_path, load_config(stored=stored_config(tmp_path))).working():
        pass
    assert (tmp_path / "config.yaml").is_file()


def test_a_configuration_that_was_edited_can_be_given(tmp_path):
    finished(tmp_path)
    stored = tmp_path / "config.yaml"
    stored.write_text(stored.read_text().replace("seed: 0", "seed: 5"))
    assert load_config([stored]).seed == 5


def test_what_was_altered_in_the_manifest_is_done_again(tmp_path):
    run = finished(tmp_path)
    manifest = read_json(tmp_path / "run.json")
    for change in ({"fact": 2}, {"note": "other"}, {"outputs": {}}, {"inputs": 3}, {"seal": "x"}):
        entry = {**manifest["stages"]["a"], **change}
        write_json(tmp_path / "run.json", {**manifest, "stages": {"a": entry}})
        again, told = Run(tmp_path), []
        assert again.entry("a") == {} and again.damaged == ["a"]
        reporter = Reporter()
        reporter.notice = told.append
        pipeline.perform(Job(again, reporter), stage(write))
        assert "run.json is damaged where it speaks of the stage a" in told[0]
        assert again.entry("a")["outputs"] == run.entry("a")["outputs"] and again.damaged == []


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"stages": 1}', b"[" * 100_000, b"\xff", b"9" * 5000])
def test_a_manifest_that_is_none_is_a_sentence(tmp_path, content):
    finished(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=r"run\.json"):
        Run(tmp_path)


def test_a_killed_run_is_not_shown_as_running(tmp_path):
    run = Run(tmp_path, Config())
    with run.working():
        assert read_facts(tmp_path).status == "running"
    assert read_facts(tmp_path).status == "done"
    run.record(status="running")  # as a kill leaves it
    assert read_facts(tmp_path).status == "interrupted"


def test_checkpoints_go_when_the_manifest_says_that_the_stage_is_done(tmp_path):
    kept = tmp_path / "checkpoints" / "a" / "x"

    def work(job):
        write_text(kept, "")
        return write(job)

    run = finished(tmp_path, work)
    assert not kept.exists()
    write_text(kept, "")  # as a kill between the two leaves it
    pipeline.perform(Job(run), stage(work))
    assert not kept.parent.exists()


# removing


def test_removing_follows_no_link_and_takes_only_what_is_ours(tmp_path):
    write_text(tmp_path / "theirs" / "a", "")
    (tmp_path / "run").mkdir()
    link = tmp_path / "run" / ".adapter.1.tmp"
    link.symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "run" / ".mine.tmp", "")
    write_text(tmp_path / "run" / ".scores.json.12.gone.tmp" / "a", "")
    sweep(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".mine.tmp"]
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a link"):
        Run(tmp_path / "run", Config()).remove_checkpoints("a")
    remove(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "theirs" / "a").exists()


def test_a_folder_of_others_is_left_alone(tmp_path):
    write_text(tmp_path / "adapter" / "mine", "")
    with pytest.raises(UserError, match="is no run directory, but has adapter"), Run(tmp_path, Config()).working():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


# configurations

BOMB = "a: &a [1, 1, 1]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '*a'] * 9)}]" for n in range(9)
)
"""Ten lines that would be billions of values."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2", "'seed' is there twice"),
        ("train: {epochs: 1, epochs: 2}", "'epochs' is there twice"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "[" * 50 + "]" * 50, "more than 20 deep"),
        ("seed: " + "9" * 5000, "not readable YAML"),
        (BOMB, "more than 20,000 values"),
        ("a: &a [*a]", "nested more than"),
        ("seed: " + "59:" * 3000 + "59", "a number without end"),
        ("seed: 0x" + "f" * 5000, "a number without end"),
        ("x: " + "y" * 300_000, "no configuration"),
        ("? [1]\n: 2", "not readable YAML"),
        ("!!python/object/apply:os.system [ls]", "not readable YAML"),
        ("\x00", "not readable YAML"),
    ],
    ids=range(13),
)
def test_hostile_yaml_is_a_sentence_at_once(text, message):
    began = time.perf_counter()
    with pytest.raises(UserError, match=message):
        parse(text.encode(), "a.yaml")
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e300, "1e999", 10**12, "9" * 5000])
@pytest.mark.parametrize("key", ["train.epochs", "train.batch_size", "score.bootstrap", "seed"])
def test_huge_numbers_are_refused(key, value):
    with pytest.raises(UserError, match=key):
        load_config(flags={key: value})


def test_many_mistakes_are_told_at_once():
    began = time.perf_counter()
    with pytest.raises(UserError, match=r"2000 errors(.|\n)*and 1980 more"):
        from_dict({f"trian{number}": 1 for number in range(2000)})
    assert time.perf_counter() - began < 5
    with pytest.raises(UserError, match="no such key"):
        load_config(overrides=[".".join("a" * 3000) + "=1"])


def test_the_safe_loader_reads_what_it_did():
    text = "a: [1, 2.5, x]\nb: {c: null, d: true}\ne: 1e-3\nf: &x {g: 1}\nh: {<<: *x, i: 2}\n"
    assert parse(text.encode(), "") == yaml.safe_load(text)


# the machine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "", "/x/run.json"), r"/x/run\.json: No space left on device\. Make room"),
        (PermissionError(errno.EACCES, "", "/x"), "/x: Permission denied"),
        (OSError(errno.EROFS, "", "/x"), "Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "", "/x"), "shorter name"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (MemoryError(), r"Out of memory\. Lower train\.device_batch_size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "Out of memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "Out of memory"),
    ],
    ids=str,
)
def test_failures_of_the_machine_are_sentences(tmp_path, error, message):
    def fail(job):
        raise error

    run = Run(tmp_path, Config())
    with pytest.raises(UserError, match=message), run.working():
        pipeline.perform(Job(run), stage(fail))
    assert run.manifest["status"] == "failed"


def test_other_failures_stay_what_they_are():
    with pytest.raises(RuntimeError, match="a fault of ours"), as_sentences(""):
        raise RuntimeError("a fault of ours")


def test_a_name_that_is_too_long_is_a_sentence(capsys):
    assert call("run", "-d", "x" * 5000) == 2
    assert "shorter name" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_between_steps_ends_the_run_as_interrupted(tmp_path, name):
    import signal

    number = getattr(signal, name)

    def work(job):
        os.kill(os.getpid(), number)
        time.sleep(5)

    run = Run(tmp_path, Config())
    with pytest.raises(Stopped) as stopped, stoppable(), run.working():
        pipeline.perform(Job(run), stage(work))
    assert stopped.value.code == 128 + number and read_json(tmp_path / "run.json")["status"] == "interrupted"


def test_signals_that_are_ignored_stay_ignored():
    import signal

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        with stoppable():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# names on the Hub


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
    folder = tmp_path / "table1" / "x"
    source = next(iter(sorted((Path(__file__).parent.parent / "results").glob("*/*/*.json"))))
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
    assert score([{**line, "id": f"x{line['id']}"} for line in lines])[1].count("is none of the split's") == 1
    assert "others have none" in score([*lines[:-1], {"prediction": "entailment"}])[1]


def test_a_name_of_an_experiment_is_no_path(tmp_path, capsys):
    for name in ("../outside", "a/b", "..", ""):
        content = {"name": name, "rows": {"a": {}}, "tasks": ["toy-nli"], "seeds": [0], "title": "x"}
        write_json(tmp_path / "e.yaml", content)
        assert call("reproduce", tmp_path / "e.yaml", "--dry-run", "--results", tmp_path / "results") == 2
        assert "it names a folder" in capsys.readouterr().err


# streams, names and folders of others


@pytest.mark.parametrize("words", [["--version"], ["config"], ["tasks", "--json"], ["run", "--help"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    ended = lora_drop(*words, stdout=writer)
    os.close(writer)
    assert ended.returncode == 1 and ended.stderr == ""


def test_no_standard_output_at_all():
    ended = lora_drop("config", preexec_fn=lambda: os.close(1))
    assert ended.returncode == 0 and ended.stderr == ""


def test_a_full_disk_behind_standard_output_is_a_sentence():
    with Path("/dev/full").open("w") as full:
        ended = lora_drop("config", stdout=full)
    assert ended.returncode == 2 and ended.stderr.startswith("Error: No space left on device")


def lora_drop(*words, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "lora_drop", *words]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("name", ["", ".", "./", "sub/.."])
@pytest.mark.parametrize("command", ["run", "select", "eval"])
def test_nothing_is_removed_in_the_folder_one_is_in(name, command, tmp_path, monkeypatch):
    files = [tmp_path / each for each in ("adapter/mine", "checkpoints/mine", "sub/mine", "warmup/mine", "mine.txt")]
    for file in files:
        write_text(file, "x")
    monkeypatch.chdir(tmp_path)
    assert call(command, "-d", name, "-o", "backbone=tiny:bert", "-o", "task=toy-nli") == 2
    assert call("runs", "clean", name, "--unfinished", "--exports", "--yes") == 2
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


def test_clean_follows_no_link(tmp_path, capsys):
    finished(tmp_path / "runs" / "a")
    write_text(tmp_path / "theirs" / "mine", "x")
    remove(tmp_path / "runs" / "a" / "checkpoints")
    (tmp_path / "runs" / "a" / "checkpoints").symlink_to(tmp_path / "theirs")
    (tmp_path / "runs" / "a" / "export").symlink_to(tmp_path / "theirs")
    assert call("runs", "clean", tmp_path / "runs", "--exports", "--yes") == 0
    assert "0 to remove" in capsys.readouterr().out and (tmp_path / "theirs" / "mine").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "."])
def test_the_name_of_a_data_set_is_no_path(name, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "inside"
    write_json(folder / "info.json", {name: {"file_name": "rows.jsonl", "columns": {"prompt": "p", "response": "r"}}})
    monkeypatch.chdir(folder)
    assert call("run", "--dataset-info", "info.json", "--name", name) == 2
    assert "names no folder in runs" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "info.json"]


def test_a_cell_is_no_formula():
    for text in ("=1+1", "+1 and", "-x", "@a", "\ta", "\r=1"):
        assert csv_cell(text) == f"'{text}"
    for text in ("", "a=1", "-1.5", "+3", "-1e-3", "1-2"):
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
