"""Stage 5: the metrics of the trained adapter."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.files import write_json, write_text
from lora_drop.runs.stages.base import Stage, Values, Work, common_settings, digest_of, precision, rows_of, weights

if TYPE_CHECKING:
    from lora_drop.evaluation.base import Evaluation
    from lora_drop.runs.job import Job
    from lora_drop.runs.store import Run


def settings(job: Job) -> Values:
    """Return the limit on rows, the length at which inputs are truncated, and the precision."""
    return {
        **common_settings(job),
        "limit": job.config.limit.eval,
        "max_length": job.config.train.max_length,
        **precision(job),
    }


def inputs(job: Job) -> Values:
    """Return the identities of adapter, rows and weights, and the settings of the evaluation, such as decoding."""
    read = {"adapter": digest_of(job, "adapter", "train"), "split": job.data.split}
    return {**read, **rows_of(job, "eval"), **weights(job), **job.data.kind.settings(job.config)}


def work(job: Job) -> Work:
    """Evaluate and write `metrics.json` and `predictions.jsonl`."""
    from lora_drop.runs import models

    model = models.load_adapter(job, job.method, "adapter")
    way = models.find_way_for_evaluation(job, model)

    def shown(done: int, total: int) -> None:
        job.report.advance(done, total, "rows")

    result = models.evaluate(job, model, way, shown, job.run.checkpoints("eval") / "predictions.jsonl")
    processes.by_first(lambda: _write(job, result))
    split, primary = job.data.split, job.task.primary
    note = f"{primary} {result.metrics[primary]:.4f} on {len(job.data.eval.rows):,} rows of {split}"
    return note, {"precision": job.config.train.precision, "computed": str(way)}


def _write(job: Job, result: Evaluation) -> None:
    split, primary = job.data.split, job.task.primary
    what = {"task": job.task.name, "split": split, "examples": len(job.data.eval.rows)}
    content = {**what, "metrics": result.metrics, "primary": primary, **result.details}
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in result.predictions]
    write_text(job.run.file("predictions.jsonl"), "".join(lines))
    write_json(job.run.file("metrics.json"), content)


def forget(run: Run) -> None:
    """Remove a run's evaluation, since the adapter that it was of is about to change."""
    run.forget(STAGE.name, STAGE.outputs)


STAGE = Stage(
    name="eval",
    help="Stage 5: evaluate the trained adapter.",
    version=1,
    outputs=("metrics.json", "predictions.jsonl"),
    needs=("train",),
    settings=settings,
    inputs=inputs,
    work=work,
    rows=lambda job: ("eval",),
)
