"""The upper bound on training speed: this machine's fastest product on the shapes of a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from bench.machine import fp32_products, switch
from bench.rounds import clock
from lora_drop.training.packing import frozen

REPEATS = 5
EXACT = 4.0
"""Largest error of an fp32 product against float64, as a multiple of MKL's; beyond it, a product rounds its inputs."""
Product = Callable[[Tensor, Tensor], Tensor]


class Products:
    """An action that measures seconds per operation of the fastest product, over all shapes and ways of computing."""

    def __init__(self, tokens: int, shapes: Sequence[tuple[int, int]], dtype: torch.dtype, device: torch.device):
        """Draw `tokens` rows of inputs, and weights, for each (inputs, outputs) of `shapes`."""
        draw = torch.Generator(device).manual_seed(0)

        def random(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=draw, device=device).to(dtype)

        self.device, self.shapes = device, shapes
        self.matrices = [(random(tokens, inputs), random(outputs, inputs)) for inputs, outputs in shapes]
        wide = dtype == torch.float32 and device.type == "cpu"
        self.ways = exact(fp32_ways(), *self.matrices[-1]) if wide else {"torch": functional.linear}
        self.fastest = dict.fromkeys(self.ways, 0.0)
        """The most operations per second of any call so far, by way."""

    def __call__(self) -> float:
        """Measure each shape in each way; return the seconds per operation of the fastest."""
        found = {
            name: min(self._seconds(product, *pair) for pair in self.matrices) for name, product in self.ways.items()
        }
        self.fastest = {name: max(self.fastest[name], 1 / seconds) for name, seconds in found.items()}
        return min(found.values())

    def _seconds(self, product: Product, x: Tensor, w: Tensor) -> float:
        seconds = min(clock(lambda: product(x, w), self.device) for _ in range(REPEATS))
        return seconds / (2 * w.numel() * len(x))


def fp32_ways() -> dict[str, Product]:
    """Return the ways to compute an fp32 product on this CPU; the first is torch's own."""
    ways: dict[str, Product] = {"MKL": functional.linear}
    if switch() is not None:
        ways["oneDNN by the switch"] = _switched
    if torch.backends.mkldnn.is_available():
        ways["oneDNN by the operator"] = frozen.product
    return ways


def exact(ways: dict[str, Product], x: Tensor, w: Tensor) -> dict[str, Product]:
    """Return the ways whose largest error against float64 is at most EXACT times that of the first."""
    truth = functional.linear(x.double(), w.double())
    errors = {name: float((product(x, w).double() - truth).abs().max()) for name, product in ways.items()}
    return {name: product for name, product in ways.items() if errors[name] <= EXACT * next(iter(errors.values()))}


def why_no_switch() -> str:
    """Return why the switch cannot send fp32 products to oneDNN here; empty if it can."""
    if switch() is None:
        return "this torch has no switch for oneDNN's fp32 products"
    draw = torch.Generator().manual_seed(0)
    x, w = (torch.randn(256, 256, generator=draw) for _ in range(2))
    rounds = "oneDNN by the switch" not in exact(fp32_ways(), x, w)
    return "on this CPU the switch rounds inputs to bf16: its products are not fp32" if rounds else ""


def _switched(x: Tensor, w: Tensor) -> Tensor:
    with fp32_products(onednn=True):
        return functional.linear(x, w)
