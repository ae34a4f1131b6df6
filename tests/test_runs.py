import ast
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

import lora_drop
from lora_drop import provenance
from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.files import ABANDONED_S, file_digest, read_json, sweep, write_folder, write_json, write_text
from lora_drop.models import content
from lora_drop.progress import Reporter
from lora_drop.runs import pipeline
from lora_drop.runs.job import Job
from lora_drop.runs.stages import STAGES
from lora_drop.runs.stages.base import Stage
from lora_drop.runs.store import OUTPUTS, Run


class Told(Reporter):
    """Remembers what was done and what was skipped."""

    def __init__(self):
        self.done, self.skipped = [], []

    def finish(self, stage, seconds, note):
        self.done.append(stage)

    def skip(self, stage, reason):
        self.skipped.append(stage)


def stage(name, inputs, work, outputs=()) -> Stage:
    """A stage that reads no rows."""
    return Stage(
        name=name,
        help="",
        version=1,
        outputs=outputs,
        needs=(),
        settings=lambda job: {},
        inputs=lambda job: {"input": inputs},
        work=work,
        rows=lambda job: (),
    )


def perform(run, inputs=1, content="x", force=False):
    told = Told()

    def work(job):
        write_text(run.file("a.txt"), content)
        return "a note", {"fact": inputs}

    pipeline.perform(Job(run, told, force), stage("a", inputs, work, ("a.txt",)))
    return "done" if told.done else "skipped" if told.skipped else "nothing"


def test_a_stage_is_done_once_and_again_when_anything_changed(tmp_path):
    run = Run(tmp_path, Config())
    assert perform(run) == "done"
    assert perform(run) == "skipped"
    assert perform(run, inputs=2) == "done"
    assert perform(run, inputs=2, force=True) == "done"
    run.file("a.txt").write_text("altered")
    assert perform(run, inputs=2) == "done"
    run.file("a.txt").unlink()
    assert perform(run, inputs=2) == "done"


def test_a_reopened_directory_remembers(tmp_path):
    run = Run(tmp_path, Config(seed=3))
    with run.working():
        perform(run)
    again = Run(tmp_path)
    assert again.config == Config(seed=3) and perform(again) == "skipped"
    manifest = read_json(tmp_path / "run.json")
    assert manifest["status"] == "done" and manifest["seed"] == 3
    assert {"seconds", "peak_memory_mb", "inputs", "outputs", "note"} <= manifest["stages"]["a"].keys()
    assert manifest["stages"]["a"]["versions"]["torch"] and len(manifest["config_hash"]) == 12


def test_checkpoints_of_other_inputs_are_removed_and_of_the_same_are_kept(tmp_path):
    run = Run(tmp_path, Config())

    def survivors(inputs):
        found = []

        def work(job):
            found.append((run.checkpoints("a") / "checkpoint-1").exists())
            write_text(run.checkpoints("a") / "checkpoint-1" / "x", "")
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError):
            pipeline.perform(Job(run), stage("a", inputs, work))
        return found[0]

    assert survivors(1) is False
    assert survivors(1) is True
    assert survivors(2) is False


def test_how_the_work_ended_is_recorded(tmp_path):
    run = Run(tmp_path, Config())
    with pytest.raises(ValueError, match="oh"), run.working():
        raise ValueError("oh")
    assert (run.manifest["status"], run.manifest["error"]) == ("failed", "ValueError: oh")
    with pytest.raises(KeyboardInterrupt), run.working():
        raise KeyboardInterrupt
    assert read_json(tmp_path / "run.json")["status"] == "interrupted"


def test_one_process_at_a_time(tmp_path):
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="Another process is working"),
        Run(tmp_path, Config()).working(),
    ):
        pass


def test_a_skipped_stage_keeps_its_circumstances(tmp_path):
    run = Run(tmp_path, Config())
    perform(run)
    run.manifest["stages"]["a"]["versions"]["torch"] = "older"
    pipeline.perform(Job(run), stage("b", 0, lambda job: ("a note", {"fact": "other"})))
    stages = run.manifest["stages"]
    assert perform(run) == "skipped" and (stages["a"]["versions"]["torch"], stages["a"]["fact"]) == ("older", 1)
    assert stages["b"]["versions"]["torch"] != "older" and stages["b"]["fact"] == "other"
    perform(run, inputs=2)
    assert stages["a"]["versions"]["torch"] != "older" and stages["a"]["fact"] == 2


def test_a_manifest_of_an_older_format_is_begun_anew(tmp_path):
    with Run(tmp_path, Config()).working():
        perform(Run(tmp_path))
    old = read_json(tmp_path / "run.json")
    write_json(tmp_path / "run.json", {**old, "format": 1, "versions": {"torch": "older"}})
    with Run(tmp_path).working():
        again = Run(tmp_path)
        assert perform(again) == "done" and "versions" not in again.manifest


def test_an_evaluation_of_other_rows_leaves_what_is_said_of_the_run(tmp_path):
    with Run(tmp_path, Config(seed=3)).working():
        pass
    with Run(tmp_path, Config(seed=4)).working(store_config=False):
        pass
    assert read_json(tmp_path / "run.json")["seed"] == 3 and Run(tmp_path).config.seed == 3


def test_facts_of_work_that_failed_are_not_recorded(tmp_path):
    run = Run(tmp_path, Config())
    perform(run)

    def fail(job):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        pipeline.perform(Job(run), stage("a", 3, fail, ("a.txt",)))
    assert run.manifest["stages"]["a"]["fact"] == 1 and perform(run) == "skipped"


