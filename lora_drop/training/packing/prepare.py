"""The trial, on a few rows, that finds a way to compute a model without padding, or the reason why there is none."""

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
"""Relative distances up to which numbers count as equal up to rounding: in fp32, and with half-precision products."""
OWN = 1.5
"""In half precision, the distance may be at most this multiple of that between two of torch's own attentions."""
FAR = 0.25
"""A larger distance is never rounding."""
LIKE = 1.25
"""The cheapest way with at most this multiple of the smallest distance is taken."""
SMALLEST = 1e-300


def prepare(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    loss: Callable[..., Tensor] | None = None,
    recomputes: bool = False,
    frozen: Mapping[nn.Linear, Frozen] | None = None,
    replays: bool = False,
) -> tuple[Packing | None, str]:
    """Find a way to compute a model without padding, by comparing loss and gradients with the stock way.

    Args:
        model: The model to train, on its device. It is not changed.
        batch: A few rows of different lengths, on that device. Without `labels`, the model's outputs are compared.
        loss: As in `training.fit`; None is the model's own.
        recomputes: True if activations are recomputed in the backward pass; then no layer is trimmed.
        frozen: Layers with weights that are prepared for the product.
        replays: True if the layers may be recorded and replayed.

    Returns:
        The packing, or None if the model has to be computed the stock way; and a description of the way, with the
        reason.
    """
    reasons = []
    # on a GPU, calling a model's own attention for each group of rows would be slow: the GPU would wait for Python
    for own in (False,) if batch["input_ids"].device.type == "cuda" else (False, True):
        try:
            with eval_mode(model):
                packing = _tried(Packing(model, frozen, own), model, batch, loss, recomputes)
                packing.replay, fault = _replay(packing, model, batch, loss) if replays else (None, "")
            return packing, f"{packing}; its layers are not recorded: {fault}" if fault else str(packing)
        except Unpackable as error:
            reasons.append(str(error))
        except Exception as error:  # noqa: BLE001 - a model may raise anything if it is called in an unexpected way
            reasons.append(_in_words(error))
    return None, f"padded: {reasons[0]}" + (f"; by its own code: {reasons[1]}" if len(set(reasons)) > 1 else "")


def _tried(
    packing: Packing,
    model: nn.Module,
    batch: Mapping[str, Tensor],
    loss: Callable[..., Tensor] | None,
    recomputes: bool,
) -> Packing:
    """Return the packing, set to the cheapest way that reproduces the stock numbers. Raises Unpackable if none does."""
    stock = _numbers(model, batch, loss)
    row = {name: value[:1] for name, value in batch.items() if name != "labels"}
    with packing.over(row, whole=True), torch.no_grad():  # this counts the attentions
        model(**row)
    learned = loss is not None and "labels" in batch and batch["labels"].ndim == 2
    tolerance, off, fault = _tolerance(stock), {}, ""
    for packing.reads, packing.trims in _ways(learned, recomputes):
        try:
            with packing.over(batch):
                found = _numbers(model, batch, loss)
        except Exception as error:  # noqa: BLE001 - for example, a head that needs every token
            fault = _in_words(error)
            continue
        off[packing.reads, packing.trims] = distance = _distance(stock, found)
        if distance <= tolerance:
            return packing
    nearest = min(off.values(), default=math.inf)
    rounding = _own_rounding(model, batch, loss, stock) if tolerance == HALF and nearest <= FAR else 0.0
    if nearest <= OWN * rounding < math.inf:
        packing.reads, packing.trims = next(way for way in off if off[way] <= LIKE * nearest)
        return packing
    raise Unpackable("its loss or gradients differ when the rows are joined" if off else fault)


def _in_words(error: Exception) -> str:
    kind, said = type(error).__name__, first_line(error)
    return kind if said == kind else f"{kind}: {said}"


def _replay(
    packing: Packing, model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None
) -> tuple[Replay | None, str]:
    """Return recordings of the layers that reproduce the packing's numbers; or None, and the reason."""
    with packing.over(batch):
        expected = _numbers(model, batch, loss)
    try:
        packing.replay = replay = Replay(packing)
        with packing.over(batch, learns=True):
            found = _numbers(model, batch, loss)
    except Exception as error:  # noqa: BLE001 - then training runs without replay
        return None, _in_words(error)
    near = _distance(expected, found) <= _tolerance(expected)
    replay.forget()  # it was recorded in eval mode
    return (replay, "") if near else (None, "loss or gradients differ when they are replayed")


def _ways(learned: bool, recomputes: bool) -> Iterator[tuple[str, bool]]:
    """Yield (tokens read after the stack, True if the last layer is trimmed to them), the cheapest way first."""
    for reads in ("learned",) if learned else ("first", "last"):
        yield from ((reads, trims) for trims in (True, False) if not (trims and recomputes))
    yield "all", False


def _numbers(model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None) -> list[Tensor]:
    """Return loss and gradients, or the logits if nothing is trained or there are no labels."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    given = {name: tensor for name, tensor in batch.items() if name != "labels"}
    if not trained or "labels" not in batch:
        with torch.no_grad():
            return [model(**given).logits]
    value = model(**batch).loss if loss is None else loss(model(**given), batch["labels"])
    gradients = torch.autograd.grad(value, trained, allow_unused=True)
    return [value.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _tolerance(stock: Sequence[Tensor]) -> float:
    """Return the distance up to which numbers count as equal: `HALF` under autocast, else `FULL`."""
    return HALF if torch.is_autocast_enabled(stock[0].device.type) else FULL


def _own_rounding(
    model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None, stock: Sequence[Tensor]
) -> float:
    """Return the distance between the stock numbers and those with another of torch's attentions.

    It grows with depth: with 32 layers and random weights in bf16, gradients differ by a tenth of their norm.
    """
    with sdpa_kernel(SDPBackend.MATH):
        return _distance(stock, _numbers(model, batch, loss))


def _distance(stock: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the distance of the loss or of all gradients together, relative to the norm: the larger of the two."""
    if [one.shape for one in stock] != [two.shape for two in found]:
        return math.inf
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        return math.inf
    return max(_off(stock[:1], found[:1]), _off(stock[1:], found[1:]))


def _off(stock: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    off = sum(_squares(one - two) for one, two in zip(stock, found, strict=True))
    return math.sqrt(off / max(sum(map(_squares, stock)), SMALLEST)) if off else 0.0


def _squares(tensor: Tensor) -> float:
    """Return the sum of squares in float64, computed on the CPU because Apple GPUs have no float64."""
    return float(tensor.cpu().double().square().sum())
