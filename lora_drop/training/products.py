"""The fastest matrix products on this machine: those in fp32 are found by measurement.

torch multiplies fp32 matrices on a CPU with MKL. On some CPUs (AMD's with AVX-512) oneDNN computes the same product, in
the same precision, in half the time. torch offers two routes to oneDNN:

- `torch.backends.mkldnn.matmul.fp32_precision`, a process-wide switch that *allows* oneDNN to round to bf16. It rounds
  only on hardware that multiplies bf16 faster (AMX).
- An operator that never rounds, used for layers that are not trained (`packing.frozen`).

Both are tried on a product as wide as the model's. A route is used if it takes at most `FASTER` of MKL's time and its
error against float64 is that of fp32: at most `ERROR` times MKL's. The result is kept in the user's cache for this
machine, so that a repeated run produces the same bits.

Half-precision products are torch's own if the CPU has instructions for them, else emulated (`emulation`).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.nn import functional

from lora_drop.files import cache_root, digest, write_json
from lora_drop.training.emulation import Emulation
from lora_drop.training.packing.frozen import multiplies, product

ERROR = 4.0
"""Largest accepted root mean square error, in multiples of MKL's. (oneDNN has 1.4 to 2.2 times MKL's; bf16, 10,000.)"""
FASTER = 0.85
SMALL = 2**15
"""Weights with fewer elements are not tried: there is nothing to gain and little to measure."""
ROWS, OPERATIONS, ROUNDS = 64, 1e8, 3
"""Settings of the trial: tokens, approximate operations per product, and repetitions, of which the fastest counts."""


@dataclass(frozen=True)
class Products:
    """The choice of how to compute products on a CPU."""

    switched: bool = False
    """True if oneDNN computes all fp32 products, through torch's switch."""
    operator: bool = False
    """True if oneDNN computes fp32 products with frozen weights, through torch's operator."""
    emulated: torch.dtype | None = None
    """Half-precision type whose products are computed in fp32 and rounded."""

    def __str__(self) -> str:
        """Return the choice in words, for `run.json`."""
        ways = [name for name, used in (("switch", self.switched), ("operator", self.operator)) if used]
        fp32 = f"fp32 products by oneDNN ({' and '.join(ways)})" if ways else "fp32 products by torch's default"
        return fp32 if self.emulated is None else f"{fp32}; half-precision products in fp32, rounded"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Compute products this way inside the context."""
        with switch() if self.switched else nullcontext(), Emulation(self.emulated) if self.emulated else nullcontext():
            yield


STOCK = Products()
Product = Callable[[Tensor, Tensor], Tensor]
"""A function from `(x, weight)` to x Wᵀ."""


def has_switch() -> bool:
    """Return True if this version of torch has the switch (2.9 and later)."""
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


def find_products(
    model: nn.Module, device: torch.device, wanted: str = "auto", half: torch.dtype | None = None
) -> Products:
    """Return the fastest way to compute the products of a model.

    That is torch's default if `wanted` is "stock" or the device is not a CPU.

    Args:
        model: The model.
        device: Where it is computed.
        wanted: `train.products`: "auto" or "stock".
        half: Type of its half-precision products; None if all are in fp32.
    """
    if wanted == "stock" or device.type != "cpu":
        return STOCK
    return replace(_find_fp32(model), emulated=half if half and not multiplies(half) else None)


def _find_fp32(model: nn.Module) -> Products:
    """Return the fastest way to compute fp32 products.

    That is torch's default if the model has no fp32 linear layers or only small ones, or oneDNN is not available.
    """
    weights = [layer.weight for layer in model.modules() if isinstance(layer, nn.Linear)]
    weights = [weight for weight in weights if weight.dtype == torch.float32 and weight.ndim == 2]
    if not weights or not torch.backends.mkldnn.is_available():
        return STOCK
    outputs, inputs = max((weight.shape for weight in weights), key=lambda shape: shape[0] * shape[1])
    if inputs * outputs < SMALL:
        return STOCK
    return _remembered(inputs, min(outputs, max(1, int(OPERATIONS / (2 * ROWS * inputs)))), torch.get_num_threads())


@cache
def _remembered(inputs: int, outputs: int, threads: int) -> Products:
    """Return the cached choice for this machine, or find it and cache it."""
    root = cache_root()
    if root is None:
        return choose(inputs, outputs)
    key = (platform.node(), _processor(), torch.__version__, threads, inputs, outputs)
    path = root / "products" / f"{digest(*key)}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):  # processes that begin together must choose alike
            kept = _read(path) or choose(inputs, outputs)
            write_json(path, vars(kept))
    except (OSError, NotImplementedError):  # the cache cannot be written or locked: the next process measures again
        kept = kept or choose(inputs, outputs)
    return kept


def _read(path: Path) -> Products | None:
    """Return a cached choice, or None if there is none or it is damaged."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        return Products(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _processor() -> str:
    """Return what tells this CPU from others: machines may share a name and a cache."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return f"{torch.backends.cpu.get_cpu_capability()} {digest(known)[:8]}"


def choose(
    inputs: int,
    outputs: int,
    switched: Product | None = None,
    operator: Product = product,
    stock: Product = functional.linear,
) -> Products:
    """Try each way on a product of random matrices. This takes at most about 50 ms on one core.

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        switched: The product with the switch; None uses torch's.
        operator: The product by the operator.
        stock: The product by torch's default.
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
