"""Training of the warm-up and of the final model, with transformers' Trainer.

It differs from a stock Trainer in four ways:

- Rows are grouped by length, in an order that depends only on seed and epoch, so that a resumed run sees the same
  batches.
- A batch is computed without padding where the model allows it (`packing/`).
- Checkpoints come from `checkpoints.py`: small, atomic, and without a pickle.
- A signal to end (Ctrl-C, SIGTERM, SIGHUP) first writes a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from datasets import Dataset
from torch import nn
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback

from lora_drop import processes
from lora_drop.config.schema import TrainConfig
from lora_drop.data.batches import LengthGroups, MicroBatches, row_lengths, split_batch
from lora_drop.data.sentences import Collate
from lora_drop.interruption import first_signal, raise_for
from lora_drop.methods.base import Method, head_parameters
from lora_drop.progress import SILENT, Reporter
from lora_drop.training.checkpoints import WEIGHTS, Checkpointed, load_trainable, newest, path_of
from lora_drop.training.history import History, Outcome
from lora_drop.training.loader import WEIGHT, loader
from lora_drop.training.trackers import Trackers
from lora_drop.training.way import Way, find_way

SEEDS = 1_000_003
"""Difference between the seeds of consecutive processes."""
Loss = Callable[..., torch.Tensor]
"""`loss(outputs, labels, num_items_in_batch)`: the share of one forward pass in the loss of the whole batch.

`num_items_in_batch` is the number of labels in the whole batch.
"""


@dataclass(frozen=True)
class Validation:
    """The evaluation after each epoch."""

    metrics: Callable[[nn.Module], dict[str, float]]
    """`metrics(model)` returns the values that are recorded."""
    primary: str
    """The metric that tells the best epoch: the one with the highest value."""


def fit(
    method: Method,
    model: nn.Module,
    rows: Dataset,
    collate: Collate,
    config: TrainConfig,
    folder: Path,
    *,
    seed: int,
    steps: int | None = None,
    loss: Loss | None = None,
    validation: Validation | None = None,
    way: Way | None = None,
    trackers: Trackers | None = None,
    report: Reporter = SILENT,
) -> Outcome:
    """Train the trainable parameters of `model` in place. Continue from the last valid checkpoint in `folder`, if any.

    Args:
        method: The method that built the model. Its penalty is added to `loss`, and its stepper works after each step.
        model: The model, on its device; its parameters with `requires_grad` are trained.
        rows: Tokenised rows (`input_ids`, `labels`, …).
        collate: Makes a batch of rows.
        config: Epochs, learning rate, batch size and all other training settings.
        folder: Folder for checkpoints.
        seed: Seed of the row order and of dropout.
        steps: Exact number of optimizer steps, instead of `config.epochs`.
        loss: The loss to minimise. None is the model's own, which must be a mean over the examples of a batch.
        validation: Evaluation after each epoch. The best epoch is kept, unless `config.select_epoch == "last"`.
        way: How the model is computed; None finds it.
        trackers: Receive losses and metrics.
        report: Receives progress.

    Raises:
        UserError: If the batch size cannot be split over the devices, or training diverges.
        KeyboardInterrupt: After Ctrl-C, once a checkpoint has been written.
        Stopped: After SIGTERM or SIGHUP, once a checkpoint has been written.
    """
    way = way or find_way(model, rows, collate, config, loss)
    if way.packing is None and config.packing == "auto":
        report.notice(f"batches are computed {way.padding}")
    total = steps or steps_of(config, len(rows))
    best = validation.primary if validation and config.select_epoch != "last" else None
    stepper = method.stepper(model, total) if method.stepper else None
    history = History(report, total, math.ceil(len(rows) / config.batch_size), config.save_steps, stepper)
    trainer = _Trainer(
        config,
        model=model,
        args=_arguments(config, folder, seed, way.device, total, validation is not None, best),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        compute_loss_func=loss,
        penalty=method.penalty,
        stepper=stepper,
        history=history,
        validation=validation,
        way=way,
    )
    start = processes.by_first(lambda: newest(folder, report, best=best is not None))
    try:
        _train(trainer, start, trackers)
    finally:
        way.forget()
    state = trainer.state
    kept = state.best_global_step if best and state.best_global_step else state.global_step
    if kept != state.global_step:
        load_trainable(model, path_of(folder, kept) / WEIGHTS)
    return history.outcome(state, kept, str(way))


def _train(trainer: _Trainer, start: Path | None, trackers: Trackers | None) -> None:
    """Train from `start`, or from scratch. On a signal, write a checkpoint and raise KeyboardInterrupt or Stopped."""
    history = trainer.history
    if start and trainer.restored(start):
        return
    if processes.rank():  # the Trainer gave all processes the same seed; different rows need different dropout
        torch.manual_seed(trainer.args.seed + SEEDS * processes.rank())
    with first_signal(history.interrupt), ExitStack() as last:
        if trackers and trackers.names and processes.rank() == 0:
            last.enter_context(trackers.watching(trainer))
        trainer.train(resume_from_checkpoint=str(start) if start else None)
    raise_for(processes.highest(history.interrupted))


def steps_of(config: TrainConfig, rows: int) -> int:
    """Return the number of optimizer steps of a training on `rows` rows."""
    return math.ceil(config.epochs * math.ceil(rows / config.batch_size))


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Return the number of steps in which the learning rate rises.

    A configured number is capped at half of `total`, for runs with a step limit.
    """
    if config.warmup_steps is None:
        return math.ceil(config.warmup_ratio * total)
    return min(config.warmup_steps, math.ceil(total / 2))


