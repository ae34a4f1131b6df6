"""The model and the rows that are measured: the same for everything that is compared."""

from __future__ import annotations

import gc
import random
from dataclasses import dataclass
from functools import cached_property

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_drop.backbones import load_config, load_meta_model, load_model, locate, resolve_device
from lora_drop.batching import row_lengths
from lora_drop.bench.flops import Rows, Shape, shape_of
from lora_drop.bench.settings import Settings
from lora_drop.checks import check_length
from lora_drop.completions import IGNORED
from lora_drop.config import MethodConfig
from lora_drop.data import Data
from lora_drop.errors import UserError
from lora_drop.methods import get_method
from lora_drop.progress import Reporter
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source
from lora_drop.training import HALF

LORA = MethodConfig(name="lora", rank=8, alpha=16)
"""What is trained, whoever trains it."""


@dataclass(frozen=True)
class Workload:
    """Tokenised rows to train on."""

    name: str
    rows: Dataset
    padded_to: int
    """The length to which a stock setting pads every row."""

    @cached_property
    def lengths(self) -> list[int]:
        """Real tokens of each row."""
        return row_lengths(self.rows)

    @property
    def tokens(self) -> int:
        """Real tokens of all rows."""
        return sum(self.lengths)

    def shapes(self, generator: bool) -> Rows:
        """Return what decides how much there is to compute."""
        learned = [sum(label != IGNORED for label in row) for row in self.rows["labels"]] if generator else None
        return Rows(self.lengths, learned)


class Subject:
    """What is measured: a backbone under LoRA on a task, on one device."""

    def __init__(self, settings: Settings, report: Reporter):
        """Find backbone, device and rows. Raises UserError where one is not there."""
        self.settings, self.report = settings, report
        self.config = settings.config(train=settings.rows, eval=max(1, settings.rows // 8))
        self.task = get_task(settings.task)
        self.device = resolve_device(settings.device)
        self.backbone = locate(settings.backbone, settings.offline, report=report)
        source = Source.resolve(settings.data_dir, settings.offline, report=report)
        self.data = Data(self.config, self.task, source, self.backbone, report)
        self.data.kind.check(self.config, self.task)
        shape = load_config(self.backbone, self.task)
        check_length(load_meta_model(self.backbone, self.task), max(settings.max_length, *settings.seq_lengths, 0))
        self.shape: Shape | None = shape_of(shape, self.generates)

    @property
    def generates(self) -> bool:
        """Whether the task is written."""
        return self.task.kind == "generation"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer."""
        return self.data.tokenizer

    def load_backbone(self) -> PreTrainedModel:
        """Return a fresh copy of the backbone on the device."""
        model = load_model(self.backbone, self.task, self.settings.seed, self.tokenizer, self.device)
        return model.to(self.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to

    def lora(self) -> nn.Module:
        """Return the backbone with a fresh LoRA on query and value, the same at every call."""
        gc.collect()  # a Trainer and its model refer to each other: without this, two models would be there at once
        model = get_method("lora").build(self.load_backbone(), LORA, self.settings.seed, None)
        return model.to(self.device)

    @cached_property
    def real(self) -> Workload:
        """The task's own rows. Raises UserError if they are not on this machine."""
        try:
            rows = self.data.train_encoded
        except UserError as error:
            if not self.task.files:
                raise
            raise UserError(
                f"{error}\nTo measure on rows that need no file: lora-drop bench --task toy-nli, or --seq-lengths 32,64,128 "
                "(the parts share and generation need the task's own)."
            ) from error
        return Workload("real", rows, self.config.train.max_length)

    def workloads(self) -> list[Workload]:
        """Return what training is measured on: the task's rows, or generated ones of each length asked for."""
        lengths = self.settings.seq_lengths
        return [self.generated(length) for length in lengths] if lengths else [self.real]

    def generated(self, length: int) -> Workload:
        """Return rows of one length with random words; of texts the second half is learned."""
        draw, tokenizer = random.Random(self.settings.seed), self.tokenizer
        words = [word for word in range(len(tokenizer)) if word not in tokenizer.all_special_ids]
        ids = [draw.choices(words, k=length) for _ in range(self.settings.rows)]
        if self.generates:
            labels: list = [[IGNORED] * (length // 2) + row[length // 2 :] for row in ids]
        else:
            labels = [self._label(draw) for _ in ids]
        rows = {"input_ids": ids, "attention_mask": [[1] * length for _ in ids], "labels": labels}
        return Workload(str(length), Dataset.from_dict(rows), max(length, self.config.train.max_length))

    def _label(self, draw: random.Random) -> float | int:
        return draw.random() if self.task.kind == "regression" else draw.randrange(self.task.outputs)

    @property
    def dtype(self) -> torch.dtype:
        """What the products of the forward and backward pass are computed in."""
        return HALF.get(self.settings.precision, torch.float32)
