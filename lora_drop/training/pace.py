"""Loss and speed of recent steps, for the screen. They are read only when shown, since reading waits for the GPU."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

ENOUGH = 10
"""Steps after which the displayed mean loss starts anew; the loss of a single step says little."""


class Window:
    """Sums over consecutive steps."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.steps = 0
        self.loss: Tensor | float = 0.0
        self.tokens: Tensor | int = 0

    def __str__(self) -> str:
        """Return the mean loss of a step and the tokens per second, in words."""
        return f"loss {float(self.loss) / self.steps:.3f}, {self.speed()}" if self.steps else ""

    def speed(self) -> str:
        """Return tokens per second, in words."""
        return f"{float(self.tokens) / max(time.monotonic() - self.began, 1e-9):,.0f} tokens/s"


class Pace:
    """Sums over the latest steps and over the epoch."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin an epoch. Called after the evaluation, so that its time is not counted."""
        self.latest, self.epoch = Window(), Window()

    def add(self, loss: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a forward and backward pass: its share of the step's loss, and its number of tokens without padding."""
        kept = batch["attention_mask"] if "attention_mask" in batch else torch.ones_like(batch["input_ids"])
        passed, tokens = loss.detach(), kept.detach().sum()
        for window in (self.latest, self.epoch):
            window.loss = window.loss + passed
            window.tokens = window.tokens + tokens

    def step(self) -> None:
        """Count an optimizer step."""
        for window in (self.latest, self.epoch):
            window.steps += 1

    def read(self) -> str:
        """Return loss and speed of the latest steps, in words. Start a new window if there were `ENOUGH` of them."""
        told = str(self.latest)
        if self.latest.steps >= ENOUGH:
            self.latest = Window()
        return told