def _arguments(
    config: TrainConfig,
    folder: Path,
    seed: int,
    device: torch.device,
    steps: int,
    evaluated: bool,
    best: str | None,
) -> TrainingArguments:
    at_a_time, accumulation = split_batch(config.batch_size, config.device_batch_size, processes.size())
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=at_a_time,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        warmup_steps=warmup_steps(config, steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        fp16=config.precision == "fp16",
        seed=seed,
        use_cpu=device.type == "cpu",
        eval_strategy="epoch" if evaluated else "no",
        save_strategy="epoch",
        logging_strategy="steps" if config.logging_steps else "epoch",
        logging_steps=config.logging_steps or 500,  # transformers' default; unused when logging per epoch
        logging_nan_inf_filter=False,
        # the Trainer records the best epoch; `fit` loads it, since the Trainer would load it after Ctrl-C, too
        metric_for_best_model=best,
        greater_is_better=True if best else None,
        dataloader_pin_memory=device.type == "cuda",
        disable_tqdm=True,
        report_to=[],
        ddp_find_unused_parameters=False,
        **_checkpointing(config.gradient_checkpointing),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # more would be DataParallel, which multiplies the batch
    return arguments


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Return the arguments that turn on activation checkpointing, under the installed transformers' name for it."""
    known = TrainingArguments.__dataclass_fields__
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    # the reentrant kind needs inputs with gradients, which the output of a frozen embedding does not have
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


class _Trainer(Checkpointed):
    """The Trainer with its own row order and evaluation, and batches without padding."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        penalty: Callable[[nn.Module], torch.Tensor] | None,
        history: History,
        validation: Validation | None,
        way: Way,
        **options: Any,
    ):
        super().__init__(callbacks=[history], **options)
        self.remove_callback(PrinterCallback)  # `History` reports instead
        self.config, self.penalty, self.history, self.validation, self.way = config, penalty, history, validation, way
        # A sequence classifier's loss is a mean over its batch and ignores the number of items that the Trainer passes.
        # Without this line the Trainer would not divide by the accumulation steps, and gradients would be that many
        # times too large. `compute_loss_func` gets the number of items regardless of this setting and is not divided.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoaderShard:
        rows: Any = self._remove_unused_columns(self.train_dataset, description="training")
        order = LengthGroups(row_lengths(rows), self.config.batch_size, self.args.seed)
        parts = MicroBatches(order, self.args.per_device_train_batch_size, processes.size(), processes.rank())
        summed, pin = self.compute_loss_func is not None, self.args.dataloader_pin_memory
        return loader(rows, self.data_collator, parts, summed, self.args.device, pin)

    def create_optimizer(self, *options: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*options)
        if self.config.head_learning_rate is not None:
            heads = set(head_parameters(self.trained).values())
            for group in list(optimizer.param_groups):
                head = [parameter for parameter in group["params"] if parameter in heads]
                group["params"] = [parameter for parameter in group["params"] if parameter not in heads]
                optimizer.add_param_group({**group, "params": head, "lr": self.config.head_learning_rate})
        return optimizer

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *options: Any, **named: Any) -> Any:
        weight = inputs.pop(WEIGHT)
        loss = super().compute_loss(model, inputs, *options, **named)
        if self.compute_loss_func is None:
            return weight * loss
        if self.penalty is None:
            return loss
        return loss + self.penalty(self.trained) / self.current_gradient_accumulation_steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *options: Any, **named: Any) -> torch.Tensor:
        # the next replay overwrites this one's gradients, so they cannot be accumulated
        with self.way.step(inputs, learns=self.args.gradient_accumulation_steps == 1):
            loss = super().training_step(model, inputs, *options, **named)
        self.history.pace.add(loss, inputs)
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.validation is not None
        metrics = {f"eval_{name}": value for name, value in self.validation.metrics(self.trained).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
