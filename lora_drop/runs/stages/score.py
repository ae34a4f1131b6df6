"""Stage 2: a warm-up LoRA on the sample, then the importance of every LoRA (paper §3.1)."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from lora_drop.files import write_folder, write_json
from lora_drop.runs.stages.base import Stage, Values, Work, digest_of, names, rows_of, selects, training, weights

if TYPE_CHECKING:
    from lora_drop.runs.job import Job


def settings(job: Job) -> Values:
    """Return the settings of the warm-up."""
    from lora_drop.training.warmup import warmup_settings

    method = asdict(job.config.method)
    return {
        **names(job),
        "limit": job.config.limit.train,
        "warmup": training(warmup_settings(job.config), "select_epoch", "save_steps"),
        "warmup_steps": job.config.warmup.steps,
        "method": {key: method[key] for key in ("rank", "alpha", "dropout", "target_projections")},
    }


def inputs(job: Job) -> Values:
    """Return what identifies sample, rows and weights."""
    return {"sample": digest_of(job, "sample.json", "sample"), **rows_of(job, "train"), **weights(job)}


def work(job: Job) -> Work:
    """Train and save the warm-up, score it, and write `scores.json`."""
    from lora_drop.pruning import importance
    from lora_drop.registry import METHODS
    from lora_drop.runs import models
    from lora_drop.training.warmup import doubts, first_and_last, warmup_settings

    config, lora, encoded = job.config, METHODS.get("lora"), models.sampled(job)
    model = lora.build(models.load_backbone(job), config.method, config.seed, None)
    models.start(job, model)
    way = models.find(job, model, encoded)
    outcome = models.fit(job, "score", lora, model, encoded, warmup_settings(config), config.warmup.steps, way=way)
    scores = importance.score(
        model,
        models.batches_of(job, encoded),
        progress=lambda done: job.report.advance(done, len(encoded), "scoring"),
        packing=way,
    )
    with write_folder(job.run.file("warmup")) as folder:
        lora.save(model, folder)
        write_json(folder / "losses.json", {"losses": outcome.losses})
    write_json(job.run.file("scores.json"), models.scores_content(job, model, scores))
    for doubt in doubts(outcome.losses):
        job.report.notice(doubt)
    first, last = first_and_last(outcome.losses)
    seen = f"{scores.examples:,} examples, {scores.tokens:,} tokens"
    note = f"{len(scores.rows)} LoRAs on {seen}, after {outcome.steps:,} warm-up steps (loss {first:.3f} to {last:.3f})"
    losses = {"first_quarter": first, "last_quarter": last}
    facts = {"precision": config.train.precision, "warmup_steps": outcome.steps, "losses": losses}
    return note, {**facts, "computed": outcome.computed}


STAGE = Stage(
    name="score",
    help="Stage 2: warm a LoRA up, then score the output of each layer.",
    version=2,  # the scaling of a LoRA is part of its output
    outputs=("scores.json", "warmup"),
    needs=("sample",),
    settings=settings,
    inputs=inputs,
    work=work,
    wanted=selects,
    beside=("norms", "stability"),
    shared=True,
)
