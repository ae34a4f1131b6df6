"""The interface of a criterion: given a model and data, it returns one number per LoRA."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from lora_drop.pruning.adapters import Lora
    from lora_drop.pruning.importance import Packer

PAPER = "output"
"""The paper's criterion, which is assumed for saved scores that name none."""


@dataclass(frozen=True)
class Given:
    """A warmed-up model, and the data on which its LoRAs are scored."""

    model: nn.Module
    layers: Mapping[str, Lora]
    """The LoRAs to score, by module name."""
    batches: Iterable[Mapping[str, Any]]
    """Keyword arguments of the model's forward; read once."""
    seed: int = 0
    per_example: bool = False
    """True to also return the value of each example."""
    progress: Callable[[int], None] | None = None
    """Called with the number of examples seen, after each batch."""
    packing: Packer | None = None
    """Runs forward passes without padding; None runs the model as it is."""


@dataclass
class Measured:
    """The result of a criterion."""

    values: dict[str, float] = field(default_factory=dict)
    """A number ≥ 0 for each of the given LoRAs."""
    examples: int = 0
    """Number of rows read; 0 if the criterion reads no data."""
    tokens: int = 0
    norms: dict[str, list[float]] | None = None
    """By module, the value of each example, in the order of the data; their mean is the value of the LoRA."""

    def __add__(self, other: Measured) -> Measured:
        """Return the result on both sets of data, for a criterion whose value is a mean over examples."""
        examples = self.examples + other.examples

        def mean(name: str) -> float:
            parts = (each.values.get(name, 0.0) * each.examples for each in (self, other))
            return sum(parts) / max(examples, 1)

        norms = None
        if self.norms is not None and other.norms is not None:
            norms = {name: values + other.norms[name] for name, values in self.norms.items()}
        values = {name: mean(name) for name in {**self.values, **other.values}}
        return Measured(values, examples, self.tokens + other.tokens, norms)


@dataclass(frozen=True)
class Criterion:
    """A way to score LoRAs."""

    name: str
    title: str
    """Short title for tables and figures."""
    measure: Callable[[Given], Measured]
    version: int = 1
    """Increased when the numbers may change; scores of an earlier version are computed again."""
    reads: bool = True
    """False if it reads no data."""
    additive: bool = False
    """True if a value is the mean over examples, so that it can be bootstrapped; `measure` then returns `norms` on
    request."""
