"""Passes over the data shared by several criteria: sums over the tokens of each example, and gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_drop.errors import UserError
from lora_drop.pruning.criteria.base import Given, Measured
from lora_drop.pruning.importance import observe, wide
from lora_drop.pruning.observation import View, eval_mode, examples_in


def sums_of_examples(given: Given, view: View, value: Callable[[Tensor], Tensor]) -> Measured:
    """Run the model over the data and average a value per example.

    Args:
        given: the model and the data.
        view: `view(lora, x)` returns n numbers per token (`*batch n`) from the input of a module.
        value: computes the value of each example (`batch`) from the sums of these numbers over its tokens (`batch n`).
    """
    norms: dict[str, list[float]] = {name: [] for name in given.layers}
    sums: dict[str, Tensor] = {}  # of the current batch, over the calls of each module

    def add(name: str, numbers: Tensor) -> None:
        of_call = wide(numbers.sum(dim=1))
        sums[name] = sums[name] + of_call if name in sums else of_call

    def end() -> None:
        for name, of_batch in sums.items():
            norms[name] += value(of_batch).tolist()
        sums.clear()

    examples, tokens = observe(given, view, add, end)
    values = {name: sum(each) / max(len(each), 1) for name, each in norms.items()}
    return Measured(values, examples, tokens, norms if given.per_example else None)


@dataclass(frozen=True)
class Gradients:
    """Gradients of the loss, summed over some examples."""

    gradients: list[tuple[nn.Parameter, Tensor]]
    """Each LoRA parameter that the loss depends on, once, with its gradient."""
    examples: int
    tokens: int


def gradients(given: Given, one_by_one: bool = False) -> Iterator[Gradients]:
    """Yield the gradients of each batch, or of each example, without dropout. The model's state is restored at the end.

    Raise UserError for a batch without labels, and for a model that computes no loss from them.
    """
    parameters = list({id(each): each for lora in given.layers.values() for each in lora.tensors}.values())
    device = next(given.model.parameters()).device
    seen, shifted = 0, None
    with _learning(given.model, parameters):
        for batch in given.batches:
            if batch.get("labels") is None:
                raise UserError(
                    "This criterion needs the gradient of the loss, and the batches have no labels. Add them to each batch, or "
                    "choose a criterion that reads inputs alone: output."
                )
            moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
            rows = examples_in(moved)
            if shifted is None:
                shifted = _leaves_first_out(given.model, moved)
            for part in _rows(moved, rows) if one_by_one else [moved]:
                yield _gradients(given.model, parameters, part, shifted)
                seen += examples_in(part)
                if given.progress:
                    given.progress(seen)


def summed_gradients(given: Given) -> Gradients:
    """Return the gradients of the loss, summed over all the data; see `gradients`."""
    sums: dict[nn.Parameter, Tensor] = {}
    examples = tokens = 0
    for part in gradients(given):
        for parameter, gradient in part.gradients:
            sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient
        examples, tokens = examples + part.examples, tokens + part.tokens
    return Gradients(list(sums.items()), examples, tokens)


def _gradients(model: nn.Module, parameters: list[nn.Parameter], inputs: dict[str, Any], shifted: bool) -> Gradients:
    with torch.inference_mode(mode=False), torch.enable_grad():  # the caller may be in either
        inputs = {key: _ordinary(value) for key, value in inputs.items()}
        loss = getattr(model(**inputs), "loss", None)
        if loss is None:
            raise UserError(
                f"{type(model).__name__} computes no loss from labels. Choose a criterion that reads inputs alone: output."
            )
        found = torch.autograd.grad(loss.float() * _counted(inputs["labels"], shifted), parameters, allow_unused=True)
    known = [
        (each, gradient.detach()) for each, gradient in zip(parameters, found, strict=True) if gradient is not None
    ]
    mask = inputs.get("attention_mask")
    tokens = int((mask != 0).sum()) if mask is not None else int(inputs.get("input_ids", torch.empty(0)).numel())
    return Gradients(known, examples_in(inputs), tokens)


def _ordinary(value: Any) -> Any:
    """Return a value that autograd may save: a copy of a tensor that was made in inference mode."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _counted(labels: Tensor, shifted: bool) -> int:
    """Return the number of items that the model's loss averages over: examples, or learned tokens (not -100)."""
    if not _of_tokens(labels):
        return len(labels)
    return int(((labels[:, 1:] if shifted else labels) != -100).sum())


def _of_tokens(labels: Tensor) -> bool:
    return labels.ndim > 1 and not labels.is_floating_point()


def _leaves_first_out(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return True if the loss does not count the first token of a row.

    Most decoders shift labels themselves, so that the first token is never predicted. Some expect labels that are
    already shifted. No attribute tells these apart, but the loss of the first tokens alone does.
    """
    labels = inputs["labels"]
    if not _of_tokens(labels):
        return False
    first = labels.clone()
    first[:, 0] = first[:, 0].clamp(min=0)
    first[:, 1:] = -100
    with torch.no_grad():
        loss = getattr(model(**{**inputs, "labels": first}), "loss", None)
    return loss is None or not bool(loss.isfinite() & (loss != 0))


def _rows(inputs: Mapping[str, Any], rows: int) -> Iterator[dict[str, Any]]:
    for row in range(rows):
        yield {
            key: value[row : row + 1] if isinstance(value, Tensor) and value.ndim and len(value) == rows else value
            for key, value in inputs.items()
        }


@contextmanager
def _learning(model: nn.Module, parameters: list[nn.Parameter]) -> Iterator[None]:
    """Put the model into eval mode and require gradients of these parameters only, inside the context."""
    learnt = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        with eval_mode(model):
            yield
    finally:
        for parameter, learns in learnt.items():
            parameter.requires_grad_(learns)
