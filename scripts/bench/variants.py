"""The three ways to train that are compared: what most scripts do, the Trainer at its best, and this project's.

Rows, seeds, total batch, model, LoRA, optimizer and schedule are the same. What differs is which rows go together, and how they are padded.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, default_data_collator
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

from bench.workload import Subject, Workload
from lora_drop.data.batches import row_lengths
from lora_drop.data.completions import IGNORED
from lora_drop.training.trainer import fit, warmup_steps

Prepare = Callable[[], Callable[[], object]]
"""Builds a fresh model, which is not timed, and returns the training call, which is."""


def stock(subject: Subject, workload: Workload) -> Prepare:
    """PEFT and transformers' Trainer as run_glue sets it: every row padded to the maximal length, in random order."""
    rows = padded(workload.rows, subject.tokenizer, workload.padded_to)
    return lambda: _training(subject, Trainer, rows, default_data_collator)


def grouped(subject: Subject, workload: Workload) -> Prepare:
    """The same at its best: a batch is padded to its longest row, and the Trainer's own grouping puts similar lengths together."""
    kind = partial(_GroupedTrainer, task_rows=subject.data.population.get("train", len(workload.rows)))
    return lambda: _training(subject, kind, workload.rows, subject.data.collate)


def ours(subject: Subject, workload: Workload, paths: set[str]) -> Prepare:
    """The training call of this project's pipeline; which path it took is added to `paths`."""

    def prepare() -> Callable[[], object]:
        model, config = subject.lora(), subject.config

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder:
                outcome = fit(
                    model,
                    workload.rows,
                    subject.data.collate,
                    config.train,
                    Path(folder),
                    seed=config.seed,
                    device=subject.device,
                    epochs=1,
                    learning_rate=config.train.learning_rate,
                    loss=subject.data.kind.loss(0.0),
                )
            paths.add(outcome.computed)

        return work

    return prepare


def padded(rows: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    """Return the rows, each padded on the right to `length` as `padding="max_length"` does."""
    fillers = {"input_ids": tokenizer.pad_token_id, "labels": IGNORED}  # else 0: no attention, first type

    def fill(name: str, value: Any) -> Any:
        return value + [fillers.get(name, 0)] * (length - len(value)) if isinstance(value, list) else value

    return Dataset.from_dict({name: [fill(name, value) for value in rows[name]] for name in rows.column_names})


def _training(subject: Subject, kind: Callable[..., Trainer], rows: Dataset, collate: Any) -> Callable[[], object]:
    model = subject.lora()

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = _arguments(subject, folder, len(rows))
            trainer = kind(model=model, args=arguments, train_dataset=rows, data_collator=collate)
            trainer.remove_callback(PrinterCallback)
            trainer.train()

    return work


def _arguments(subject: Subject, folder: str, rows: int) -> TrainingArguments:
    train = subject.config.train
    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=train.batch_size,
        num_train_epochs=1,
        learning_rate=train.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps(train, math.ceil(rows / train.batch_size)),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        bf16=train.precision == "bf16",
        fp16=train.precision == "fp16",
        seed=subject.config.seed,
        use_cpu=subject.device.type == "cpu",
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=subject.device.type == "cuda",
        disable_tqdm=True,
        report_to=[],
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be DataParallel, which multiplies the batch
    return arguments


def megabatch(rows: int, batch_size: int) -> int:
    """Return how many batches the Trainer's rule sorts by length at a time, in a task of that many rows."""
    return max(1, min(rows // (4 * batch_size), 50))


class _Grouping(LengthGroupedSampler):
    """The Trainer's sampler as it works on the whole task. Left to itself it would hardly group the few rows of a measured call."""

    def __init__(self, lengths: list[int], batch_size: int, batches: int):
        super().__init__(batch_size, lengths=lengths)
        self.batches = batches

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, mega_batch_mult=self.batches))


class _GroupedTrainer(Trainer):
    """The Trainer with `train_sampling_strategy="group_by_length"`, for a task that has `task_rows` rows."""

    def __init__(self, *, task_rows: int, **options: Any):
        super().__init__(**options)
        self.task_rows = task_rows

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _Grouping(row_lengths(rows), batch_size, megabatch(self.task_rows, batch_size))
