"""The way in which a model is computed: precision, products, and whether rows are padded. The same for training, scoring and evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from torch import Tensor, nn

from lora_drop import processes
from lora_drop.config.schema import TrainConfig
from lora_drop.data.batches import row_lengths, split_batch
from lora_drop.data.sentences import Collate
from lora_drop.training.environment import keep_few_shapes
from lora_drop.training.packing import Layout, Packing, prepare
from lora_drop.training.packing.frozen import Frozen, Half, frozen_layers, multiplies_bf16, ready
from lora_drop.training.products import Products, find_products

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types of products that are not computed in fp32."""


@dataclass(frozen=True)
class Way:
    """How a model is computed. Made by `find_way`."""

    device: torch.device
    half: torch.dtype | None
    """Of the products; None is fp32."""
    products: Products
    frozen: dict[nn.Linear, Frozen]
    """Layers whose weights are kept ready for the product."""
    packing: Packing | None
    """Computes without padding; None where that is not possible."""
    padding: str
    """In words: packed, or padded and why."""
    rounding: Half = field(default_factory=Half)

    def __str__(self) -> str:
        """In words, for `run.json`."""
        return f"{self.padding}; {self.products}" if self.device.type == "cpu" else self.padding

    @contextmanager
    def step(
        self, batch: Mapping[str, Tensor] | None = None, whole: bool = False, learns: bool = False
    ) -> Iterator[Layout | None]:
        """Compute so inside the context, but for the precision, which the Trainer sets.

        Args:
            batch: what the model is then called with; None for calls of any shape, as decoding makes them, which nothing is packed for.
            whole: compute and return every token in every layer, also where not all are read.
            learns: it is a step of a training; see `Packing.over`.
        """
        with ExitStack() as undo:
            undo.enter_context(self.products.applied())
            if self.packing is not None and batch is not None:
                yield undo.enter_context(self.packing.over(batch, whole, learns))
            else:
                undo.enter_context(ready(self.frozen, self.rounding))
                undo.callback(self.rounding.forget)
                yield None

    def forget(self) -> None:
        """Let go of what only a training needs."""
        if self.packing is not None and self.packing.replay is not None:
            self.packing.replay.forget()

    @contextmanager
    def over(self, batch: Mapping[str, Tensor] | None = None, whole: bool = False) -> Iterator[Layout | None]:
        """Compute so inside the context, in the precision of training; arguments as in `step`."""
        with autocast(self.device, self.half), self.step(batch, whole) as layout:
            yield layout


def find_way(
    model: nn.Module,
    rows: Dataset | None,
    collate: Collate,
    config: TrainConfig,
    loss: Callable[..., Tensor] | None = None,
    learns: bool = True,
) -> Way:
    """Find the fastest way to compute a model that gives its numbers, by trying.

    Args:
        model: on its device.
        rows: tokenised rows; the shortest, the middle and the longest of them are tried. None if the model decodes.
        collate: makes a batch of rows.
        config: `precision`, `products` and `packing` count.
        loss: what is minimised; None is the model's own.
        learns: compare loss and gradients; else what the model puts out.
    """
    keep_few_shapes()
    device, half = next(model.parameters()).device, HALF.get(config.precision)
    products = processes.by_first(lambda: find_products(model, device, config.products))
    # torch's own products in half precision are as fast, but from weights that it rounds anew each time
    by_hand = device.type == "cuda" or (device.type == "cpu" and half == torch.bfloat16 and multiplies_bf16())
    kept = products.operator if half is None else by_hand and config.products != "stock"
    frozen = frozen_layers(model) if kept else {}
    if config.packing == "never":
        return Way(device, half, products, frozen, None, "padded: train.packing=never")
    if rows is None:
        return Way(device, half, products, frozen, None, "padded: texts are decoded")
    lengths = row_lengths(rows)
    order = sorted(range(len(rows)), key=lambda row: (lengths[row], row))
    chosen = sorted({order[0], order[len(order) // 2], order[-1]})
    batch = {name: value.to(device) for name, value in collate([rows[row] for row in chosen]).items()}
    if not learns:
        batch.pop("labels", None)
    with autocast(device, half), products.applied():
        replays = learns and _may_replay(device, config)
        packing, padding = prepare(model, batch, loss, config.gradient_checkpointing, frozen, replays)
    found = processes.everywhere(padding)
    if len(set(found)) > 1:  # devices of different kinds
        packing, padding = None, f"padded: processes differ ({'; '.join(dict.fromkeys(found))})"
    return Way(device, half, products, frozen, packing, padding)


def _may_replay(device: torch.device, config: TrainConfig) -> bool:
    """Return True if each step of a training is one pass on one GPU, which keeps what it computes for the backward pass."""
    alone = processes.size() == 1 and not config.gradient_checkpointing
    return device.type == "cuda" and alone and split_batch(config.batch_size, config.device_batch_size)[1] == 1


def autocast(device: torch.device, half: torch.dtype | None) -> torch.autocast | nullcontext[None]:
    """Return a context in which products are computed in a half precision; None is fp32."""
    return torch.autocast(device.type, half) if half else nullcontext()
