"""Whether backbone, adapters and method fit together: found on shapes alone, before a weight is read or a file written."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from transformers import PreTrainedModel

from lora_drop.errors import UserError
from lora_drop.methods.folder import adapter_folder
from lora_drop.methods.start import check_adapter, check_start, start_from
from lora_drop.models.backbones import load_meta_model
from lora_drop.models.checks import check_length
from lora_drop.pruning.importance import numbered
from lora_drop.pruning.places import all_places, find_places
from lora_drop.pruning.selection import Selection, check_budget
from lora_drop.registry import METHODS
from lora_drop.runs.job import Job
from lora_drop.training.trainer import steps_of


def check_shapes(job: Job, stages: Collection[str]) -> None:
    """Build what the stages `score` and `train` will build, without weights. Raises UserError for what does not fit."""
    config, method = job.config, METHODS.get("lora") if job.selects else job.method
    if config.warmup.adapter and "score" in stages:
        check_adapter(config.warmup.adapter, job.task.kind)
    if config.train.start_from:
        check_start(job.method, config.train.start_from)
    check_length(_backbone(job), config.train.max_length)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights without values; any other comes again with the weights
        model = method.build(_backbone(job), config.method, config.seed, None)
        if config.train.start_from:
            start_from(model, adapter_folder(config.train.start_from))
        if method.stepper is not None and "train" in stages:
            method.stepper(model, steps_of(config.train, len(job.data.train.rows)))
        if job.selects:
            _check_layers(job, stages)


def _backbone(job: Job) -> PreTrainedModel:
    return load_meta_model(job.backbone, job.task)


def _check_layers(job: Job, stages: Collection[str]) -> None:
    """Check the LoRAs that are scored, and those that a selection then leaves to be trained."""
    config, lora, backbone = job.config, METHODS.get("lora"), _backbone(job)
    places = find_places(backbone, config.method.target_projections)
    if "score" not in stages:
        job.method.build(backbone, config.method, config.seed, Selection.load(job.run.file("selection.json")))
        return
    if config.warmup.adapter:
        model = lora.load(backbone, adapter_folder(config.warmup.adapter, "warmup.adapter"))
    else:
        model = lora.build(backbone, config.method, config.seed, None)
    scored = numbered(model)
    projections = {place.name: place.projection for place in all_places(model)}
    other = sorted(scored.keys() ^ {place.name for place in places})
    if "train" in stages and other:
        found = ", ".join(dict.fromkeys(projections[name] for name in scored))
        raise UserError(
            f"The adapter {config.warmup.adapter} and a training would have LoRAs on different modules ({other[0]} is in one of "
            f"them only). Set method.target_projections to the adapter's ({found}), or only score it: lora-drop score"
        )
    if "select" in stages and config.method.budget is not None:
        sizes = [(projections[name], pair.parameters) for name, pair in scored.items()]
        check_budget(sizes, config.method.budget, config.method.share)
