"""Stage 2: score each LoRA by how strongly its output moves the frozen model (paper §3.1), or by another criterion.

The score of LoRA i is g_i = mean over the sample of ‖ΔW_i x_i‖² with ΔW_i = scaling · B_i A_i, summed over the tokens
of an example (paper eq. 3). With z = A x (r numbers per token) and the Gram matrix C = Σ z zᵀ (r × r) over all real
tokens,

    Σ ‖scaling · B A x‖² = Σ zᵀ M z = ⟨C, M⟩    with M = scaling² · Bᵀ B.

So nothing as wide as the model is ever kept, padding is excluded exactly, and C can be summed over batches, files and
machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_drop.errors import UserError
from lora_drop.pruning.adapters import Lora, loras, product, unscorable
from lora_drop.pruning.criteria.base import Criterion, Given, Measured
from lora_drop.pruning.criteria.output import CRITERION as OUTPUT
from lora_drop.pruning.observation import Add, Layout, Observer, View, examples_in
from lora_drop.pruning.places import all_places
from lora_drop.pruning.scores import Scored, Scores, rescored


@runtime_checkable
class Packer(Protocol):
    """A way to run a batch without padding (`training.packing`)."""

    def over(self, batch: Mapping[str, Tensor], whole: bool = False) -> AbstractContextManager[Layout | None]:
        """Return a context in which the model runs `batch` packed; if `whole`, it computes every token."""


@dataclass
class Moments:
    """The sums collected in a pass over the data."""

    gram: dict[str, Float[Tensor, "rank rank"]] = field(default_factory=dict)
    """C = Σ z zᵀ per module, float64, on the CPU."""
    examples: int = 0
    tokens: int = 0
    norms: dict[str, list[float]] | None = None
    """‖ΔW x‖² of each example per module, in the order of the data; None unless requested."""


def score(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    criterion: Criterion = OUTPUT,
    per_example: bool = False,
    progress: Callable[[int], None] | None = None,
    packing: Packer | None = None,
    seed: int = 0,
    total: Callable[[Measured], Measured] | None = None,
) -> Scores:
    """Score every active LoRA of a PEFT model. `lora_drop.score` calls this and documents the remaining arguments.

    Args:
        batches: keyword arguments of the model's forward: `input_ids` (`batch seq`), or `inputs_embeds`, `pixel_values`
            and the like, and `attention_mask` (`batch seq`), nonzero at real tokens. A batch without a mask is assumed
            to have no padding.
        criterion: the criterion that scores the LoRAs (`pruning.criteria`).
        progress: called with the number of examples seen, after each batch.
        packing: runs forward passes without padding; None runs the model as it is.
        total: adds the measurements of the other processes, if each process reads a share of the data.

    Returns:
        Scores with g_i and I_i = g_i / Σ g per projection. A module that is called several times in one pass (ALBERT)
        is scored by the sum of its calls. Calls on anything but the batch's tokens (DeBERTa's relative positions) do
        not count.

    Raises:
        UserError: if the model has no LoRA, or one that cannot be scored (see `adapters.loras`); if there is no data;
            if no LoRA of a projection was ever trained (all its scores are 0); or if a module's inputs are not the
            batch's tokens, as for an expert.
    """
    layers = numbered(model)
    measured = criterion.measure(Given(model, layers, batches, seed, per_example, progress, packing))
    if not isinstance(measured, Measured):
        raise UserError(
            f"The criterion {criterion.name!r} returned a {type(measured).__name__}. Its function has to return a "
            "Measured, with a number for each LoRA of given.layers."
        )
    return _scores(model, layers, total(measured) if total else measured, criterion)


def collect_moments(given: Given, view: View | None = None) -> Moments:
    """Run the model once over the data, without gradients, and return the Gram matrices of z = A x; see `score`.

    With a `view`, the Gram matrices are those of its output. Norms per example are defined for z only.
    """
    metrics = {name: lora.metric for name, lora in given.layers.items()} if given.per_example else {}
    moments = Moments(norms={name: [] for name in given.layers} if given.per_example else None)
    sums: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}  # of the current batch, over the calls of each module

    def add(name: str, z: Float[Tensor, "batch seq inner"]) -> None:
        gram = wide(token_gram(z))
        sums[name] = sums[name] + gram if name in sums else gram
        if name in metrics:
            of_call = example_norms(z, metrics[name])
            norms[name] = norms[name] + of_call if name in norms else of_call

    def end() -> None:
        if moments.norms is not None:
            for name in given.layers:
                moments.norms[name] += norms.pop(name).tolist()

    moments.examples, moments.tokens = observe(given, view, add, end, by_example=given.per_example)
    moments.gram = {name: sums[name].cpu() for name in given.layers if name in sums}
    return moments


def observe(
    given: Given, view: View | None, add: Add, end: Callable[[], None], by_example: bool = True
) -> tuple[int, int]:
    """Run the model once over the data, without gradients, and call `end()` after each batch; see `Observer`.

    Return the number of examples and the number of real tokens. Raise UserError if all tokens are padding.
    """
    examples = tokens = 0
    with Observer(given.model, given.layers, add, view, by_example) as observer, torch.no_grad():
        for batch in given.batches:
            inputs = observer.prepare(batch)
            with given.packing.over(inputs, whole=True) if given.packing else nullcontext() as layout:
                observer.look(inputs, layout)
            end()
            examples += examples_in(inputs)
            tokens += observer.tokens
            if given.progress:
                given.progress(examples)
    if examples and not tokens:
        raise UserError("There is nothing to score: attention_mask is 0 at every token of the sample.")
    return examples, tokens


def contracted(moments: Moments, layers: Mapping[str, Lora]) -> dict[str, float]:
    """Return g_i = ⟨C_i, M_i⟩ / examples for each LoRA that was called."""
    return {
        name: float((gram * wide(layers[name].metric).cpu()).sum()) / moments.examples
        for name, gram in moments.gram.items()
    }


def _scores(model: nn.Module, layers: Mapping[str, Lora], measured: Measured, criterion: Criterion) -> Scores:
    """Return the measured values as scores in model order, with their importances."""
    places = {place.name: place for place in all_places(model) if place.name in layers}
    if criterion.reads and measured.examples == 0:
        if not any(isinstance(value, Real) and value for value in measured.values.values()):
            raise UserError("There is nothing to score: the sample has no rows.")
        raise UserError(
            f"The criterion {criterion.name!r} has not counted the rows that it read (Measured.examples). One that reads "
            "no rows needs reads=False."
        )
    unscored = [
        Scored(name, place.projection, place.layer, 0.0, 0.0, layers[name].parameters) for name, place in places.items()
    ]
    rows = tuple(rescored(unscored, [_value(criterion, measured, name) for name in places]))
    left_out = tuple(unscorable(model, layers))
    return Scores(rows, measured.examples, measured.tokens, measured.norms, left_out, criterion.name)


def _value(criterion: Criterion, measured: Measured, name: str) -> float:
    """Return the value of a LoRA. Raise UserError if the criterion has given it none, or no number."""
    value = measured.values.get(name)
    try:
        return float(value)  # type: ignore[arg-type]  # a plugin may return anything
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"The criterion {criterion.name!r} gave {name} no number but {type(value).__name__}. Its Measured needs a "
            "number for each LoRA, under the name that it has in given.layers."
        ) from error


def numbered(model: nn.Module) -> dict[str, Lora]:
    """Return the active LoRAs inside the numbered blocks. Raise UserError if none can be scored."""
    known = {place.name for place in all_places(model)}
    found = {name: lora for name, lora in loras(model).items() if name in known}
    if not found:
        raise UserError("No LoRA of the model is inside a numbered block, so there are no layers to choose from.")
    return found


def wide(value: Tensor) -> Tensor:
    """Return a tensor as float64, on the CPU if its device has no float64 (Apple's)."""
    return value.cpu().double() if value.device.type == "mps" else value.double()


def token_gram(z: Float[Tensor, "batch seq inner"]) -> Float[Tensor, "inner inner"]:
    """Return Σ z zᵀ over all tokens of all examples. Padding must be zero."""
    flat = z.flatten(0, 1).float()
    return product(flat.T, flat)


def example_norms(z: Float[Tensor, "batch seq inner"], metric: Float[Tensor, "inner inner"]) -> Float[Tensor, " batch"]:
    """Return Σ over tokens of zᵀ M z for each example. Padding must be zero."""
    z = z.float()
    return (product(z, metric) * z).sum(dim=(1, 2))
