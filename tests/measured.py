"""Records as runs would leave them, for the tests of tables, claims and figures."""

from dataclasses import replace
from pathlib import Path

from lora_drop.experiments.grid import load_experiment
from lora_drop.experiments.records import Record

RESULTS = Path(__file__).parent.parent / "results"
"""The committed results."""


def record(row, task, seed, score, *, experiment="table1", **changes) -> Record:
    """What a run on RoBERTa-base as published would leave."""
    layout = load_experiment(experiment).layout
    base = Record(
        experiment=experiment,
        row=row,
        layout=layout,
        task=task,
        task_title=layout["tasks"].get(task, task),
        backbone="FacebookAI/roberta-base",
        method=row,
        seed=seed,
        config_hash=f"{seed:012d}",
        config={"task": task, "seed": seed, "backbone": "FacebookAI/roberta-base"},
        overrides={},
        deviations={},
        limited={},
        stages={},
        primary="accuracy",
        split="validation",
        examples=277,
        metrics={"accuracy": score},
        select_epoch="best",
        kept_epoch=3,
        best={"epoch": 3, "score": score},
        last={"epoch": 5, "score": score - 0.01},
        parameters={"adapter": 294912, "head": 592130},
    )
    return replace(base, **changes)


def cells(tables):
    return {(row.name, key): cell for row in tables[0].rows for key, cell in row.cells.items()}
