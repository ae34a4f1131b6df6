"""What is seen of work under way: lines off a terminal, a bar on one, and trackers."""

import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from lora_drop.cli import app as cli
from lora_drop.cli import console, long_work
from lora_drop.cli.grid_progress import ConsoleGridReporter
from lora_drop.config.identity import config_hash
from lora_drop.config.loading import load_config
from lora_drop.files import read_json

SMALL = ["task=toy-nli", "backbone=tiny:bert", "device=cpu", "limit.train=96", "limit.eval=32"]
SMALL += ["train.epochs=2", "train.batch_size=8", "sample.ratio=0.5", "warmup.epochs=1"]
OPTIONS = [part for item in SMALL for part in ("-o", item)]


def run(folder, *options):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "-d", str(folder), *OPTIONS, *options])
    return end.value.code


@pytest.fixture
def off_terminal(monkeypatch):
    """A reporter that writes to a file, the text so far, and a clock that is set by hand."""
    clock, file = [0.0], io.StringIO()
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    return console.ConsoleReporter(Console(file=file, width=200)), file.getvalue, clock


def test_off_a_terminal_there_is_a_line_every_30_seconds(off_terminal):
    reporter, told, clock = off_terminal
    reporter.start("train")
    for step in range(100, 141):  # resumed at step 100, two seconds a step
        reporter.advance(step, 200, lambda: "steps, epoch 1 of 2, loss 0.5, 99 tokens/s")
        clock[0] += 2
    lines = told().splitlines()
    expected = "train … 116 of 200 steps, epoch 1 of 2, loss 0.5, 99 tokens/s (0.5 a second, 0:02:48 left)"
    assert len(lines) == 2 and " ".join(lines[0].split()) == expected
    reporter.milestone("epoch 1 of 2: loss 0.5")
    reporter.doing("evaluating: 1 of 9 rows")
    clock[0] += 31
    reporter.doing("evaluating: 5 of 9 rows")
    assert [line.split("…  ")[1] for line in told().splitlines()[2:]] == [
        "epoch 1 of 2: loss 0.5 (0.488 a second, 0:02:03 left)",
        "evaluating: 5 of 9 rows",
    ]


def test_a_loss_is_asked_for_only_when_it_is_shown(off_terminal):
    reporter, told, clock = off_terminal
    asked = []
    for clock[0] in (1, 2, 40, 41):
        reporter.advance(clock[0], 50, lambda: str(asked.append(clock[0])))
    assert asked == [40] and len(told().splitlines()) == 1
    quiet = console.ConsoleReporter(Console(file=io.StringIO()), quiet=True)
    clock[0] += 100
    quiet.advance(1, 50, lambda: pytest.fail("nobody sees it"))


@pytest.mark.parametrize("grid", [False, True])
def test_off_a_terminal_what_takes_long_is_said_once_while_it_lasts(grid, monkeypatch):
    monkeypatch.setattr(long_work, "LONG_S", 0.2)

    def lines(quiet: bool, *work: tuple[str, float]) -> list[str]:
        file = io.StringIO()
        kind = ConsoleGridReporter if grid else console.ConsoleReporter
        with kind(Console(file=file, width=200), quiet) as whole:
            reporter = whole.begin("a run", 1, 2) if grid else whole
            for what, seconds in work:
                reporter.doing(what)
                time.sleep(seconds)
            reporter.doing("loading what is loaded soon")
            reporter.advance(1, 9, "steps")
            time.sleep(0.3)
        time.sleep(0.3)
        return [line.split("  ")[-1] for line in file.getvalue().splitlines()]

    work = [("reading rows", 0.1), ("loading a model", 0.4), ("loading a model", 0.4), ("tokenising 1,000 rows", 0.4)]
    work += [("tokenising 2,000 rows", 0.4), ("reading rows", 0.1)]
    assert lines(False, *work) == ["loading a model", "tokenising 1,000 rows"]
    assert lines(True, *work) == []


@pytest.mark.slow
def test_a_terminal_is_never_silent_and_shows_loss_and_speed(tmp_path):
    command = [sys.executable, "-m", "lora_drop", "run", "-d", str(tmp_path / "run"), *OPTIONS]
    ours, theirs = pty.openpty()
    surroundings = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings)
    os.close(theirs)
    said, silences, last = b"", [], time.monotonic()
    while True:
        select.select([ours], [], [], 60)
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        silences.append(time.monotonic() - last)
        last, said = time.monotonic(), said + part
    os.close(ours)
    assert process.wait(60) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"score .*/6 +steps, epoch 1 of 1, loss 0\.\d+, [\d,]+ tokens/s", shown)
    assert "starting torch" in shown and "loading tiny:bert" in shown
    assert max(silences) < 5


@pytest.mark.slow
def test_trackers_get_warm_up_and_training_and_change_nothing(tmp_path, capsys):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    watched = ("-o", "train.report_to=[tensorboard]", "-o", "train.logging_steps=5")
    assert run(tmp_path / "watched", *watched) == 0
    assert run(tmp_path / "alone") == 0
    logs = {
        part: events.EventAccumulator(str(tmp_path / "watched" / "logs" / part)).Reload()
        for part in ("warmup", "train")
    }
    steps = {part: [event.step for event in log.Scalars("train/loss")] for part, log in logs.items()}
    assert steps == {"warmup": [1, 2, 3, 4, 5, 6], "train": [5, 10, 12, 15, 20, 24]}
    assert [event.step for event in logs["train"].Scalars("eval/accuracy")] == [12, 24]
    assert "watched-train" in str(logs["train"].Tensors("args/text_summary")[0])

    watched_run, alone = (read_json(tmp_path / name / "run.json")["stages"] for name in ("watched", "alone"))
    for name in ("score", "train", "eval"):
        assert watched_run[name]["outputs"] == alone[name]["outputs"]
        assert watched_run[name]["inputs"] == alone[name]["inputs"]
    assert [e["loss"] for e in watched_run["train"]["epochs"]] == pytest.approx(
        [e["loss"] for e in alone["train"]["epochs"]], rel=1e-6
    )
    capsys.readouterr()
    assert run(tmp_path / "alone", *watched) == 0
    assert capsys.readouterr().err.count("skipped") == len(alone)
    given = [item for item in watched if item != "-o"]
    assert config_hash(load_config([], [*SMALL, *given])) == config_hash(load_config([], SMALL))


@pytest.mark.parametrize(
    ("names", "text"),
    [("[mlflow]", "mlflow, which is not installed: pip install mlflow"), ("[tensorbord]", "tensorboard, wandb")],
)
def test_a_tracker_that_is_not_there_is_said_before_work(names, text, tmp_path, capsys):
    assert run(tmp_path / "run", "-o", f"train.report_to={names}") == 2
    assert text in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "run").exists()
