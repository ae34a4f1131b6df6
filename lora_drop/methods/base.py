"""What a method is: it turns a backbone into a model to train, and can save and load what was trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config import MethodConfig
from lora_drop.selection import Selection

HEADS = ("classifier", "score", "pre_classifier", "classification_head")
"""What transformers calls the head of a sequence classifier."""


@dataclass(frozen=True)
class Parameters:
    """Trainable parameters, each tensor counted once; the task's head apart, as the paper leaves it out."""

    adapter: int
    head: int


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield name and tensor of each trainable parameter, a shared tensor once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def count_parameters(model: nn.Module) -> Parameters:
    """Count the trainable parameters. The head is what was not pretrained: `classifier` or `score` at the top of the model."""
    head = adapter = 0
    for name, parameter in trainable(model):
        if is_head(name):
            head += parameter.numel()
        else:
            adapter += parameter.numel()
    return Parameters(adapter, head)


def heads(backbone: PreTrainedModel) -> list[str]:
    """Return the modules without pretrained weights, which every method trains: the task's head, in DeBERTa the pooler, too.

    A module that lies inside another one of them is not named: PEFT would wrap it twice, and could not load what it has saved.
    """
    known = [name for name in HEADS if hasattr(backbone, name)]
    return outermost({*known, *getattr(backbone, "fresh_modules", ())})


def outermost(names: Iterable[str]) -> list[str]:
    """Return the module names that lie under no other one."""
    given = set(names)
    return sorted(name for name in given if not any(name.startswith(f"{other}.") for other in given))


def is_head(name: str) -> bool:
    """Whether a parameter belongs to the task's head: PEFT keeps heads in `modules_to_save`, a plain model in a top module of that name."""
    return "modules_to_save" in name or name.split(".")[0] in HEADS


class Stepper(Protocol):
    """What a method does between the steps of training. Its state is part of a checkpoint."""

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
    """`build(backbone, config, seed, selection)`: the model to train. The same seed gives the same initial weights."""
    save: Callable[[nn.Module, Path], None]
    """`save(model, folder)`: write what was trained, as safetensors."""
    load: Callable[[PreTrainedModel, Path], nn.Module]
    """`load(backbone, folder)`: the trained model, trainable as before it was saved. Raises UserError for a damaged folder."""
    version: int = 1
    """Raised when what it trains may change: adapters of an earlier version do not stand."""
    needs_selection: bool = False
    """Whether stages 1 to 3 come first."""
    prepare: Callable[[nn.Module, Iterable[Mapping[str, Tensor]]], None] | None = None
    """`prepare(model, batches)`: what looks at `examples` training rows, with labels, before training."""
    starts: bool = False
    """Whether `train.start_from` may name an adapter to start from: it trains plain LoRAs."""
    examples: int = 0
    """How many rows `prepare` wants."""
    count: Callable[[nn.Module], Parameters] = count_parameters
    """Counts what is trained."""
    stepper: Callable[[nn.Module, int], Stepper] | None = None
    """`stepper(model, steps)`: what is to be done after each of the `steps` optimizer steps (AdaLoRA moves ranks between layers)."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """`penalty(model)`: what the model adds to its own loss (AdaLoRA's regulariser); added to the loss where that is not the model's own."""
