"""Stage 3: the layers that retain a LoRA of their own (paper §3.2).

This is arithmetic on JSON; neither torch nor a model is loaded.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_drop.files import write_json
from lora_drop.pruning.scores import Scores
from lora_drop.pruning.selection import RULE, rule_of, select
from lora_drop.runs.stages.base import Stage, Values, Work, digest_of

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the rule by which layers are retained."""
    method = asdict(job.config.method)
    rule = {key: method[key] for key in RULE}
    return {"method": rule, "seed": job.config.seed}


def work(job: Job) -> Work:
    """Write `selection.json`, and remove the picture of an earlier selection."""
    method = job.config.method
    scored = Scores.load(job.run.file("scores.json")).rows
    selection = select(scored, **rule_of(asdict(method)), seed=job.config.seed)
    job.run.forget("picture", ("importance.png",))
    write_json(job.run.file("selection.json"), selection.to_json())
    whole = sum(row.parameters for row in scored)
    counts = ", ".join(
        f"{name} {len(layers.retained)} of {len(layers.all)}" for name, layers in selection.projections.items()
    )
    share = selection.trainable_parameters / whole
    return f"retained {counts}; {selection.trainable_parameters:,} parameters, {share:.0%} of LoRA's", {}


STAGE = Stage(
    name="select",
    help="Stage 3: choose the layers that retain their LoRA.",
    version=1,
    outputs=("selection.json",),
    needs=("score",),
    settings=settings,
    inputs=lambda job: {"scores": digest_of(job, "scores.json", "score")},
    work=work,
    model=False,
    wanted=lambda job: job.selects,
    rows=lambda job: (),
)