def test_leftovers_of_a_killed_process_are_removed_and_not_what_another_is_writing(tmp_path):
    gone = max(psutil.pids()) + 10**6
    (tmp_path / f".adapter.{gone}.tmp").mkdir()
    (tmp_path / f".scores.json.{gone}.tmp").write_text("half")
    written = tmp_path / f".predictions-new.csv.{os.getppid()}.tmp"
    written.write_text("half")
    with Run(tmp_path, Config()).working():
        pass
    assert list(tmp_path.glob(".*.tmp")) == [written]
    old = time.time() - ABANDONED_S
    os.utime(written, (old, old))
    with Run(tmp_path, Config()).working():
        pass
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_run_that_can_continue_is_not_done_whatever_is_done_in_it(tmp_path):
    run = Run(tmp_path, Config())
    with run.working():
        run.keep_checkpoints_of("train", "key", force=False)
        (run.checkpoints("train") / "checkpoint-6").mkdir()
    assert read_json(tmp_path / "run.json")["status"] == "interrupted"
    with run.working():
        run.keep_checkpoints_of("train", "another key", force=False)
    assert read_json(tmp_path / "run.json")["status"] == "done"


def test_writing_is_all_or_nothing(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    write_text(tmp_path / "folder" / "x", "old")
    with pytest.raises(RuntimeError), write_folder(tmp_path / "folder") as folder:
        (folder / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "folder" / "x").read_text() == "old"
    with write_folder(tmp_path / "folder") as folder:
        (folder / "y").write_text("new")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["y"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "folder"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    write_text(tmp_path / "folder" / "x", "old")
    rename = Path.rename

    def failing(path, target):
        if target == tmp_path / "folder" and (path / "y").exists():
            raise PermissionError
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError), write_folder(tmp_path / "folder") as folder:
        (folder / "y").write_text("new")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["folder", "folder/x"]


@pytest.mark.parametrize("of_this_process", [True, False])
def test_a_kill_between_the_two_renames_of_a_folder_loses_nothing(tmp_path, of_this_process):
    number = os.getpid() if of_this_process else max(psutil.pids()) + 10**6
    write_text(tmp_path / f".folder.{number}.old.tmp" / "x", "old")
    write_text(tmp_path / f".folder.{number}.tmp" / "x", "new")
    write_text(tmp_path / f".replaced.{number}.old.tmp" / "x", "old")
    write_text(tmp_path / "replaced" / "x", "new")
    if of_this_process:  # a number that is used again, as in a container
        for name in ("folder", "replaced"):
            with pytest.raises(RuntimeError), write_folder(tmp_path / name):
                raise RuntimeError
    else:
        sweep(tmp_path)
    found = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("x")}
    assert found == {"folder/x": "old", "replaced/x": "new"} and len(list(tmp_path.iterdir())) == 2


def test_a_name_with_a_number_that_no_process_has_is_not_ours(tmp_path):
    theirs = tmp_path / f".x.{'9' * 23}.tmp"
    theirs.write_text("")
    sweep(tmp_path)
    assert theirs.exists()


def test_digests_see_content_and_names(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    before = file_digest(tmp_path / "d")
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert file_digest(tmp_path / "d") != before
    assert file_digest(tmp_path / "none") == ""


def test_the_hash_of_a_large_file_is_remembered_in_the_cache_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "REMEMBERED", 4)
    monkeypatch.setenv("LORA_DROP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    weights = tmp_path / "weights"
    weights.write_bytes(b"large")
    found = content.sha256(weights)
    (remembered,) = (tmp_path / "cache" / "sha256").iterdir()
    assert remembered.read_text() == found == hashlib.sha256(b"large").hexdigest()
    assert not (tmp_path / "home").exists()
    for kept, told in (("0" * 64, "0" * 64), ("damaged", found), ("", found)):
        remembered.write_text(kept)
        content._sha256.cache_clear()  # as another process would ask
        assert content.sha256(weights) == told


def test_what_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        Run(tmp_path)
    with pytest.raises(UserError, match=r"lora-drop score --run-dir"):
        Run(tmp_path, Config()).require("scores.json", "score")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"), Run(tmp_path / "file" / "run", Config()).working():
        pass


def test_memory_is_told_on_systems_without_proc(monkeypatch, tmp_path):
    told = provenance.peak_memory_mb()
    monkeypatch.setattr(provenance, "_STATUS", tmp_path / "none")  # as on macOS
    assert provenance.peak_memory_mb() >= 0.9 * told > 100


def test_no_module_needs_what_windows_has_not_to_be_imported():
    absent = {"fcntl", "grp", "pwd", "resource", "termios"}
    for path in Path(lora_drop.__file__).parent.rglob("*.py"):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                names = {getattr(statement, "module", None), *(alias.name for alias in statement.names)}
                assert not names & absent, path


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take freed memory back themselves")
def test_freed_memory_goes_back_to_the_system():
    """Pieces too small for pages of their own, freed but for the last, which keeps the heap from shrinking."""
    pieces = [bytearray(100_000) for _ in range(3000)]
    last = pieces.pop()
    pieces.clear()
    before = psutil.Process().memory_info().rss
    provenance.release_memory()
    assert before - psutil.Process().memory_info().rss > 200 * 2**20 and len(last) == 100_000


def test_a_folder_that_has_any_name_of_a_runs_outputs_is_somebodys_own():
    names = {name for each in STAGES for name in each.outputs}
    assert names <= set(OUTPUTS)
