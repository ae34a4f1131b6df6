"""How a model is computed in training, scoring and evaluation: precision, products, padding or packing."""

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
from lora_drop.training.packing.frozen import Frozen, Half, frozen_layers, multiplies, ready
from lora_drop.training.products import Products, find_products

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Half-precision types, by their name in `train.precision`."""
BF16_CAPABILITY = 8
"""CUDA's compute capability (major) since which GPUs multiply bf16; older ones do it in fp32, with conversions."""


@dataclass(frozen=True)
class Way:
    """How a model is computed. Made by `find_way`."""

    device: torch.device
    half: torch.dtype | None
    """Precision of the products; None is fp32."""
    products: Products
    frozen: dict[nn.Linear, Frozen]
    """Layers with weights that are prepared for the product."""
    packing: Packing | None
    """Computes without padding; None if that is not possible."""
    padding: str
    """In words: packed, or padded and the reason."""
    rounding: Half = field(default_factory=Half)

    def __str__(self) -> str:
        """Return the way in words, for `run.json`."""
        return f"{self.padding}; {self.products}" if self.device.type == "cpu" else self.padding

    @contextmanager
    def step(
        self, batch: Mapping[str, Tensor] | None = None, whole: bool = False, learns: bool = False
    ) -> Iterator[Layout | None]:
        """Compute this way inside the context. The precision is left to the Trainer.

        Args:
            batch: The inputs that the model is called with. None allows calls of any shape, as in decoding, and packs
                nothing; neither is a batch packed with rows longer than the packing can compute (`Packing.fits`).
            whole: Compute and return every token in every layer, even if not all are read.
            learns: True for a training step; see `Packing.over`.
        """
        with ExitStack() as undo:
            undo.enter_context(self.products.applied())
            if self.packing is not None and batch is not None and self.packing.fits(batch):
                yield undo.enter_context(self.packing.over(batch, whole, learns))
            else:
                undo.enter_context(ready(self.frozen, self.rounding))
                undo.callback(self.rounding.forget)
                yield None

    def forget(self) -> None:
        """Release the memory that only training needs."""
        if self.packing is not None and self.packing.replay is not None:
            self.packing.replay.forget()

    @contextmanager
    def over(self, batch: Mapping[str, Tensor] | None = None, whole: bool = False) -> Iterator[Layout | None]:
        """Compute this way inside the context, in the precision of training. Arguments are those of `step`."""
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
    """Find, by trial, the fastest way to compute a model that reproduces the stock results.

    Args:
        model: The model, on its device.
        rows: Tokenised rows; the shortest, the median and the longest are tried. None if the model decodes.
        collate: Makes a batch of rows.
        config: Settings, of which `precision`, `products`, `packing`, `gradient_checkpointing` and the batch sizes
            matter.
        loss: The loss to minimise; None is the model's own.
        learns: Compare loss and gradients; otherwise the model's outputs.
    """
    keep_few_shapes()
    device, half = next(model.parameters()).device, HALF.get(config.precision)
    products = processes.by_first(lambda: find_products(model, device, config.products, half))
    # torch's own half-precision products are as fast, but it rounds the weights again each time
    by_hand = device.type == "cuda" or (device.type == "cpu" and half == torch.bfloat16 and multiplies(half))
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
    if len(set(found)) > 1:  # the processes have different kinds of devices
        packing, padding = None, f"padded: processes differ ({'; '.join(dict.fromkeys(found))})"
    return Way(device, half, products, frozen, packing, padding)


def _may_replay(device: torch.device, config: TrainConfig) -> bool:
    """Return True if each training step is a single pass on one GPU, without activation checkpointing."""
    alone = processes.size() == 1 and not config.gradient_checkpointing
    return device.type == "cuda" and alone and split_batch(config.batch_size, config.device_batch_size)[1] == 1


def why_slow(device: torch.device, precision: str) -> str:
    """Return the reason why a half precision costs time on a device instead of saving it; empty if it saves time."""
    if device.type == "cpu":
        slow, name, better = precision in HALF and not multiplies(HALF[precision]), "CPU", "fp32"
    else:
        old = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < BF16_CAPABILITY
        slow, name, better = old and precision == "bf16", "GPU", "fp16"
    return f"this {name} has no instructions for {precision}, so it takes longer than {better}" if slow else ""


def autocast(device: torch.device, half: torch.dtype | None) -> torch.autocast | nullcontext[None]:
    """Return a context in which products are computed in precision `half`; None is fp32."""
    return torch.autocast(device.type, half) if half else nullcontext()
