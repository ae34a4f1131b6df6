"""Run directories that were damaged, folders of others, and failures of the machine: a sentence each."""

import errno
import os
import time

import pytest
from commands import call
from safetensors import SafetensorError

from lora_drop.config.loading import load_config
from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.faults import as_sentences
from lora_drop.files import read_json, remove, sweep, write_json, write_text
from lora_drop.interruption import Stopped, stoppable
from lora_drop.progress import Reporter
from lora_drop.runs import pipeline
from lora_drop.runs.facts import read_facts
from lora_drop.runs.job import Job
from lora_drop.runs.stages.base import Stage
from lora_drop.runs.store import Run, stored_config


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
        with pytest.raises(UserError, match=r"config\.yaml has changed since lora-drop wrote it"):
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
        assert "run.json is damaged in its entry for the stage a" in told[0]
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
    link = tmp_path / "run" / ".adapter.9999999.tmp"
    link.symlink_to(tmp_path / "theirs")
    write_text(tmp_path / "run" / ".mine.tmp", "")
    write_text(tmp_path / "run" / ".scores.json.9999999.gone.tmp" / "a", "")
    sweep(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".mine.tmp"]
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "theirs")
    with pytest.raises(UserError, match="is a link"):
        Run(tmp_path / "run", Config()).remove_checkpoints("a")
    remove(tmp_path / "run" / "checkpoints")
    assert (tmp_path / "theirs" / "a").exists()


def test_a_folder_of_others_is_left_alone(tmp_path):
    write_text(tmp_path / "adapter" / "mine", "")
    with pytest.raises(UserError, match="is not a run directory, but has adapter"), Run(tmp_path, Config()).working():
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


# the machine


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "", "/x/run.json"), r"/x/run\.json: No space left on device\. Make room"),
        (PermissionError(errno.EACCES, "", "/x"), "/x: Permission denied"),
        (OSError(errno.EROFS, "", "/x"), "Read-only file system"),
        (OSError(errno.ENAMETOOLONG, "", "/x"), "shorter name"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "No space left on device"),
        (SafetensorError("I/O error: File too large (os error 27)"), r"does not allow files of this size\. Raise it"),
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
