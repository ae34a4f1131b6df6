"""Loss and speed of the steps under way, for the screen. They are read when they are shown: a GPU is not waited for before."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

ENOUGH = 10
"""Steps whose mean loss is shown: one alone says little."""


class Window:
    """Sums over some steps in a row."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.steps = 0
        self.loss: Tensor | float = 0.0
        self.tokens: Tensor | int = 0

    def __str__(self) -> str:
        """Mean loss of a step and tokens per second."""
        return f"loss {float(self.loss) / self.steps:.3f}, {self.speed()}" if self.steps else ""

    def speed(self) -> str:
        """Return tokens per second, in words."""
        return f"{float(self.tokens) / max(time.monotonic() - self.began, 1e-9):,.0f} tokens/s"


class Pace:
    """The latest steps, and those of the epoch."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin an epoch: after an evaluation, whose time is none of it."""
        self.latest, self.epoch = Window(), Window()

    def add(self, loss: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add a forward and backward pass: its share of the step's loss, and its tokens without padding."""
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
        """Return loss and speed of the latest steps, in words; the next ones are counted anew if these are enough."""
        told = str(self.latest)
        if self.latest.steps >= ENOUGH:
            self.latest = Window()
        return told
