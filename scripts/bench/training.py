"""The compared ways to train: PEFT with transformers' Trainer as most scripts use it, the same at its best, and ours.

Rows, seed, total batch, optimizer steps, model, LoRA, optimizer and schedule are the same. The grouping of rows into
batches, their padding, the precision, and the library that computes the products differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices

from bench.machine import fp32_products
from bench.rounds import now
from bench.subject import Subject
from lora_drop.data.batches import row_lengths
from lora_drop.files import digest
from lora_drop.progress import Reporter
from lora_drop.registry import METHODS
from lora_drop.training.trainer import fit, steps_of, warmup_steps

LOSS_TOLERANCE = 0.05
"""Largest relative difference of mean loss between trainings with another order of rows and other dropout masks."""


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    side: str
    """`stock` (all rows padded to the maximal length, in random order), `grouped` (by length, padded to the longest row
    of a batch) or `ours`."""
    precision: str = "fp32"
    switched: bool = False
    """True if torch's switch sends fp32 products to oneDNN."""
    upper: bool = False
    """True for LoRA in the upper half of the layers only."""

    def __str__(self) -> str:
        return f"{self.side} {self.precision}{', switched' * self.switched}{', upper half' * self.upper}"


@dataclass(frozen=True)
class Evidence:
    """The work that a training did, which shows if two trainings are comparable."""

    rows: str
    """Hash of the rows and of how often each was trained on."""
    batches: tuple[int, ...]
    """Number of rows of each forward pass, in ascending order."""
    steps: int
    loss: float
    """Mean over the optimizer steps."""


class UnfairComparison(RuntimeError):
    """Raised when two compared trainings did not do the same work."""


def check_fair(found: Mapping[str, Evidence]) -> None:
    """Raise UnfairComparison unless all trainings had the same rows, batch sizes and optimizer steps.

    Their losses must also agree to LOSS_TOLERANCE.
    """
    (first, expected), *others = found.items()
    for name, evidence in others:
        for what in ("rows", "batches", "steps"):
            if getattr(evidence, what) != getattr(expected, what):
                raise UnfairComparison(
                    f"{name} and {first} differ in {what}: {getattr(evidence, what)}, {getattr(expected, what)}"
                )
        if not abs(evidence.loss - expected.loss) <= LOSS_TOLERANCE * abs(expected.loss):
            raise UnfairComparison(f"{name} and {first} differ in their loss: {evidence.loss}, {expected.loss}")


class Beginnings(Reporter, TrainerCallback):
    """The times at which the epochs of a training began, as a reporter of `fit` or a callback of the Trainer.

    The first is that of the training itself, with its setup. The end of the last epoch is noted as well.
    """

    def __init__(self, device: torch.device):
        """Begin the training."""
        self.device, self.times = device, [now(device)]

    def milestone(self, text: str) -> None:
        """`fit` has ended an epoch and written its checkpoint."""
        self.times.append(now(self.device))

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """The Trainer has ended an epoch."""
        self.times.append(now(self.device))


