"""Training checkpoints: atomic, verified by digest, and without a pickle.

A checkpoint is first written next to the others under a temporary name that is never read. Once all its files are on
disk, with a manifest that has a digest of each, the folder gets its final name in one rename. A checkpoint that does
not match its manifest is not used: training resumes from the one before, or starts again.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainerState

from lora_drop import processes
from lora_drop.files import digests_below, read_json, remove, sweep, write_folder, write_json
from lora_drop.methods.base import Stepper, trainable
from lora_drop.progress import Reporter
from lora_drop.training.nested import load_nested, save_nested

WEIGHTS = "trainable.safetensors"
STEPPER = "stepper.safetensors"
STATE = "state.safetensors"
"""File with the states of the optimizer, the schedule, and the fp16 gradient scaler."""
RANDOM = "random.safetensors"
OTHERS = "others"
"""Key in RANDOM for the random states of all processes except the first."""
MANIFEST = "manifest.json"
PROGRESS = "trainer_state.json"
"""transformers' own file: the step, and the log up to it."""


def path_of(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"checkpoint-{step}"


def load_trainable(model: nn.Module, path: Path) -> None:
    """Copy saved tensors into the trainable parameters with the same names."""
    stored = load_file(path)
    with torch.no_grad():
        for name, parameter in trainable(model):
            parameter.copy_(stored[name])


def fault_of(path: Path) -> str:
    """Return a description of how a checkpoint differs from its manifest; empty if it does not."""
    try:
        written = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        found = digests_below(path)
    except (OSError, ValueError, RecursionError):
        return "its manifest cannot be read"
    if not isinstance(written, dict):
        return "its manifest is damaged"
    found.pop(MANIFEST, None)
    names = sorted(name for name in {*written, *found} if written.get(name) != found.get(name))
    return f"{', '.join(names)} changed after the checkpoint was written" if names else ""


def checkpointed_steps(folder: Path) -> list[int]:
    """Return the steps that have a checkpoint, damaged ones included, newest first."""
    found = (re.fullmatch(r"checkpoint-(\d{1,18})", path.name) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]) for match in found if match), reverse=True)


def newest(folder: Path, report: Reporter, best: bool) -> Path | None:
    """Return the newest checkpoint that training can continue from. Remove damaged ones, with a notice.

    With `best`, the checkpoint of the best epoch so far must be intact, too: its weights may be the ones kept in the
    end.
    """
    sweep(folder)
    faults = {step: fault_of(path_of(folder, step)) for step in checkpointed_steps(folder)}
    whole = [step for step, fault in faults.items() if not fault]
    for step in list(whole):
        kept = read_json(path_of(folder, step) / PROGRESS).get("best_global_step") if best else None
        if kept and kept not in whole:
            faults[step] = f"the best epoch so far, checkpoint-{kept}, is missing or damaged"
            whole.remove(step)
    for step, fault in faults.items():
        if fault:
            report.notice(f"checkpoint-{step} is not used: {fault}")
            remove(path_of(folder, step))
    if any(faults.values()):
        report.notice(f"training continues from checkpoint-{whole[0]}" if whole else "training starts again")
    return path_of(folder, whole[0]) if whole else None


def retire(folder: Path, best: int | None) -> None:
    """Remove all checkpoints except the newest and one more.

    The second one is the best; if the newest is the best, or none is, it is the one before the newest.
    """
    older = checkpointed_steps(folder)[1:]
    second = best if best in older else max(older, default=None)
    for step in older:
        if step != second:
            remove(path_of(folder, step))


class Checkpointed(Trainer):
    """The Trainer with this module's checkpoints, which hold each trainable tensor once instead of the whole model."""

    def __init__(self, *, stepper: Stepper | None, **options: Any):
        super().__init__(**options)
        self.stepper = stepper
        self.trained: nn.Module = options["model"]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Let the first process write a checkpoint, with the random states of all processes."""
        random_states = processes.everywhere(self._random_states())
        processes.by_first(lambda: self._write(random_states))

    def _write(self, random_states: list[dict[str, Any]]) -> None:
        folder = Path(str(self.args.output_dir))
        with write_folder(path_of(folder, self.state.global_step)) as made:
            self._save(str(made))
            save_nested({name: each.state_dict() for name, each in self._states().items()}, made / STATE)
            save_nested({**random_states[0], OTHERS: random_states[1:]}, made / RANDOM)
            self.state.save_to_json(str(made / PROGRESS))
            write_json(made / MANIFEST, digests_below(made))
        retire(folder, self.state.best_global_step)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(str(output_dir))
        save_file({name: tensor.detach().contiguous() for name, tensor in trainable(self.trained)}, folder / WEIGHTS)
        if self.stepper is not None:
            save_file(self.stepper.state(), folder / STEPPER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        load_trainable(self.trained, folder / WEIGHTS)
        if self.stepper is not None:
            self.stepper.restore(load_file(folder / STEPPER))

    def restored(self, checkpoint: Path) -> bool:
        """Return True if a checkpoint is that of the last step, whose weights and log the Trainer then has.

        Otherwise nothing is changed. (The Trainer itself would train a step before it looks at their number.)
        """
        state = TrainerState.load_from_json(str(checkpoint / PROGRESS))
        if state.global_step < self.args.max_steps:
            return False
        self._load_from_checkpoint(str(checkpoint))
        self.state = state
        return True

    def _states(self) -> dict[str, Any]:
        """Return the optimizer, the schedule and the scaler, by name, as far as they exist."""
        scaler = getattr(self.accelerator, "scaler", None)
        found = {"optimizer": self.optimizer, "schedule": self.lr_scheduler, "scaler": scaler}
        return {name: each for name, each in found.items() if each is not None}

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            stored = load_nested(Path(checkpoint) / STATE)
            for name, each in self._states().items():
                if name in stored:  # a CPU has no scaler
                    each.load_state_dict(stored[name])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Do nothing: the scaler is loaded with the optimizer."""

    def _random_states(self) -> dict[str, Any]:
        """Return the states of this process's random number generators."""
        name, words, *rest = cast(tuple[Any, ...], np.random.get_state(legacy=True))
        states = {"python": random.getstate(), "numpy": (name, words.tolist(), *rest), "cpu": torch.get_rng_state()}
        if self.args.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.args.device)
        return states

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        first = load_nested(Path(checkpoint) / RANDOM)
        of_each = [first, *first.get(OTHERS, [])]
        if processes.rank() >= len(of_each):  # fewer processes wrote it: this one keeps its seed
            return
        states = of_each[processes.rank()]
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.set_rng_state(states["cpu"])
        if self.args.device.type == "cuda" and "cuda" in states:  # if a CPU wrote it, the GPU keeps its seed
            torch.cuda.set_rng_state(states["cuda"], self.args.device)
