"""The interface of a method, which turns a backbone into a model to train, and saves and loads the trained part."""

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
"""Names of a sequence classifier's head in transformers."""


@dataclass(frozen=True)
class Parameters:
    """Numbers of trainable parameters, each tensor counted once. The head is separate, as the paper excludes it."""

    adapter: int
    head: int


def trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name and tensor of each trainable parameter, shared tensors once."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def count_parameters(model: nn.Module) -> Parameters:
    """Count the trainable parameters."""
    head = sum(parameter.numel() for parameter in head_parameters(model).values())
    return Parameters(sum(parameter.numel() for _, parameter in trainable(model)) - head, head)


def heads(backbone: nn.Module) -> list[str]:
    """Return the modules without pretrained weights, which every method trains: the head, and DeBERTa's pooler.

    A module inside another one of these is left out: PEFT would wrap it twice and could not load its own save.
    """
    known = [name for name in HEADS if hasattr(backbone, name)]
    return outermost({*known, *getattr(backbone, "fresh_modules", ())})


def outermost(names: Iterable[str]) -> list[str]:
    """Return the names of the modules that are not inside another one."""
    given = set(names)
    return sorted(name for name in given if not any(name.startswith(f"{other}.") for other in given))


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters of `heads` by name.

    PEFT keeps these modules in `modules_to_save`, a plain model at its top level.
    """
    tops = tuple(f"{name}." for name in heads(model))
    return {name: each for name, each in trainable(model) if "modules_to_save" in name or name.startswith(tops)}


def options_of(config: MethodConfig, declared: type[T]) -> T:
    """Return a method's own options, as an instance of the dataclass that it declares.

    If the configuration is for another method, return the defaults (`lora-drop params` counts all methods with one
    configuration).
    """
    given = getattr(config, "options", None)
    return given if isinstance(given, declared) else declared()


class Stepper(Protocol):
    """Work after each training step. Its state is part of a checkpoint."""

    def step(self, number: int) -> None:
        """Do the work after optimizer step `number` (from 1), before the gradients are cleared."""

    def state(self) -> dict[str, Tensor]:
        """Return everything that resuming needs besides the trainable tensors."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state returned by `state`."""


@dataclass(frozen=True)
class Method:
    """A way to fine-tune. `build` decides which parameters are trainable; the rest of the model is frozen."""

    name: str
    title: str
    """Name in the paper's tables."""
    build: Callable[[PreTrainedModel, MethodConfig, int, Selection | None], nn.Module]
    """`build(backbone, config, seed, selection)` returns the model to train. The same seed gives the same initial
    weights. The backbone may also be on the meta device, with shapes and no values."""
    save: Callable[[nn.Module, Path], None]
    """`save(model, folder)` writes the trained tensors as safetensors."""
    load: Callable[[PreTrainedModel, Path], nn.Module]
    """`load(backbone, folder)` returns the trained model, trainable as before, or raises UserError if it is damaged."""
    options: type | None = None
    """A frozen dataclass of the method's own hyper-parameters, `method.options` in configurations; see `options_of`."""
    version: int = 1
    """Increased when the trained result may change; adapters of an earlier version are trained again."""
    prepare: Callable[[nn.Module, Iterable[Mapping[str, Tensor]]], None] | None = None
    """`prepare(model, batches)` reads `examples` training rows, with labels, before training."""
    needs_selection: bool = False
    """True if stages 1 to 3 have to run first."""
    starts: bool = False
    """True if `train.start_from` may name an adapter, because the method trains plain LoRAs."""
    merges: bool = True
    """True if the trained update can be merged into the backbone's weights."""
    quantizes: bool = True
    """True if the backbone's weights may be quantized, because the method is a PEFT adapter beside them."""
    examples: int = 0
    """Number of rows that `prepare` needs."""
    count: Callable[[nn.Module], Parameters] = count_parameters
    """Counts the trainable parameters."""
    stepper: Callable[[nn.Module, int], Stepper] | None = None
    """`stepper(model, steps)` returns the work after each of the `steps` optimizer steps (AdaLoRA moves ranks)."""
    penalty: Callable[[nn.Module], Tensor] | None = None
    """`penalty(model)` returns the term that the model adds to its own loss (AdaLoRA's regulariser). Code that computes
    another loss has to add it."""
