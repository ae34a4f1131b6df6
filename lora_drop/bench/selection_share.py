"""Part `share`: how much of a whole run finding the layers takes, that is sample, warm-up and score before the training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lora_drop.bench.rounds import interleave, timed
from lora_drop.bench.statistics import spread
from lora_drop.bench.variants import ours
from lora_drop.bench.workload import Subject
from lora_drop.pipeline import Pipeline
from lora_drop.progress import SILENT
from lora_drop.runs import Run

EPOCHS = 30
"""Of the training that the share is taken of: what Hu et al. train the larger tasks of GLUE for (RTE: 80)."""
STAGES = ("sample", "score")


def measure_share(subject: Subject, seconds_per_row: float | None) -> dict[str, Any]:
    """Perform stages 1 and 2 on all training rows through the pipeline, and set their seconds against those of EPOCHS epochs.

    Args:
        subject: what is measured.
        seconds_per_row: what our training takes, where part `train` has measured it on the task's rows; else it is measured here.
    """
    rate = seconds_per_row or _seconds_per_row(subject)
    seconds, rows = _stages(subject)
    found, training = sum(seconds.values()), EPOCHS * rows * rate
    return {
        "rows": rows,
        "epochs": EPOCHS,
        "seconds": seconds,
        "training_seconds_per_row": rate,
        "training_seconds": training,
        "share": share(found, training),
    }


def share(found: float, training: float) -> float:
    """Return the part of a run's seconds that finding the layers takes."""
    return found / (found + training)


def _stages(subject: Subject) -> tuple[dict[str, float], int]:
    """Return the seconds of each stage as `run.json` tells them, and the training rows of the run."""
    settings = subject.settings
    # quick: a tenth of these rows is what the other parts are measured on
    config = settings.config(**({"train": 10 * settings.rows} if settings.quick else {}))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", config)
        pipeline = Pipeline(run, SILENT)
        with run.working():
            for number, stage in enumerate(STAGES):
                subject.report.advance(number, len(STAGES), f"stage {stage}")
                pipeline.perform(stage)
        return {stage: run.manifest["stages"][stage]["seconds"] for stage in STAGES}, len(pipeline.data.train_rows)


def _seconds_per_row(subject: Subject) -> float:
    rounds = interleave({"ours": timed(ours(subject, subject.real, set()), subject.device)}, 1)
    return spread(rounds.seconds("ours")).median / len(subject.real.rows)
