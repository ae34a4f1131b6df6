"""Part `share`: how much of a whole run finding the layers takes, that is sample, warm-up and score before the training."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from bench.rounds import timed, without_old_garbage
from bench.variants import ours
from bench.workload import Subject
from lora_drop.data.batches import row_lengths
from lora_drop.progress import SILENT
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import perform
from lora_drop.runs.store import Run

EPOCHS = 30
"""Of the training that the share is taken of: what Hu et al. train the larger tasks of GLUE for (RTE: 80)."""
STAGES = ("sample", "score")


def measure_share(subject: Subject) -> dict[str, Any]:
    """Perform stages 1 and 2 on all training rows through the pipeline, and set their seconds against those of EPOCHS epochs.

    Training is measured on the rows of the other parts, before and after the stages, so that what disturbs the one disturbs the other; for
    all rows it takes the same time per real token.
    """
    workload = subject.real
    train = timed(ours(subject, workload, set()), subject.device)
    with without_old_garbage():
        train(False)  # warm-up
        before = train(False).seconds
        seconds, rows, tokens = _stages(subject)
        rate = (before + train(False).seconds) / 2 / workload.tokens
    found, training = sum(seconds.values()), EPOCHS * tokens * rate
    return {
        "rows": rows,
        "tokens": tokens,
        "epochs": EPOCHS,
        "seconds": seconds,
        "training_seconds_per_token": rate,
        "training_seconds": training,
        "share": found / (found + training),
    }


def _stages(subject: Subject) -> tuple[dict[str, float], int, int]:
    """Return the seconds of each stage as `run.json` tells them, and the run's training rows and real tokens."""
    settings = subject.settings
    # quick: of these rows a tenth is what the other parts are measured on
    config = settings.config(**({"train": 10 * settings.rows} if settings.quick else {}))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run", config)
        job = Job(run, SILENT)
        with run.working():
            for number, stage in enumerate(STAGES):
                subject.report.advance(number, len(STAGES), f"stage {stage}")
                perform(job, stage)
        lengths = row_lengths(job.data.train_encoded)
        return {stage: run.manifest["stages"][stage]["seconds"] for stage in STAGES}, len(lengths), sum(lengths)
