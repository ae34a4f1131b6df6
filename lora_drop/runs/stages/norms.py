"""Beside stage 2: the value of each example (‖ΔW x‖² for the paper's criterion).

The paper's Figures 2 and 4 and the bootstrap use these values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.files import write_json
from lora_drop.registry import METHODS
from lora_drop.runs.stages.base import Stage, Values, Work, common_settings, criterion, precision, scored_inputs

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the criterion, and the length at which inputs are truncated."""
    common = {**common_settings(job), "max_length": job.config.train.max_length, **precision(job)}
    return {**common, **criterion(job.config.score.criterion)}


def work(job: Job) -> Work:
    """Score the warm-up once more, keeping the norm of each example."""
    from lora_drop.runs import models

    encoded = models.sampled(job)
    model = models.load_adapter(job, METHODS.get("lora"), "warmup")
    way = models.find_way_for(job, model, encoded)
    scores = models.score(job, model, encoded, job.config.score.criterion, way, per_example=True)
    assert scores.norms is not None
    modules = [
        {"name": row.name, "projection": row.projection, "layer": row.layer, "norms": scores.norms[row.name]}
        for row in scores.rows
    ]
    processes.by_first(
        lambda: write_json(job.run.file("norms.json"), {"examples": scores.examples, "modules": modules})
    )
    return f"{scores.examples:,} examples of {len(modules)} LoRAs", {
        "precision": job.config.train.precision,
        "computed": str(way),
    }


STAGE = Stage(
    name="norms",
    help="Keep the norm of each example.",
    version=2,
    outputs=("norms.json",),
    needs=("sample", "score"),
    settings=settings,
    inputs=lambda job: scored_inputs(job, "warmup", "score"),
    work=work,
    wanted=lambda job: job.selects and bool(job.config.score.norms or job.config.score.bootstrap),
    command=False,
    shared=True,
)
