"""Runs as objects: listed, compared, and cleaned."""

import io
import json
import shutil

import pytest
from filelock import FileLock
from rich.console import Console
from run_folders import write_own_run, write_run

from lora_drop.cli import app as cli
from lora_drop.cli.console import PLAIN, print_table
from lora_drop.config.files import sealed
from lora_drop.errors import UserError
from lora_drop.files import file_digest, read_json, write_json
from lora_drop.runs.cleaning import clean, removable


def command(*arguments) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return end.value.code


def set_status(run, status) -> None:
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": status})


def put(run, name, size=1000) -> None:
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).write_bytes(b"x" * size)


def test_runs_are_listed_with_their_state(tmp_path, capsys):
    done = write_run(tmp_path / "a", score=0.75)
    write_run(done / "compare" / "lora", name="lora", score=0.5)
    killed, working = write_run(tmp_path / "b" / "killed", score=None), write_run(tmp_path / "working", score=None)
    for run in (killed, working):
        set_status(run, "running")
    (killed / ".lock").touch()
    with FileLock(working / ".lock"):
        assert command("runs", tmp_path, "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "done",
        "a/compare/lora": "done",
        "b/killed": "interrupted",
        "working": "running",
    }
    assert rows["a"]["score"] == 0.75 and rows["a"]["T"] == 0.9 and rows["a/compare/lora"]["parameters"] == 10_000
    assert rows["b/killed"]["score"] is None and rows["b/killed"]["metric"] is None
    assert command("runs", tmp_path) == 0
    told = capsys.readouterr().out
    assert "interrupted" in told and "None" not in told


def test_a_damaged_run_is_said_beside_the_others(tmp_path, capsys):
    write_run(tmp_path / "a"), write_run(tmp_path / "b")
    (tmp_path / "b" / "run.json").write_text("{")
    assert command("runs", tmp_path) == 0
    told = capsys.readouterr()
    assert "is not valid JSON" in told.err and "toy-nli" in told.out


