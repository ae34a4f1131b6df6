"""Model work shared by several stages: load the backbone, train, read the sample, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from lora_drop import processes
from lora_drop.config.schema import TrainConfig
from lora_drop.data.sentences import batches
from lora_drop.evaluation.base import Evaluation
from lora_drop.files import read_json
from lora_drop.methods.base import Method
from lora_drop.methods.folder import adapter_folder
from lora_drop.methods.start import start_from
from lora_drop.models.backbones import load_model
from lora_drop.models.checks import check_length
from lora_drop.pruning import importance
from lora_drop.pruning.criteria.base import Measured
from lora_drop.pruning.places import fused_notice
from lora_drop.pruning.scores import Scores
from lora_drop.registry import CRITERIA
from lora_drop.runs.job import Job
from lora_drop.runs.rows import Part
from lora_drop.runs.stages.base import HELD_OUT
from lora_drop.training import trainer
from lora_drop.training.trackers import Trackers
from lora_drop.training.way import Way, find_way, why_slow


def load_backbone(job: Job) -> PreTrainedModel:
    """Return a fresh copy of the pretrained model.

    Raises UserError if it has fewer positions than `train.max_length`.
    """
    job.report.doing(f"loading {job.config.backbone}")
    model = load_model(job.backbone, job.task, job.config.seed, job.data.tokenizer, job.device, job.report.notice)
    check_length(model, job.config.train.max_length)
    fused = fused_notice(model, job.config.method.target_projections)
    if fused:
        job.report.notice(fused)
    return model


def load_adapter(job: Job, method: Method, artefact: str) -> nn.Module:
    """Return the backbone with an adapter written by an earlier stage, on the device."""
    return method.load(load_backbone(job), job.run.file(artefact)).to(job.device)


def backbone_config(model: nn.Module) -> PretrainedConfig:
    """Return the configuration of the backbone under an adapter."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.config


def start(job: Job, model: nn.Module) -> None:
    """Copy the adapter that training starts from into the model, if there is one."""
    if job.config.train.start_from:
        job.report.notice(start_from(model, adapter_folder(job.config.train.start_from)))


def fit(
    job: Job,
    stage: str,
    method: Method,
    model: nn.Module,
    encoded: Dataset,
    settings: TrainConfig,
    steps: int | None = None,
    evaluated: bool = False,
    way: Way | None = None,
) -> trainer.Outcome:
    """Train a model on tokenised rows for the stage `score` or `train`.

    With `evaluated`, also evaluate it after each epoch.
    """
    part = "warmup" if stage == "score" else stage
    trackers = Trackers(settings.report_to or (), f"{_name(job)}-{part}", job.run.path / "logs" / part)
    way = way or find_way_for(job, model, encoded)
    primary = HELD_OUT if settings.select_epoch == "held_out" else job.task.primary
    return trainer.fit(
        method,
        model,
        encoded,
        job.data.collate,
        settings,
        job.run.checkpoints(stage),
        seed=job.config.seed,
        steps=steps,
        loss=job.data.kind.loss(settings.label_smoothing),
        validation=trainer.Validation(lambda trained: _scored(job, trained, way), primary) if evaluated else None,
        way=way,
        trackers=trackers,
        report=job.report,
    )


def _scored(job: Job, model: nn.Module, way: Way) -> dict[str, float]:
    """Return the metrics on the evaluation rows and, if rows are held out, the primary metric on those."""
    metrics = dict(evaluate(job, model, way, _shown_progress(job)).metrics)
    if job.config.train.held_out:
        metrics[HELD_OUT] = evaluate(job, model, way, _shown_progress(job), part=job.data.held_out).metrics[
            job.task.primary
        ]
    return metrics


def _name(job: Job) -> str:
    """Return a run's name for trackers; a run made by `--compare` is prefixed with the name of the main run."""
    path = job.run.path.resolve()
    return f"{path.parents[1].name}-{path.name}" if path.parent.name == "compare" else path.name


def _shown_progress(job: Job) -> Callable[[int, int], None]:
    """Return a progress callback for an evaluation between epochs, which leaves the bar to the training."""
    return lambda done, total: job.report.doing(f"evaluating: {done:,} of {total:,} rows")


def sampled(job: Job) -> Dataset:
    """Return the tokenised rows of the sample."""
    return job.data.train.encoded.select(read_json(job.run.file("sample.json"))["indices"])


def find_way_for(job: Job, model: nn.Module, encoded: Dataset | None, learns: bool = True) -> Way:
    """Return the way to compute the model on tokenised training rows; see `training.way.find_way`."""
    slow = why_slow(job.device, job.config.train.precision)
    if slow:
        job.report.notice(f"train.precision={job.config.train.precision}: {slow}")
    job.report.doing("trying ways to compute the model")
    model.to(job.device)
    loss = job.data.kind.loss(0.0) if learns else None
    return find_way(model, encoded, job.data.collate, job.config.train, loss, learns)


def find_way_for_evaluation(job: Job, model: nn.Module) -> Way:
    """Return the way to compute the model on tokenised evaluation rows."""
    return find_way_for(job, model, None if job.data.kind.causal else job.data.eval.encoded, learns=False)


def score(job: Job, model: nn.Module, encoded: Dataset, criterion: str, way: Way, per_example: bool = False) -> Scores:
    """Score a model on tokenised rows by a criterion; if its values add up, the processes share the rows.

    The values of the examples, if asked for, are in the order of the rows.
    """
    chosen = CRITERIA.get(criterion)
    share, times = (processes.mine, processes.size()) if chosen.additive else (iter, 1)
    seen: list[int] = []

    def given() -> Iterator[dict[str, Tensor]]:
        for rows, batch in batches(encoded, job.data.collate, job.data.batch_size, share=share):
            seen.extend(rows)
            yield batch

    def progress(done: int) -> None:
        job.report.advance(min(times * done, len(encoded)), len(encoded), f"examples, scored by {criterion}")

    scores = importance.score(
        model,
        given(),
        criterion=chosen,
        per_example=per_example,
        progress=progress,
        packing=way,
        seed=job.config.seed,
        total=sum_over_processes if chosen.additive else None,
    )
    if scores.norms is None:
        return scores
    order = np.argsort([row for rows in processes.everywhere(seen) for row in rows])  # undoes the batches' order
    return replace(scores, norms={name: np.array(values)[order].tolist() for name, values in scores.norms.items()})


def sum_over_processes(measured: Measured) -> Measured:
    """Return the sum of what all processes have measured."""
    return reduce(add, processes.everywhere(measured))


def scores_content(job: Job, model: nn.Module, scores: Scores) -> dict[str, Any]:
    """Return the content of `scores.json`."""
    return {
        "backbone": job.config.backbone,
        "task": job.task.name,
        "criterion": scores.criterion,
        "rank": next(iter(importance.numbered(model).values())).rank,
        "examples": scores.examples,
        "tokens": scores.tokens,
        **({"left_out": list(scores.left_out)} if scores.left_out else {}),
        "modules": [asdict(row) for row in scores.rows],
    }


def evaluate(
    job: Job,
    model: nn.Module,
    way: Way,
    progress: Callable[[int, int], None],
    journal: Path | None = None,
    part: Part | None = None,
) -> Evaluation:
    """Evaluate a model on a part of the rows, by default the evaluation rows.

    An evaluation may keep in `journal` what it needs to continue after a kill.
    """
    data = job.data
    part = part or data.eval
    found = data.kind.evaluate(
        model, job.task, part.rows, part.encoded, data.tokenizer, job.config, way, progress, journal
    )
    for notice in found.notices:
        job.report.notice(notice)
    return found
