"""The outcome of stage 2 as an object: every LoRA with its importance."""

from __future__ import annotations

from dataclasses import dataclass

from lora_drop.pruning.criteria.base import PAPER
from lora_drop.pruning.selection import Scored


@dataclass(frozen=True)
class Scores:
    """The importance of every LoRA; `rows` in model order."""

    rows: tuple[Scored, ...]
    examples: int
    tokens: int
    norms: dict[str, list[float]] | None = None
    """Per module, the value of each example (‖ΔW x‖² for the paper's criterion), if asked for."""
    left_out: tuple[str, ...] = ()
    """Modules with a LoRA outside the numbered blocks (a pooler, a language model's head), which are no layers."""
    criterion: str = PAPER
    """The name of the criterion that gave the scores."""
