"""Small grids of real runs on a tiny model, in this process and as a command."""

import sys

from lora_drop.experiments.engine import perform_grid
from lora_drop.experiments.engines.local import InProcess
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.experiments.results import Results
from lora_drop.progress import GridReporter

SMALL = ["limit.train=80", "limit.eval=40", "train.epochs=1", "train.batch_size=8", "device=cpu"]
TEXTS = ("table.md", "table.csv", "table.tex")


def planned(name, *overrides, **choice):
    return expand(
        load_experiment(name),
        Choice(overrides=[*SMALL, *overrides], **{"backbone": "tiny:roberta", "seeds": [0], **choice}),
    )


def perform(tmp_path, runs):
    return perform_grid(runs, Results(tmp_path / "results"), GridReporter(), InProcess(tmp_path / "runs"))


def command(folder, *arguments):
    where = ["--runs", str(folder / "runs"), "--results", str(folder / "results"), "--quiet"]
    small = [part for item in SMALL for part in ("-o", item)]
    start = [sys.executable, "-m", "lora_drop.cli.app", "reproduce", *arguments]
    return [*start, "--backbone", "tiny:roberta", "--seeds", "0", *where, *small]
