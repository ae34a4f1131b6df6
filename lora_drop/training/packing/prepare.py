"""The trial that finds, on a few rows, the way to compute a model without padding, or the reason that there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lora_drop.errors import first_line
from lora_drop.pruning.observation import eval_mode
from lora_drop.training.packing.frozen import Frozen
from lora_drop.training.packing.layout import Unpackable
from lora_drop.training.packing.packed import Packing
from lora_drop.training.packing.replay import Replay

FULL, HALF = 1e-4, 5e-2
"""Relative distances of numbers that are equal but for rounding: in fp32, and with products in half precision."""
OWN = 1.5
"""Products in half precision may be so many times as far off as those of another attention of torch's are."""
FAR = 0.25
"""Nothing that is farther off is rounding."""
LIKE = 1.25
"""Of ways that are so nearly as far off, the cheapest is taken."""
SMALLEST = 1e-300


def prepare(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    loss: Callable[..., Tensor] | None = None,
    recomputes: bool = False,
    frozen: Mapping[nn.Linear, Frozen] | None = None,
    replays: bool = False,
) -> tuple[Packing | None, str]:
    """Find out how a model can be computed without padding, by comparing loss and gradients with the stock way.

    Args:
        model: what is to be trained, on its device; nothing of it is changed.
        batch: a few rows of different length, on that device; without `labels`, what the model puts out is compared.
        loss: as `training.fit` has it; None is the model's own.
        recomputes: whether activations are computed again in the backward pass; then no layer is trimmed.
        frozen: layers whose weights are kept ready for the product.
        replays: whether the layers may be recorded and replayed.

    Returns:
        The packing, or None if the model has to be computed the stock way; and in words, which way it is and why.
    """
    reasons = []
    # a GPU waits for Python, which would call a model's own attention for each group of rows
    for own in (False,) if batch["input_ids"].device.type == "cuda" else (False, True):
        try:
            with eval_mode(model):
                packing = _tried(Packing(model, frozen, own), model, batch, loss, recomputes)
                packing.replay = _replay(packing, model, batch, loss) if replays else None
            return packing, str(packing)
        except Unpackable as error:
            reasons.append(str(error))
        except Exception as error:  # noqa: BLE001 - a model's code may raise anything if it is called in a way it does not know
            kind, said = type(error).__name__, first_line(error)
            reasons.append(kind if said == kind else f"{kind}: {said}")
    return None, f"padded: {reasons[0]}" + (f"; by its own code: {reasons[1]}" if len(set(reasons)) > 1 else "")


def _tried(
    packing: Packing,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    loss: Callable[..., Tensor] | None,
    recomputes: bool,
) -> Packing:
    """Return the packing, set to the cheapest way whose numbers are those of the stock one. Raises Unpackable if there is none."""
    stock = _numbers(model, batch, loss)
    row = {name: value[:1] for name, value in batch.items() if name != "labels"}
    with packing.over(row, whole=True), torch.no_grad():  # this counts the attentions
        model(**row)
    learned = loss is not None and "labels" in batch and batch["labels"].ndim == 2
    tolerance, off = _tolerance(stock), {}
    for packing.reads, packing.trims in _ways(learned, recomputes):
        try:
            with packing.over(batch):
                found = _numbers(model, batch, loss)
        except Exception:  # noqa: BLE001 - a head that needs every token, say
            continue
        off[packing.reads, packing.trims] = distance = _distance(stock, found)
        if distance <= tolerance:
            return packing
    nearest = min(off.values(), default=math.inf)
    rounding = _own_rounding(model, batch, loss, stock) if tolerance == HALF and nearest <= FAR else 0.0
    if nearest <= OWN * rounding < math.inf:
        packing.reads, packing.trims = next(way for way in off if off[way] <= LIKE * nearest)
        return packing
    raise Unpackable("its loss or gradients differ when the rows are joined")


def _replay(
    packing: Packing, model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None
) -> Replay | None:
    """Return recordings of the layers that give the numbers of the packing; None if they cannot be recorded."""
    with packing.over(batch):
        expected = _numbers(model, batch, loss)
    try:
        packing.replay = replay = Replay(packing)
        with packing.over(batch, learns=True):
            found = _numbers(model, batch, loss)
    except Exception:  # noqa: BLE001 - then it goes on without
        return None
    near = _distance(expected, found) <= _tolerance(expected)
    replay.forget()  # it was in eval mode
    return replay if near else None


def _ways(learned: bool, recomputes: bool) -> Iterator[tuple[str, bool]]:
    """Yield (tokens read after the stack, last layer trimmed to them), the cheapest way first."""
    for reads in ("learned",) if learned else ("first", "last"):
        yield from ((reads, trims) for trims in (True, False) if not (trims and recomputes))
    yield "all", False


def _numbers(model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None) -> list[Tensor]:
    """Return loss and gradients; where nothing is trained, or there are no labels, what the model puts out."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if not trained or "labels" not in batch:
        with torch.no_grad():
            return [model(**given).logits]
    value = model(**batch).loss if loss is None else loss(model(**given), batch["labels"])
    gradients = torch.autograd.grad(value, trained, allow_unused=True)
    return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _tolerance(stock: Sequence[Tensor]) -> float:
    """Return the distance up to which numbers are equal: the rounding of fp32 sums, or of products in half precision."""
    return HALF if torch.is_autocast_enabled(stock[0].device.type) else FULL


def _own_rounding(
    model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None, stock: Sequence[Tensor]
) -> float:
    """Return the distance between the stock numbers and those of another of torch's attentions.

    It grows with depth: in 32 layers with random weights, in bf16, gradients differ by a tenth of their norm.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return _distance(stock, _numbers(model, batch, loss))


def _distance(stock: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return how far the first numbers (the loss) or all others are from the stock ones, relative to their norm: the worse of the two."""
    if [one.shape for one in stock] != [two.shape for two in found]:
        return math.inf
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        return math.inf
    return max(_off(stock[:1], found[:1]), _off(stock[1:], found[1:]))


def _off(stock: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    off = sum(_squares(one - two) for one, two in zip(stock, found, strict=True))
    return math.sqrt(off / max(sum(map(_squares, stock)), SMALLEST)) if off else 0.0


def _squares(tensor: Tensor) -> float:
    """Return the sum of squares in float64, and so on the CPU: an Apple GPU has none."""
    return float(tensor.cpu().double().square().sum())
