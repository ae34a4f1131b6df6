"""The model and the rows of a comparison, the same for each of its sides."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from bench.flops import training_flops
from lora_drop.config.loading import load_config
from lora_drop.config.schema import Config, MethodConfig
from lora_drop.data.batches import row_lengths
from lora_drop.models.backbones import load_meta_model, load_model, locate, resolve_device
from lora_drop.models.checks import check_length
from lora_drop.progress import Reporter
from lora_drop.pruning.places import find_places
from lora_drop.pruning.scores import Scored
from lora_drop.pruning.selection import select
from lora_drop.registry import METHODS, TASKS
from lora_drop.runs.rows import Data
from lora_drop.tasks.base import Source

LORA = MethodConfig(name="lora", rank=8, alpha=16)
UPPER = replace(LORA, name="lora_drop", share=False, budget=0.5, policy="top")
"""LoRA in the upper half of the layers only, which ends the backward pass in the middle."""


@dataclass(frozen=True)
class Settings:
    """Settings of all parts of a benchmark."""

    device: str = "cpu"
    base_size: str = "packaged:mpnet-base"
    """The base-size encoder: a backbone's name or a folder."""
    rows: int = 256
    """Training rows of a measured call."""
    rounds: int = 5
    """Rounds, each of which measures everything once."""
    limited: bool = True
    """True for fewer rounds on a slow machine."""
    quick: bool = False
    data_dir: str | None = None
    offline: bool = False


class Subject:
    """A backbone under LoRA on the rows of a task, on one device."""

    def __init__(self, settings: Settings, report: Reporter, backbone: str, task: str, **keys: Any):
        """Find backbone, device and rows; `keys` change a run's configuration. Raises UserError if one is missing."""
        where = {"device": settings.device, "offline": settings.offline, "data_dir": settings.data_dir}
        self.keys = {"task": task, "backbone": backbone, **where, "limit.train": settings.rows, **keys}
        self.settings, self.report, self.setup = settings, report, self.config("fp32")
        self.task, self.device = TASKS.get(task), resolve_device(settings.device)
        self.backbone = locate(backbone, settings.offline, self.setup.quantization, report=report)
        check_length(self._meta(), self.setup.train.max_length)
        source = Source.resolve(settings.data_dir, settings.offline, report=report)
        self.data = Data(self.setup, self.task, source, self.backbone, report)
        self.rows = self.data.train.encoded
        self.lengths = row_lengths(self.rows)
        """Real tokens of each row."""

    def config(self, precision: str) -> Config:
        """Return the configuration of a run in one precision."""
        return load_config(flags={**self.keys, "train.precision": precision})

    def lora(self, upper: bool = False) -> nn.Module:
        """Return the backbone with a fresh LoRA on query and value, the same at every call.

        With `upper`, only the upper half of the layers has a LoRA.
        """
        gc.collect()  # a Trainer and its model refer to each other: without this, two models would be in memory
        model = self._adapt(
            load_model(self.backbone, self.task, self.setup.seed, self.data.tokenizer, self.device), upper
        )
        return model if self.backbone.quantization != "none" else model.to(self.device)

    @cached_property
    def flops(self) -> int:
        """Operations of one training pass over the rows."""
        model = self._meta()
        model.set_attn_implementation("eager")
        return training_flops(self._adapt(model, upper=False), self.lengths, self.task.kind == "generation")

    @cached_property
    def shapes(self) -> list[tuple[int, int]]:
        """The distinct (inputs, outputs) of the backbone's linear layers."""
        linear = (part for part in self._meta().modules() if isinstance(part, nn.Linear))
        return sorted({(part.in_features, part.out_features) for part in linear})

    def describe(self) -> dict[str, Any]:
        """Return the model and the rows for the record."""
        rows = {"rows": len(self.lengths), "tokens": sum(self.lengths), "longest": max(self.lengths)}
        train = {"batch_size": self.setup.train.batch_size, "max_length": self.setup.train.max_length}
        return {"backbone": self.backbone.name, "task": self.task.name, **train, **rows, "flops": self.flops}

    def _meta(self) -> PreTrainedModel:
        return load_meta_model(self.backbone, self.task)

    def _adapt(self, backbone: PreTrainedModel, upper: bool) -> nn.Module:
        if not upper:
            return METHODS.get("lora").build(backbone, LORA, self.setup.seed, None)
        places = find_places(backbone, UPPER.target_projections)
        importance = len(UPPER.target_projections) / len(places)  # all equal: the budget alone decides how many layers
        scored = [Scored(place.name, place.projection, place.layer, 1.0, importance, 1) for place in places]
        selection = select(scored, budget=UPPER.budget, policy=UPPER.policy, share=UPPER.share)
        return METHODS.get("lora_drop").build(backbone, UPPER, self.setup.seed, selection)
