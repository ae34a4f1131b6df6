"""Beside stage 3: a picture of the importance of each layer.

It is a separate stage because drawing takes longer than selecting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop.files import file_digest
from lora_drop.runs.stages.base import Stage, Work, criterion, digest_of

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def work(job: Job) -> Work:
    """Draw `importance.png`."""
    from lora_drop.pruning.picture import importance_figure, save_figure
    from lora_drop.pruning.scores import Scores
    from lora_drop.pruning.selection import Selection
    from lora_drop.runs.facts import read_facts

    scored = Scores.load(job.run.file("scores.json")).rows
    selection = Selection.load(job.run.file("selection.json"))
    rows = read_facts(job.run.path).stability.get("modules", [])
    figure = importance_figure(scored, selection, ", ".join(_title(job)), rows)
    save_figure(figure, job.run.file("importance.png"))
    return "importance.png", {}


def _title(job: Job) -> list[str]:
    by = job.config.score.criterion
    return [job.subject, job.config.backbone, *([f"by {by}"] if criterion(by) else [])]


STAGE = Stage(
    name="picture",
    help="Draw importance.png: each layer under the selection.",
    version=2,  # intervals, and a heat strip for many layers
    outputs=("importance.png",),
    needs=("score", "select"),
    settings=lambda job: {"title": _title(job)},
    inputs=lambda job: {
        "scores": digest_of(job, "scores.json", "score"),
        "selection": digest_of(job, "selection.json", "select"),
        "stability": file_digest(job.run.file("stability.json")),
    },
    work=work,
    model=False,
    wanted=lambda job: job.selects,
    rows=lambda job: (),
    draws=True,
)
