"""Experiment trackers that receive losses and metrics (`train.report_to`). None of them changes a result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from lora_drop.errors import UserError


@dataclass(frozen=True)
class Trackers:
    """The trackers of one training."""

    names: Sequence[str]
    """Names from `config.schema.TRACKERS`."""
    run: str
    """Name of this training in the trackers."""
    folder: Path
    """Folder for TensorBoard's files."""

    @contextmanager
    def watching(self, trainer: Trainer) -> Iterator[None]:
        """Send the losses and metrics of training inside the context to the trackers; their output goes to stderr."""
        trainer.args.run_name = self.run
        with redirect_stdout(sys.stderr):
            for name in self.names:
                trainer.add_callback(self._callback(name))
            try:
                yield
            finally:
                self._close()

    def _callback(self, name: str) -> TrainerCallback:
        if name != "tensorboard":
            (made,) = get_reporting_integration_callbacks([name])
            return made()
        from torch.utils.tensorboard import SummaryWriter  # imported late: it may not be installed

        return TensorBoardCallback(SummaryWriter(str(self.folder)))

    def _close(self) -> None:
        """Finish the run of Weights & Biases: transformers leaves it open, and the next training would join it."""
        if "wandb" in self.names and "wandb" in sys.modules:
            sys.modules["wandb"].finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise UserError if a tracker is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UserError(
            f"train.report_to names {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install {' '.join(missing)}"
        )
