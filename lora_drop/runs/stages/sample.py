"""Stage 1: the stratified sample (paper §3.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_drop.errors import first_three
from lora_drop.files import write_json
from lora_drop.runs.stages.base import Stage, Values, Work, rows_of

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the sample's ratio and seed."""
    config = job.config
    return {"task": config.task, "ratio": config.sample.ratio, "seed": config.seed, "limit": config.limit.train}


def work(job: Job) -> Work:
    """Draw the sample and write `sample.json`."""
    from lora_drop.pruning.sampling import stratified_sample

    rows, ratio = job.data.train.rows, job.config.sample.ratio
    size = max(1, round(ratio * len(rows)))
    drawn = stratified_sample(job.task.strata(rows), size, job.config.seed)
    if drawn.absent:
        job.report.notice(
            f"{len(drawn.absent)} of {len(drawn.strata)} strata are too small for a row of the sample "
            f"({first_three(drawn.absent)})"
        )
    strata = {name: {"population": total, "sample": taken} for name, (total, taken) in drawn.strata.items()}
    content = {"task": job.task.name, "seed": job.config.seed, "ratio": ratio, "population": len(rows)}
    content |= {"size": len(drawn.indices), "strata": strata, "indices": list(drawn.indices)}
    write_json(job.run.file("sample.json"), content)
    return (
        f"{len(drawn.indices):,} of {len(rows):,} rows in {len(strata)} {'stratum' if len(strata) == 1 else 'strata'}",
        {},
    )


STAGE = Stage(
    name="sample",
    help="Stage 1: draw the stratified sample of the training set.",
    version=2,  # largest remainder instead of scikit-learn's splits
    outputs=("sample.json",),
    needs=(),
    settings=settings,
    inputs=lambda job: rows_of(job, "train"),
    work=work,
    model=False,
    wanted=lambda job: job.selects,
    shared=True,
)
