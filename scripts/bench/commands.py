"""Timings of the command line: its start, the share of a run that finds the layers, a selection at a new threshold."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.rounds import clock, interleave, spread
from bench.subject import Subject
from bench.training import Training, Variant
from lora_drop.config.identity import to_yaml
from lora_drop.config.schema import LimitConfig

EPOCHS = 30
"""Epochs of the training that the share refers to, as Hu et al. train the larger tasks of GLUE (RTE: 80)."""
STAGES = ("sample", "score", "select")


def measure_commands(subject: Subject, rounds: int) -> dict[str, Any]:
    """Find the layers with the three commands on all training rows; compare their time with EPOCHS epochs of training.

    Training is measured on the subject's rows, before and after the stages, and is assumed to cost the same for every
    row. The seconds of the stages are those of `run.json`, without the start of Python; `select` and `--help` are timed
    as whole processes.
    """
    train = Training(subject, Variant("ours"))
    train()
    before = train()
    with tempfile.TemporaryDirectory() as folder:
        run, file = ["-d", str(Path(folder) / "run"), "-q"], Path(folder) / "config.yaml"
        limit = subject.setup.limit if subject.settings.quick else LimitConfig()
        file.write_text(to_yaml(replace(subject.setup, limit=limit)), encoding="utf-8")
        for stage in STAGES:
            _command(stage, *run, "-c", str(file))
        per_row = (before + train()) / 2 / len(subject.rows)
        stages = json.loads((Path(folder) / "run" / "run.json").read_text(encoding="utf-8"))["stages"]
        thresholds = (f"method.threshold={0.5 + 0.4 / number}" for number in range(2, rounds + 3))

        def select() -> None:
            _command("select", *run, "-o", next(thresholds))

        cpu = torch.device("cpu")
        actions = {"help": lambda: clock(lambda: _command("--help"), cpu), "select": lambda: clock(select, cpu)}
        measured = interleave(actions, rounds, subject.report.advance)
    seconds = {stage: stages[stage]["seconds"] for stage in STAGES}
    training = EPOCHS * per_row * subject.data.population["train"]
    share = sum(seconds.values()) / (sum(seconds.values()) + training)
    return {
        "numbers": {"share": spread([share])} | {name: spread(measured.seconds[name]) for name in actions},
        "seconds_of_stages": seconds,
        "seconds_of_training": training,
        "rounds": measured.to_json(),
    }


def _command(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "lora_drop", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"lora-drop {' '.join(arguments)} failed:\n{done.stderr}")