@pytest.mark.parametrize("name", ["metrics.json", "selection.json", "scores.json"])
def test_what_a_run_has_not_left_so_is_not_shown(name, tmp_path, capsys):
    run = write_run(tmp_path / "a", score=0.75)
    manifest = read_json(run / "run.json")
    manifest["stages"]["eval"]["outputs"] = {name: file_digest(run / name)}
    write_json(run / "run.json", manifest)
    page = tmp_path / "page.html"
    assert command("report", run, "--out", page) == 0
    page.unlink()
    text = (run / name).read_text()
    (run / name).write_text(text.replace("0", "1", 1))
    assert command("report", run, "--out", page) == 2 and not page.exists()
    assert f"{name} has changed since the run wrote it" in capsys.readouterr().err
    assert command("runs", tmp_path, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["status"] == ("done" if name == "scores.json" else "done, damaged")  # a listing reads no scores


def test_two_runs_are_told_apart(tmp_path, capsys):
    write_run(tmp_path / "a", score=0.75), write_run(tmp_path / "b", score=0.8, threshold=0.5)
    assert command("runs", "compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["configuration"] == [{"what": "method.threshold", "a": "0.9", "b": "0.5"}]
    assert {row["what"] for row in found["result"]} == {"parameters", "accuracy"}
    assert {row["what"] for row in found["layers"]} == {"query", "value"}
    assert command("runs", "compare", tmp_path / "a", tmp_path / "a") == 0
    assert "do not differ" in capsys.readouterr().out


def test_rows_that_differ_are_told_where_no_setting_does(tmp_path, capsys):
    for name in ("a", "b"):
        write_own_run(tmp_path / name, "r.csv", f"content of {name}")
    assert command("runs", "compare", tmp_path / "a", tmp_path / "b", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "configuration": [],
        "data": [
            {"what": f"content of {split} rows", "a": "content of a", "b": "content of b"}
            for split in ("train", "validation")
        ],
        "result": [],
        "layers": [],
    }


def test_clean_says_how_much_asks_and_keeps_what_is_needed(tmp_path, capsys, monkeypatch):
    done, killed = write_run(tmp_path / "done"), write_run(tmp_path / "killed")
    set_status(killed, "interrupted")
    for run in (done, killed):
        put(run, "checkpoints/train/model.safetensors", 2_000_000)
        put(run, "export/peft/adapter_model.safetensors", 1_000_000)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert command("runs", "clean", tmp_path) == 2  # nobody answers
    told = capsys.readouterr()
    assert "1 to remove, 2.0 MB" in told.out and "Use --yes" in told.err
    assert (done / "checkpoints").is_dir()
    assert command("runs", "clean", tmp_path, "--yes") == 0
    assert not (done / "checkpoints").exists() and (killed / "checkpoints").is_dir() and (done / "export").is_dir()
    capsys.readouterr()
    assert command("runs", "clean", tmp_path, "--yes", "--exports", "--unfinished", "--json") == 0
    removed = json.loads(capsys.readouterr().out)
    assert set(removed["removed"]) == {str(done / "export" / "peft"), str(killed)} and removed["bytes"] > 4_000_000
    assert (done / "metrics.json").is_file() and not (done / "export").exists() and not killed.exists()


def test_clean_keeps_what_is_not_an_export_in_the_folder_of_exports(tmp_path):
    done, failed = write_run(tmp_path / "done"), write_run(tmp_path / "failed")
    set_status(failed, "failed")
    for run in (done, failed):
        for name in ("peft/adapter_model.safetensors", ".merged.123.tmp/half", "model-q4.gguf", "mine/w.bin"):
            put(run, f"export/{name}", 1000)
    assert command("runs", "clean", tmp_path, "--yes", "--exports", "--unfinished") == 0
    for run in (done, failed):
        left = sorted(path.name for path in (run / "export").rglob("*") if path.is_file())
        assert left == ["model-q4.gguf", "w.bin"]
    assert (done / "metrics.json").is_file() and not (failed / "metrics.json").exists()


def test_a_run_that_went_on_since_it_was_listed_is_left(tmp_path):
    run = write_run(tmp_path / "killed")
    set_status(run, "running")  # its process is gone
    listed = removable(tmp_path, unfinished=True)
    assert [part.why for part in listed] == ["interrupted run"]
    set_status(run, "done")
    with pytest.raises(UserError, match="no longer interrupted, but done"):
        clean(listed)
    assert (run / "metrics.json").is_file()


def test_files_of_others_are_left_in_a_folder_that_a_run_has_used(tmp_path, capsys):
    run = write_run(tmp_path / "project")
    set_status(run, "failed")
    others = ("code/thesis.txt", "notes.md", "logs/2026.txt", "predictions-of-mine.csv")
    for name in (*others, "logs/train/events", "checkpoints/train/x", ".adapter.12.tmp/x"):
        put(run, name)
    assert command("runs", "clean", tmp_path, "--yes", "--unfinished") == 0
    told = capsys.readouterr()
    assert "1 to remove" in told.out and "contains other files, which were not removed" in " ".join(told.err.split())
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == set(others)
    assert not (run / "logs" / "train").exists()


def test_the_listing_tells_what_was_selected_anew_and_what_ends_before_the_training(tmp_path, capsys):
    anew, other = write_run(tmp_path / "anew"), write_run(tmp_path / "other", threshold=0.5)
    shutil.copy(other / "selection.json", anew / "selection.json")
    write_run(tmp_path / "half", score=None)
    assert command("runs", tmp_path, "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["anew"]["status"] == "done, then selected again" and rows["anew"]["T"] is None
    assert rows["half"]["status"].startswith("done up to ")


def test_a_table_that_is_too_wide_for_the_terminal_is_put_in_paragraphs():
    def shown(width):
        text = io.StringIO()
        console = Console(file=text, width=width, **PLAIN)
        print_table(console, ["run", "method", "T", "score", "empty"], [["a/b", "LoRA-drop", 0.5, 1234, None]])
        return text.getvalue().splitlines()

    assert shown(80) == ["run  method          T  score  empty", "a/b  LoRA-drop  0.5000  1,234       "]
    assert shown(30) == ["a/b", "  method LoRA-drop   T 0.5000", "  score 1,234"]


@pytest.mark.parametrize("damage", ["", "# a comment under the seal\n", "config: [", None])
def test_a_run_that_holds_another_is_not_removed(damage, tmp_path):
    outer = write_run(tmp_path / "outer")
    set_status(outer, "failed")
    inner = write_run(outer / "compare" / "lora", name="lora")
    config = inner / "config.yaml"
    config.write_text(sealed(config.read_text()) + (damage or ""))
    if damage is None:
        config.unlink()
    assert command("runs", "clean", tmp_path, "--yes", "--unfinished") == 0
    assert (outer / "run.json").is_file() and (inner / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "does not exist"),
        (["{}"], "holds no run"),
        (["compare", "a"], "Name two run directories"),
        (["compare", "{}", "{}"], "is not a run directory"),
        (["clean", "a", "b"], "clean [DIR]"),
        (["a", "b"], "compare A B"),
    ],
)
def test_wrong_requests_are_refused(arguments, message, tmp_path, capsys):
    assert command("runs", *(each.format(tmp_path) for each in arguments)) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("stages", [[], {"train": []}])
def test_a_manifest_of_an_older_format_may_be_damaged_too(stages, tmp_path, capsys):
    write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_json(tmp_path / "b" / "run.json", {"format": 2, "stages": stages})
    assert command("runs", tmp_path) == 0
    told = capsys.readouterr()
    assert "is damaged" in told.err and "toy-nli" in told.out


def test_a_score_whose_evaluation_was_forgotten_is_not_shown(tmp_path, capsys):
    """A run that was killed while it dropped an old evaluation has the file, but no stage that made it."""
    run = write_run(tmp_path / "a", score=0.75)
    manifest = read_json(run / "run.json")
    del manifest["stages"]["eval"]
    write_json(run / "run.json", manifest)
    assert command("runs", tmp_path, "--json") == 0
    assert [row["score"] for row in json.loads(capsys.readouterr().out)] == [None]


def test_a_run_that_has_lost_its_records_is_named(tmp_path, capsys):
    for name in ("ok", "a", "b"):
        write_run(tmp_path / name)
        config = tmp_path / name / "config.yaml"
        config.write_text(sealed(config.read_text()))
    (tmp_path / "a" / "run.json").unlink(), (tmp_path / "b" / "config.yaml").unlink()
    (tmp_path / "mine" / "adapter").mkdir(parents=True), (tmp_path / "mine" / "config.yaml").write_text("a: 1")
    assert command("runs", tmp_path, "--json") == 0
    out, err = capsys.readouterr()
    assert [row["run"] for row in json.loads(out)] == ["ok"]
    told = " ".join(err.split())
    assert f"{tmp_path / 'a'} has no run.json" in told and f"{tmp_path / 'b'} has no config.yaml" in told
    assert "mine" not in told