class Training:
    """An action that trains a subject and measures the last epoch; with one epoch, this is the whole call.

    Its first call, the warm-up, also gathers the evidence.
    """

    def __init__(self, subject: Subject, variant: Variant, epochs: int = 1):
        """Prepare the rows; nothing is trained yet."""
        self.subject, self.variant, self.epochs, self.rows = subject, variant, epochs, subject.rows
        train = subject.setup.train
        if variant.side == "stock":
            self.rows = padded(subject.rows, subject.data.tokenizer, train.max_length)
        if variant.side == "grouped":
            self.rows = grouped(subject.rows, train.batch_size, subject.data.population["train"], subject.setup.seed)
        self.evidence: Evidence | None = None
        self.computed = "padded"
        """The way in which batches were computed."""
        self.gpu_memory_mb: int | None = None
        """Peak GPU memory of the first call, in MB."""
        self.whole_calls: list[float] = []
        """Seconds of each call: all epochs, with the setup of the Trainer."""

    def __call__(self) -> float:
        """Train a fresh model and return the seconds of the last epoch, or of the whole call if it is the only one.

        The last epoch lasts from the end of the one before to the end of the training.
        """
        model, device = self.subject.lora(self.variant.upper), self.subject.device
        work = self._ours if self.variant.side == "ours" else self._trainer
        seen: list[list[str]] = []
        if self.evidence is None:
            model.register_forward_pre_hook(lambda _, __, inputs: note(model, inputs, seen), with_kwargs=True)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder, fp32_products(onednn=self.variant.switched):
            began = Beginnings(device)
            steps, loss = work(model, folder, began)
            ended = now(device)
        if self.evidence is None:
            if device.type == "cuda":
                self.gpu_memory_mb = torch.cuda.max_memory_allocated() // 2**20
            rows = digest(sorted(row for batch in seen for row in batch))
            self.evidence = Evidence(rows, tuple(sorted(map(len, seen))), steps, loss)
        self.whole_calls.append(ended - began.times[0])
        return ended - began.times[self.epochs - 1]

    def _ours(self, model: nn.Module, folder: str, began: Beginnings) -> tuple[int, float]:
        """Train as a run of this project does; return steps and mean loss."""
        config, data = self.subject.config(self.variant.precision), self.subject.data
        outcome = fit(
            METHODS.get("lora"),
            model,
            self.rows,
            data.collate,
            replace(config.train, epochs=float(self.epochs)),
            Path(folder),
            seed=config.seed,
            loss=data.kind.loss(0.0),
            report=began,
        )
        self.computed = outcome.computed
        return outcome.steps, fmean(epoch["loss"] for epoch in outcome.epochs)

    def _trainer(self, model: nn.Module, folder: str, began: Beginnings) -> tuple[int, float]:
        """Train as a script with PEFT and transformers' Trainer does; return steps and mean loss."""
        config, cuda = self.subject.config(self.variant.precision), self.subject.device.type == "cuda"
        train = replace(config.train, epochs=float(self.epochs))
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=train.batch_size,
            num_train_epochs=self.epochs,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.scheduler,
            warmup_steps=warmup_steps(train, steps_of(train, len(self.rows))),
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            train_sampling_strategy="sequential" if self.variant.side == "grouped" else "random",
            bf16=train.precision == "bf16",
            seed=config.seed,
            use_cpu=not cuda,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=cuda,
            disable_tqdm=True,
            report_to=[],
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be DataParallel, which multiplies the batch
        collate = default_data_collator if self.variant.side == "stock" else self.subject.data.collate
        trainer = Trainer(
            model=model, args=arguments, train_dataset=self.rows, data_collator=collate, callbacks=[began]
        )
        trainer.remove_callback(PrinterCallback)
        done = trainer.train()
        return done.global_step, done.training_loss


def note(model: nn.Module, inputs: Mapping[str, Any], seen: list[list[str]]) -> None:
    """Record the rows of one forward pass in training, without their padding."""
    if model.training:  # else it is a trial before the training
        pairs = zip(inputs["input_ids"].cpu(), inputs["attention_mask"].cpu().bool(), strict=True)
        seen.append([digest(ids[mask].tolist()) for ids, mask in pairs])


def padded(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Return the rows, each padded on the right to `length` as `padding="max_length"` does."""
    return Dataset.from_dict(dict(tokenizer.pad(rows[:], padding="max_length", max_length=length)))


def grouped(rows: Dataset, batch_size: int, population: int, seed: int) -> Dataset:
    """Return the rows in the order of the Trainer's own grouping by length on a task of `population` rows.

    The Trainer sorts chunks of a quarter of the rows, at most 50 batches. Applied to the few rows of a measured call,
    it would hardly group at all.
    """
    batches = max(1, min(population // (4 * batch_size), 50))
    draw = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(row_lengths(rows), batch_size, mega_batch_mult=batches, generator=draw)
    return rows.select(order).flatten_indices()
