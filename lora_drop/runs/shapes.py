"""Check by shapes alone that backbone, adapters and method fit together, before weights are read or files written."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel

from lora_drop.errors import UserError
from lora_drop.methods.folder import adapter_folder
from lora_drop.methods.start import start_from
from lora_drop.models.backbones import load_meta_model
from lora_drop.models.checks import check_length
from lora_drop.pruning.importance import numbered
from lora_drop.pruning.places import all_places
from lora_drop.pruning.scores import Scores
from lora_drop.pruning.selection import Selection, check_budget
from lora_drop.registry import METHODS
from lora_drop.runs.job import Job
from lora_drop.training.trainer import steps_of


def check_shapes(job: Job, stages: Collection[str]) -> None:
    """Build what the stages `score` and `train` will build, without weights. Raises UserError if it does not fit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about weights without values; others appear again with the weights
            _check(job, stages)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's method may need values; the stage itself will then report
        reason = (str(error).splitlines() or [""])[0]
        job.report.notice(
            f"it cannot be checked in advance that all parts fit together ({type(error).__name__}: {reason})"
        )


def _check(job: Job, stages: Collection[str]) -> None:
    config = job.config
    check_length(_backbone(job), config.train.max_length)
    given = config.warmup.adapter if "score" in stages else None
    scored = _given(job, given) if given else None
    if scored is None or "train" in stages:
        built = _built(job, stages)
        if config.train.start_from:
            start_from(built, adapter_folder(config.train.start_from))
        if job.method.stepper is not None:
            job.method.stepper(built, steps_of(config.train, len(job.data.train.rows)))
        if given and scored is not None:
            _check_modules(given, scored, built)
        if "train" in stages and "score" not in stages and job.method is METHODS.get("lora_drop"):
            _check_counted(job, built)
    if "select" in stages and config.method.budget is not None:
        model = built if scored is None else scored
        projections = {place.name: place.projection for place in all_places(model)}
        sizes = [(projections[name], pair.parameters) for name, pair in numbered(model).items()]
        check_budget(sizes, config.method.budget, config.method.share)


def _backbone(job: Job) -> PreTrainedModel:
    return load_meta_model(job.backbone, job.task, job.data.tokenizer)


def _given(job: Job, adapter: str) -> nn.Module:
    """Return the model with the adapter that is scored instead of a warm-up. Raises UserError if that is impossible."""
    model = METHODS.get("lora").load(_backbone(job), adapter_folder(adapter, "warmup.adapter"))
    numbered(model)
    return model


def _built(job: Job, stages: Collection[str]) -> nn.Module:
    """Return the model to train: before layers are selected, a LoRA on all of them; else the method's own model."""
    method, selection = job.method, None
    if job.selects and "score" in stages:
        method = METHODS.get("lora")
    elif job.selects:
        selection = Selection.load(job.run.file("selection.json"))
    return method.build(_backbone(job), job.config.method, job.config.seed, selection)


def _check_counted(job: Job, built: nn.Module) -> None:
    """Raise UserError if the layers were scored with another rank than is trained.

    The selection would then have counted other parameters than are trained.
    """
    counted = {row.name: row.parameters for row in Scores.load(job.run.file("scores.json")).rows}
    for name, pair in numbered(built).items():
        if counted.get(name, pair.parameters) != pair.parameters:
            there = counted[name] * pair.rank // pair.parameters
            raise UserError(
                f"The layers were scored by an adapter of rank {there}, whose parameters the selection has counted, "
                f"but training would use rank {pair.rank} ({name}). Set method.rank={there}, or score again."
            )


def _check_modules(adapter: str, scored: nn.Module, built: nn.Module) -> None:
    """Raise UserError unless training has LoRAs on the same modules, and of the same rank, as the scored adapter."""
    theirs, ours = numbered(scored), numbered(built)
    other = sorted(theirs.keys() ^ ours.keys())
    ranks = [
        (name, pair.rank, ours[name].rank)
        for name, pair in theirs.items()
        if not other and pair.rank != ours[name].rank
    ]
    if ranks:
        name, there, here = ranks[0]
        raise UserError(
            f"The adapter {adapter} has rank {there}, but training would use rank {here} ({name}), so the selection "
            f"would count other parameters than are trained. Set method.rank={there}, or only score it: lora-drop "
            "score"
        )
    if other:
        found = [place.projection for place in all_places(scored) if place.name in theirs]
        raise UserError(
            f"The adapter {adapter} and the model to train have LoRAs on different modules ({other[0]} is in one of "
            f"them only). Set method.target_projections to the adapter's ({', '.join(dict.fromkeys(found))}), or only "
            "score it: lora-drop score"
        )
