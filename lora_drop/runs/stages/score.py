"""Stage 2: a warm-up LoRA on the sample, then the importance of every LoRA (paper §3.1).

The criterion is an input of the scores, not of the warm-up. With another criterion, an existing warm-up of this run, or
of another run with the same inputs, is scored again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lora_drop import processes
from lora_drop.errors import counted
from lora_drop.files import digest, file_digest, read_json, write_folder, write_json
from lora_drop.methods.folder import adapter_folder
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.registry import METHODS
from lora_drop.runs.stages.base import (
    Stage,
    Values,
    Work,
    common_settings,
    criterion,
    digest_of,
    precision,
    rows_of,
    training,
    weights,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

    from lora_drop.runs.job import Job
    from lora_drop.runs.store import Run
    from lora_drop.training.way import Way

VERSION = 2  # the scaling of a LoRA is part of its output


def settings(job: Job) -> Values:
    """Return the settings of the warm-up, and the criterion."""
    return {**warmup_settings(job), **criterion(job.config.score.criterion)}


def warmup_settings(job: Job) -> Values:
    """Return the settings of the warm-up, or the identity of the adapter that is scored instead."""
    from lora_drop.training import warmup

    config = job.config
    common = {**common_settings(job), "limit": config.limit.train}
    if config.warmup.adapter:
        adapter = job.adapters["warmup.adapter"]["content"]
        return {**common, "adapter": adapter, "max_length": config.train.max_length, **precision(job)}
    method = asdict(config.method)
    return {
        **common,
        "warmup": training(job, warmup.warmup_settings(config), "select_epoch", "held_out"),
        "warmup_steps": config.warmup.steps,
        "method": {key: method[key] for key in ("rank", "alpha", "dropout", "target_projections")},
    }


def inputs(job: Job) -> Values:
    """Return the identities of sample, rows and weights."""
    return {"sample": digest_of(job, "sample.json", "sample"), **rows_of(job, "train"), **weights(job)}


@dataclass
class Warm:
    """A model to be scored, and the record of its warm-up."""

    model: nn.Module
    way: Way
    steps: int = 0
    losses: list[float] = field(default_factory=list)
    """Loss of each step; empty for an adapter that was trained elsewhere."""
    computed: str = ""
    note: str = ""
    there: bool = False
    """True if it is already in the run directory."""


def work(job: Job) -> Work:
    """Train and save the warm-up, score it, and write `scores.json`."""
    from lora_drop.runs import models
    from lora_drop.training.warmup import constant_loss, doubts

    config, encoded = job.config, models.sampled(job)
    made_from = processes.by_first(lambda: digest(["score", VERSION], warmup_settings(job), inputs(job)))
    warm = (None if job.force else _kept(job, made_from, encoded)) or _made(job, encoded)
    scores = models.score(job, warm.model, encoded, config.score.criterion, warm.way)
    constant = constant_loss(encoded["labels"], job.task, config.train.label_smoothing)
    processes.by_first(lambda: _write(job, warm, scores))
    if scores.notice:
        job.report.notice(scores.notice)
    for doubt in doubts(warm.losses, constant) if warm.losses else ():
        job.report.notice(doubt)
    note, facts = _note_and_facts(warm, scores)
    facts |= {"precision": config.train.precision, "warmup_made_from": made_from, "constant_loss": constant}
    return note, facts


def _write(job: Job, warm: Warm, scores: Any) -> None:
    from lora_drop.runs import models

    if not warm.there:
        with write_folder(job.run.file("warmup")) as folder:
            METHODS.get("lora").save(warm.model, folder)
            write_json(folder / "losses.json", {"losses": warm.losses})
    write_json(job.run.file("scores.json"), models.scores_content(job, warm.model, scores))


def _note_and_facts(warm: Warm, scores: Any) -> Work:
    from lora_drop.training.warmup import first_and_last

    seen = f" on {counted(scores.examples, 'example')}, {counted(scores.tokens, 'token')}" if scores.examples else ""
    by = "" if scores.criterion == PAPER else f" by {scores.criterion}"
    note = f"{len(scores.rows)} LoRAs{by}{seen}, {warm.note}"
    facts: Values = {"warmup_steps": warm.steps}
    if warm.losses:
        first, last = first_and_last(warm.losses)
        note += f"after {counted(warm.steps, 'warm-up step')} (loss {first:.3f} to {last:.3f})"
        facts["losses"] = {"first_quarter": first, "last_quarter": last}
    return note, {**facts, "computed": warm.computed}


def _made(job: Job, encoded: Dataset) -> Warm:
    """Train the warm-up, or load the adapter that is scored instead."""
    from lora_drop.runs import models
    from lora_drop.training import warmup

    config, lora = job.config, METHODS.get("lora")
    if config.warmup.adapter:
        folder = adapter_folder(config.warmup.adapter, "warmup.adapter")
        model = lora.load(models.load_backbone(job), folder).to(job.device)
        way = models.find_way_for(job, model, encoded)
        return Warm(model, way, computed=str(way), note=f"from the adapter {config.warmup.adapter}")
    model = lora.build(models.load_backbone(job), config.method, config.seed, None)
    models.start(job, model)
    way = models.find_way_for(job, model, encoded)
    fitted = warmup.warmup_settings(config)
    outcome = models.fit(job, "score", lora, model, encoded, fitted, config.warmup.steps, way=way)
    return Warm(model, way, outcome.steps, list(outcome.losses), outcome.computed)


def _kept(job: Job, made_from: str, encoded: Dataset) -> Warm | None:
    """Return the warm-up that this or another run of the grid made from the same inputs; None if there is none."""
    from lora_drop.runs import models

    entry = processes.by_first(lambda: _taken_over(job, made_from))
    if entry is None:
        return None
    model = models.load_adapter(job, METHODS.get("lora"), "warmup")
    losses = read_json(job.run.file("warmup") / "losses.json")["losses"]
    way, note = models.find_way_for(job, model, encoded), "from the existing warm-up, "
    return Warm(model, way, entry["warmup_steps"], losses, entry["computed"], note, there=True)


def _taken_over(job: Job, made_from: str) -> Values | None:
    """Return the manifest entry of such a warm-up, after copying it into this run's directory if necessary."""
    for run in (job.run, *job.others()):
        entry = run.entry("score")
        if _holds(run, entry, made_from):
            if run is not job.run:
                job.run.copy(run.file("warmup"), "warmup")
            return entry
    return None


def _holds(run: Run, entry: Values, made_from: str) -> bool:
    """Return True if a run has a warm-up made from these inputs.

    Earlier versions had one criterion, so there the inputs of the stage are those of the warm-up.
    """
    if not entry or entry.get("warmup_made_from", entry["inputs"]) != made_from:
        return False
    return bool(file_digest(run.file("warmup")) == entry["outputs"]["warmup"])


STAGE = Stage(
    name="score",
    help="Stage 2: warm a LoRA up, then score each layer: by its output, or by other criteria.",
    version=VERSION,
    outputs=("scores.json", "warmup"),
    needs=("sample",),
    settings=settings,
    inputs=inputs,
    work=work,
    wanted=lambda job: job.selects,
    beside=("norms", "stability", "criteria"),
    shared=True,
    long=warmup_settings,
)
