"""The fastest fp32 product of this machine, found by trying.

torch multiplies fp32 matrices on a CPU with MKL. On some CPUs (AMD's with AVX-512) the same product through oneDNN, in the same precision, takes
half the time. There are two ways to it: `torch.backends.mkldnn.matmul.fp32_precision`, a switch of the whole process that *allows* oneDNN to round
to bf16, which it does where the hardware multiplies that faster (AMX) and not elsewhere; and an operator of torch, which never rounds, for layers
that are not trained (`packing.frozen`).

So both are tried on a product of the model's own width, and taken if the error against float64 is that of fp32, at most `ERROR` times MKL's, and
the time at most `FASTER` of MKL's. What was found is kept in the user's cache for this machine, so that a repeated run has the same bits.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_drop.files import cache_root, digest, write_json
from lora_drop.training.packing.frozen import product

ERROR = 4.0
"""The root mean square error of a product may be at most so many times MKL's. (oneDNN's is 1.4 to 2.2 times MKL's; bf16's, 10,000 times.)"""
FASTER = 0.85
SMALL = 2**15
"""Weights of fewer elements are not tried: there is nothing to gain, and little to measure."""
ROWS, OPERATIONS, ROUNDS = 64, 1e8, 3
"""Of the trial: tokens, about the operations of one product, and repetitions of each way, of which the fastest counts."""


@dataclass(frozen=True)
class Products:
    """How fp32 products are computed on a CPU."""

    switched: bool = False
    """All of them by oneDNN, through torch's switch."""
    operator: bool = False
    """Those with frozen weights by oneDNN, through its operator."""

    def __str__(self) -> str:
        """In words, for `run.json`."""
        ways = [name for name, used in (("switch", self.switched), ("operator", self.operator)) if used]
        return f"fp32 products by oneDNN ({' and '.join(ways)})" if ways else "fp32 products by torch's default"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Compute so inside the context."""
        with switch() if self.switched else nullcontext():
            yield


STOCK = Products()
Way = Callable[[Tensor, Tensor], Tensor]


def has_switch() -> bool:
    """Return True if this version of torch has the switch: 2.9 and later."""
    return hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")


@contextmanager
def switch() -> Iterator[None]:
    """Allow oneDNN to compute fp32 products inside the context."""
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


def find_products(model: nn.Module, device: torch.device, wanted: str = "auto") -> Products:
    """Return the fastest way to compute the fp32 products of a model; torch's own if `wanted` is "stock" or the device is no CPU."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [weight for weight in weights if weight.dtype == torch.float32 and weight.ndim == 2]
    if wanted == "stock" or device.type != "cpu" or not weights or not torch.backends.mkldnn.is_available():
        return STOCK
    outputs, inputs = max((weight.shape for weight in weights), key=lambda shape: shape[0] * shape[1])
    return _remembered(inputs, min(outputs, max(1, int(OPERATIONS / (2 * ROWS * inputs)))), torch.get_num_threads())


@cache
def _remembered(inputs: int, outputs: int, threads: int) -> Products:
    """Return what was found on this machine before, or find it and keep it."""
    key = " ".join(map(str, [platform.node(), _processor(), torch.__version__, threads, inputs, outputs]))
    root = cache_root()
    path = root / "products.json" if root else None
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return Products(**kept[key])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    found = choose(inputs, outputs) if inputs * outputs >= SMALL else STOCK
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            write_json(path, {**kept, key: vars(found)})
        except (
            OSError,
            ValueError,
            TypeError,
            RecursionError,
        ):  # a cache that cannot be written: it is tried again next time
            pass
    return found


def _processor() -> str:
    """Return what tells this CPU from others: machines may share a name and a cache."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return f"{torch.backends.cpu.get_cpu_capability()} {digest(known)[:8]}"


def choose(
    inputs: int, outputs: int, switched: Way | None = None, operator: Way = product, stock: Way = functional.linear
) -> Products:
    """Try the ways on a product of random matrices. It takes at most about 50 ms on one core.

    Args:
        inputs: width of the input.
        outputs: width of the output.
        switched: `(x, weight)` to x Wᵀ by the switch; None is the switch itself.
        operator: the same by the operator.
        stock: the same by torch's default.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, inputs, generator=generator) for rows in (ROWS, outputs))
    ways = {"stock": stock, "operator": operator}
    if switched or has_switch():
        ways["switched"] = switched or _switched
    exact = x[:8].double() @ weight.double().T
    errors = {name: float((way(x, weight)[:8].double() - exact).square().mean().sqrt()) for name, way in ways.items()}
    seconds = {name: float("inf") for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begin = time.perf_counter()
            way(x, weight)
            seconds[name] = min(seconds[name], time.perf_counter() - begin)

    def good(name: str) -> bool:
        return name in ways and errors[name] <= ERROR * errors["stock"] and seconds[name] <= FASTER * seconds["stock"]

    return Products(good("switched"), good("operator"))


def _switched(x: Tensor, weight: Tensor) -> Tensor:
    with switch():
        return functional.linear(x, weight)
