"""Beside stage 2: a bootstrap of the importances over the examples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop.files import read_json, write_json
from lora_drop.runs.stages.base import Stage, Values, Work, digest_of

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the rule by which layers are retained, and the number of resamples."""
    method = job.config.method
    rule = [method.threshold, method.budget, method.share, job.config.score.bootstrap]
    policy = {} if method.policy == "threshold" else {"policy": method.policy}  # the only policy of earlier versions
    return {"rule": rule, **policy, "seed": job.config.seed}


def work(job: Job) -> Work:
    """Resample the norms and write `stability.json`."""
    from lora_drop.pruning.scores import Scores
    from lora_drop.pruning.selection import RULE
    from lora_drop.pruning.stability import CONFIDENCE, bootstrap

    method, resamples = job.config.method, job.config.score.bootstrap
    scored = Scores.load(job.run.file("scores.json")).rows
    norms = {row["name"]: row["norms"] for row in read_json(job.run.file("norms.json"))["modules"]}
    rule: Values = {key: getattr(method, key) for key in RULE}
    rule["seed"] = job.config.seed
    rows = bootstrap(scored, norms, resamples, **rule)
    content = {"resamples": resamples, "confidence": CONFIDENCE, **rule, "modules": rows}
    write_json(job.run.file("stability.json"), content)
    certain = sum(row["retained"] in (0, 1) for row in rows)
    return f"{resamples:,} resamples: {certain} of {len(rows)} LoRAs always on the same side", {}


STAGE = Stage(
    name="stability",
    help="Bootstrap the importances.",
    version=2,
    outputs=("stability.json",),
    needs=("score", "norms"),
    settings=settings,
    inputs=lambda job: {"norms": digest_of(job, "norms.json", "score")},
    work=work,
    model=False,
    wanted=lambda job: job.selects and bool(job.config.score.bootstrap),
    rows=lambda job: (),
    command=False,
)
