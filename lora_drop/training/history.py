"""The history of a training: records of its epochs, progress reports, and the signal that ends it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from lora_drop import processes
from lora_drop.errors import UserError
from lora_drop.methods.base import Stepper
from lora_drop.progress import Reporter
from lora_drop.training.pace import Pace


@dataclass(frozen=True)
class Outcome:
    """The result of a training, apart from the weights in the model."""

    epochs: list[dict[str, float]]
    """Per epoch: `epoch`, `loss` (mean over its steps, or over those since an interruption) and any metrics."""
    kept_epoch: float
    """The epoch of the weights that the model holds."""
    steps: int
    losses: list[float]
    """Logged losses: one per `logging_steps` steps if set, else one per epoch."""
    computed: str
    """How batches were computed: packed, or padded and the reason."""


class History(TrainerCallback):
    """Records each epoch, reports progress, and turns a signal into a checkpoint and a stop."""

    def __init__(
        self,
        report: Reporter,
        steps: int,
        steps_per_epoch: int,
        save_steps: int | None,
        stepper: Stepper | None = None,
    ):
        self.report, self.steps_per_epoch, self.save_steps, self.stepper = report, steps_per_epoch, save_steps, stepper
        self.epochs = steps / steps_per_epoch
        self.pace = Pace()
        self.interrupted = 0
        """Number of the signal that asked training to end; 0 if none did."""
        self.speed = ""
        """Speed of the last epoch, in words."""
        self.cut = False

    def interrupt(self, number: int) -> None:
        """Ask training to write a checkpoint and end; a second signal ends it at once."""
        self.interrupted = number

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Let the method do its work between the steps."""
        if self.stepper is not None:
            self.stepper.step(state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report the step; write a checkpoint if one is due or a signal came."""
        self.pace.step()
        epoch = math.ceil(state.global_step / self.steps_per_epoch)

        best = "" if state.best_metric is None else f", best {state.best_metric:.4f}"
        self.report.advance(
            state.global_step,
            state.max_steps,
            lambda: f"steps, epoch {epoch} of {self.epochs:g}{best}, {self.pace.read()}",
        )
        if self._ends_epoch(state):
            return  # the epoch's evaluation comes first: its checkpoint implies that the epoch is complete
        if self.save_steps and state.global_step % self.save_steps == 0:
            control.should_save = True
        if processes.highest(self.interrupted):  # all processes end after the same step
            self.cut = control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Log the epoch; end training if a signal came."""
        self.speed = self.pace.epoch.speed()
        control.should_log = True  # even if losses are logged within the epoch, so that the epoch's loss is known
        if self.cut:  # an incomplete epoch must not be evaluated: it could be kept as the best
            control.should_evaluate = control.should_log = control.should_save = False
        if processes.highest(self.interrupted):
            control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Report a completed epoch."""
        if self._ends_epoch(state):  # the evaluation has run by now
            values = self._records(state)[-1]
            shown = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "epoch")
            self.report.milestone(f"epoch {values['epoch']:g} of {self.epochs:g}: {shown}, {self.speed}")
            self.pace.restart()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **event: Any) -> None:
        """Raise UserError if training has diverged."""
        loss = event["logs"].get("loss", 0.0)
        if not math.isfinite(loss):
            raise UserError(
                f"The loss is {loss} in epoch {state.epoch:g}: training diverged. Lower train.learning_rate."
            )

    def outcome(self, state: TrainerState, kept_step: int, computed: str) -> Outcome:
        """Return the outcome, read from the Trainer's log, which survives a resume."""
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        return Outcome(self._records(state), self._epoch(kept_step), state.global_step, losses, computed)

    def _records(self, state: TrainerState) -> list[dict[str, float]]:
        """Return the values of each epoch. The loss is the mean over its steps, however often it was logged."""
        found: dict[int, dict[str, float]] = {}
        counted: Counter[int] = Counter()
        before = 0
        for entry in state.log_history:
            step = int(entry["step"])
            metrics = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
            if not metrics and "loss" not in entry:
                continue
            number = math.ceil(step / self.steps_per_epoch)
            record = found.setdefault(number, {})
            record |= {"epoch": self._epoch(step), **metrics}
            if "loss" in entry:
                counted[number] += step - before
                mean = record.get("loss", 0.0)
                record["loss"] = mean + (entry["loss"] - mean) * ((step - before) / counted[number])
                before = step
        return list(found.values())

    def _ends_epoch(self, state: TrainerState) -> bool:
        return state.global_step % self.steps_per_epoch == 0 or state.global_step >= state.max_steps

    def _epoch(self, step: int) -> float:
        return round(step / self.steps_per_epoch, 4)
