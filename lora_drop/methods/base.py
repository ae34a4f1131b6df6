"""The interface of a method: it turns a backbone into a model to train, and saves and loads the trained part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.pruning.selection import Selection

T = TypeVar("T")
HEADS = ("classifier", "score", "pre_classifier", "classification_head")
"""Names that transformers has for the head of a sequence classifier."""


@dataclass(frozen=True)
class Parameters:
    """Trainable parameters, each tensor counted once; the task's head apart, as the paper leaves it out."""

    adapter: int
    head: int


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and tensor of each trainable parameter, a shared tensor once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def count_parameters(model: nn.Module) -> Parameters:
    """Count the trainable parameters."""
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    return Parameters(sum(parameter.numel() for _, parameter in trainable(model)) - head, head)


def heads(backbone: nn.Module) -> list[str]:
    """Return the modules without pretrained weights, which every method trains: the head, and DeBERTa's pooler.

    A module that lies inside another one of them is not named: PEFT would wrap it twice, and could not load what it has
    saved.
    """
    known = [name for name in HEADS if hasattr(backbone, name)]
    return outermost({*known, *getattr(backbone, "fresh_modules", ())})


def outermost(names: Iterable[str]) -> list[str]:
    """Return the module names that lie under no other one."""
    given = set(names)
    return sorted(name for name in given if not any(name.startswith(f"{other}.") for other in given))


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of `heads`, by name: PEFT keeps them in `modules_to_save`, a plain model at its top."""
    tops = tuple(f"{name}." for name in heads(model))
    return {name: each for name, each in trainable(model) if "modules_to_save" in name or name.startswith(tops)}


def options_of(config: MethodConfig, declared: type[T]) -> T:
    """Return a method's own options, an instance of the dataclass that it declares.

    The defaults where the configuration is that of another method (`lora-drop params` counts them all under one).
    """
    given = getattr(config, "options", None)
    return given if isinstance(given, declared) else declared()


class Stepper(Protocol):
    """Work between the steps of training. Its state is part of a checkpoint."""

    def step(self, number: int) -> None:
        """Called after optimizer step `number` (from 1), while the gradients are still there."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that a continued training needs beside the trainable tensors."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` returned."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune. `build` decides what is trainable; everything else of the model is frozen."""

    name: str
    title: str
    """The name in the paper's tables."""
    build: Callable[[PreTrainedModel, MethodConfig, int, Selection | None], nn.Module]
    """`build(backbone, config, seed, selection)`: the model to train. The same seed gives the same initial weights. It is
    also asked with a backbone on the meta device, which has shapes and no values."""
    save: Callable[[nn.Module, Path], None]
    """`save(model, folder)`: write what was trained, as safetensors."""
    load: Callable[[PreTrainedModel, Path], nn.Module]
    """`load(backbone, folder)`: the trained model, trainable as before. Raises UserError for a damaged folder."""
    options: type | None = None
    """A frozen dataclass of hyper-parameters of its own, `method.options` in a configuration; see `options_of`."""
    version: int = 1
    """Raised when what it trains may change: adapters of an earlier version are made anew."""
    prepare: Callable[[nn.Module, Iterable[Mapping[str, Tensor]]], None] | None = None
    """`prepare(model, batches)`: looks at `examples` training rows, with labels, before training."""
    needs_selection: bool = False
    """True if stages 1 to 3 come first."""
    starts: bool = False
    """True if `train.start_from` may name an adapter: the method trains plain LoRAs."""
    merges: bool = True
    """True if what is trained can be added to the backbone's weights."""
    quantizes: bool = True
    """True if the backbone's weights may be quantized: it is a PEFT adapter beside them."""
    examples: int = 0
    """Rows that `prepare` needs."""
    count: Callable[[nn.Module], Parameters] = count_parameters
    """Counts what is trained."""
    stepper: Callable[[nn.Module, int], Stepper] | None = None
    """`stepper(model, steps)`: what is done after each of the `steps` optimizer steps (AdaLoRA moves ranks)."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """`penalty(model)`: what the model adds to its own loss (AdaLoRA's regulariser), to be added to any other loss."""
