"""A stack of layers recorded as CUDA graphs, and replayed.

A step of a base-size encoder is about a thousand kernels of a few microseconds, and Python takes ten times as long to start them as a GPU takes to
compute them. So the forward and the backward pass of the layers are recorded once for a number of tokens, and replayed with one call.

A recording has fixed sizes and addresses: batches are filled up to one of a few numbers of tokens, with rows of their own that nobody reads
(`Layout`), and the bounds of the rows are copied to where the recording reads them. Dropout draws new masks in every replay. Hooks inside the layers
are not called, which is why only training replays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from lora_drop.training.packing.layout import Layout, Unpackable

if TYPE_CHECKING:
    from lora_drop.training.packing.packed import Packing

MOST = 40
"""Recordings of a model; a batch of yet another size is computed as it is."""
WARM_UP = 1
"""Passes before a recording, in which libraries prepare what cannot be prepared in one."""


class Replay:
    """The recordings of a stack of layers."""

    def __init__(self, packing: Packing):
        """Take a packing. Raises Unpackable if its stack embeds tokens itself, or has an attention of its own."""
        if packing.embeds or packing.own:
            raise Unpackable("its layers do more than to map hidden states")
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            # gradients come from the stream of the replay, and are waited for
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        self.stack = packing.stack
        self._recorded: dict[tuple[Any, ...], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, hidden: Tensor, layout: Layout, given: Mapping[str, Any]) -> Any:
        """Return what the stack returns.

        Args:
            hidden: `1 tokens width`.
            layout: of the batch, filled up.
            given: the other arguments of the stack.

        Raises:
            Unpackable: if another argument holds a tensor, which may be another one in each call.
        """
        if any(isinstance(value, Tensor | tuple | list | dict) for value in given.values()):
            raise Unpackable("its layers get more than hidden states")
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        size = (layout.tokens, len(layout.offsets), layout.longest)
        key = (*size, hidden.dtype, hidden.requires_grad, half, self.stack.training)
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                return type(self.stack).forward(self.stack, hidden_states=hidden, **given)
            self._recorded[key] = _Recording(self.stack, hidden, layout, given, half, self._pool)
        return self._recorded[key](hidden, layout)


class _Recording:
    """A stack of layers at one size."""

    def __init__(
        self,
        stack: nn.Module,
        hidden: Tensor,
        layout: Layout,
        given: Mapping[str, Any],
        half: torch.dtype | None,
        pool: Any,
    ):
        self.layers, own = _Layers(stack, given), layout.offsets
        self.offsets = layout.offsets = own.clone()
        sample = hidden.detach().clone().requires_grad_(hidden.requires_grad)
        torch.clear_autocast_cache()  # rounded weights would tie the recording to what was computed before it
        try:
            with (
                _undisturbed(hidden.device),
                torch.autocast("cuda", half or torch.bfloat16, half is not None, cache_enabled=False),
            ):
                torch.cuda.make_graphed_callables(
                    self.layers, (sample,), num_warmup_iters=WARM_UP, allow_unused_input=True, pool=pool
                )
        finally:
            layout.offsets = own

    def __call__(self, hidden: Tensor, layout: Layout) -> Any:
        self.offsets.copy_(layout.offsets)
        replayed = self.layers(hidden)
        return self.layers.kind(last_hidden_state=replayed) if self.layers.kind else replayed


class _Layers(nn.Module):
    """A stack as a function of hidden states alone."""

    def __init__(self, stack: nn.Module, given: Mapping[str, Any]):
        super().__init__()
        self.stack, self.given, self.training = stack, given, stack.training
        self.kind: Any = None
        """What the stack returns them in; None if it returns them as they are."""

    def forward(self, hidden: Tensor) -> Tensor:
        out = type(self.stack).forward(self.stack, hidden_states=hidden, **self.given)
        if isinstance(out, Tensor):
            return out
        if len(out) != 1 or not isinstance(out, ModelOutput):
            raise Unpackable("its layers return more than hidden states")
        self.kind = type(out)
        return out[0]


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Let what is drawn in the block be no part of the training, and a recording that fails leave stream and generator as they were."""
    stream, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[torch.cuda.current_device()]
    drawn, spare = generator.get_state(), generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(spare)
        raise
    generator.set_state(drawn)
