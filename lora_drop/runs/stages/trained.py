"""After stage 4: the importance of each LoRA of the trained adapter on the sample (the paper's Figures 7 and 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.files import write_json
from lora_drop.runs.stages.base import Stage, Work, scored_inputs
from lora_drop.runs.stages.norms import settings

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def work(job: Job) -> Work:
    """Score the adapter and write `scores_trained.json`."""
    from lora_drop.runs import models

    model, encoded = models.load_adapter(job, job.method, "adapter"), models.sampled(job)
    way = models.find_way_for(job, model, encoded)
    scores = models.score(job, model, encoded, job.config.score.criterion, way)
    content = models.scores_content(job, model, scores)
    processes.by_first(lambda: write_json(job.run.file("scores_trained.json"), content))
    return f"{len(scores.rows)} LoRAs on {scores.examples:,} examples", {
        "precision": job.config.train.precision,
        "computed": str(way),
    }


STAGE = Stage(
    name="trained",
    help="Score the trained adapter.",
    version=2,
    outputs=("scores_trained.json",),
    needs=("sample", "train"),
    settings=settings,
    inputs=lambda job: scored_inputs(job, "adapter", "train"),
    work=work,
    wanted=lambda job: job.selects and job.config.score.trained,
    command=False,
)
