"""The trial that finds, on a few rows, the way to compute a model without padding, or the reason that there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_drop.pruning.observation import eval_mode
from lora_drop.training.packing.frozen import Frozen
from lora_drop.training.packing.layout import Unpackable
from lora_drop.training.packing.packed import Packing
from lora_drop.training.packing.replay import Replay


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
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            reasons.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
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
    for reads, trims in _ways(learned, recomputes):
        packing.reads, packing.trims = reads, trims
        try:
            with packing.over(batch):
                found = _numbers(model, batch, loss)
        except (Unpackable, RuntimeError, ValueError, TypeError, IndexError):  # a head that needs every token, say
            continue
        if _agree(stock, found):
            return packing
    raise Unpackable("its loss or gradients differ when the rows are joined")


def _replay(
    packing: Packing, model: nn.Module, batch: Mapping[str, Tensor], loss: Callable[..., Tensor] | None
) -> Replay | None:
    """Return recordings of the layers that give the numbers of the packing; None if they cannot be recorded."""
    with packing.over(batch):
        expected = _numbers(model, batch, loss)
    try:
        packing.replay = Replay(packing)
        with packing.over(batch, learns=True):
            found = _numbers(model, batch, loss)
    except (Unpackable, RuntimeError, ValueError, TypeError, AssertionError):
        return None
    return packing.replay if _agree(expected, found) else None


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


def _agree(stock: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    """Return True if the first numbers and all others are equal up to rounding: of fp32 sums, or of bf16 products."""
    tolerance = 5e-2 if torch.is_autocast_enabled(stock[0].device.type) else 1e-4
    if [one.shape for one in stock] != [two.shape for two in found]:
        return False
    if not all(bool(tensor.isfinite().all()) for tensor in found):
        return False
    return _near(stock[:1], found[:1], tolerance) and _near(stock[1:], found[1:], tolerance)


def _near(stock: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> bool:
    off = sum(_squares(one - two) for one, two in zip(stock, found, strict=True))
    return off <= tolerance**2 * sum(map(_squares, stock))


def _squares(tensor: Tensor) -> float:
    """Return the sum of squares in float64, and so on the CPU: an Apple GPU has none."""
    return float(tensor.cpu().double().square().sum())
