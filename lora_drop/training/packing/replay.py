"""A stack of layers, recorded as CUDA graphs and replayed.

A step of a base-size encoder consists of about a thousand kernels of a few microseconds each. Python takes ten times as
long to start them as a GPU takes to compute them. Therefore the forward and the backward pass of the layers are
recorded once per number of tokens and replayed with a single call.

A recording has fixed sizes and addresses. Batches are filled up, with extra rows that are never read, to one of a few
numbers of tokens (`Layout`). What else differs between them, the bounds of the rows and the positions of the tokens, is
copied to the recording's addresses. A decoder embeds its tokens inside the stack, so there the embeddings are computed
first and recorded is what follows them. Dropout draws new masks in every replay. Hooks inside the layers are not
called, so only training replays.
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
"""Largest number of recordings per model; further batch sizes are computed without a recording."""
LIMIT = 2**32
"""Limit in bytes on the gradients of all recordings: each keeps its own for the trained parameters in the layers."""
WARM_UP = 1
"""Passes before a recording, in which libraries do the setup that cannot be recorded."""
TORCH = (2, 11)
"""The oldest version that replay has been run with."""


class Replay:
    """The recordings of a stack of layers."""

    def __init__(self, packing: Packing):
        """Prepare to record the stack of a packing.

        Raises Unpackable if attention is computed by the model's own code, or torch is older than `TORCH`.
        """
        version = tuple(int(part) for part in torch.__version__.split(".")[:2])
        if packing.own or version < TORCH:
            raise Unpackable("its attention is its own, or torch is too old")
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):
            # parameters remember the stream of the recording; the replay's stream is synchronised
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        self.stack, self.rounding = packing.stack, packing.half
        self.embeds = packing.embeds
        self.takes = "inputs_embeds" if self.embeds else "hidden_states"
        trained = sum(parameter.nbytes for parameter in self.stack.parameters() if parameter.requires_grad)
        self.most = min(MOST, LIMIT // max(trained, 1))
        self._recorded: dict[tuple[Any, ...], _Recording] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def forget(self) -> None:
        """Release all recordings and their memory."""
        for recording in self._recorded.values():
            recording.layers.__dict__.pop("forward", None)  # a cycle that only the garbage collector would free
        self._recorded.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, layout: Layout, **given: Any) -> Any:
        """Return the output of the stack.

        Args:
            layout: The layout of the batch, filled up.
            given: The arguments of the stack: `hidden_states` (`1 tokens width`), or if it embeds, `inputs_embeds` and
                `position_ids` (those of the layout); and others.

        Raises:
            Unpackable: If another argument is a tensor or a collection, which may differ between calls, or the layers
                return more than hidden states.
        """
        hidden: Tensor = given[self.takes]
        copied = (self.takes, "position_ids") if self.embeds else (self.takes,)
        rest = {name: value for name, value in given.items() if name not in copied}
        if any(isinstance(value, Tensor | tuple | list | dict) for value in rest.values()):
            raise Unpackable("its layers get more than hidden states")
        half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        size = (layout.tokens, len(layout.offsets), layout.longest)
        key = (
            *size,
            hidden.dtype,
            hidden.requires_grad,
            half,
            self.stack.training,
            tuple(sorted(rest.items())),
        )
        if key not in self._recorded and len(self._recorded) < self.most:
            self._record(key, hidden, layout, rest, half)
        if key not in self._recorded:
            return type(self.stack).forward(self.stack, **given)
        return self._recorded[key](hidden, layout)

    def _record(
        self, key: Any, hidden: Tensor, layout: Layout, given: Mapping[str, Any], half: torch.dtype | None
    ) -> None:
        """Record another size. If memory runs out, drop all recordings and replay nothing from then on."""
        try:
            self._recorded[key] = _Recording(self, hidden, layout, given, half)
        except torch.OutOfMemoryError:
            self.most = 0
            self.forget()


class _Recording:
    """A stack of layers recorded at one size."""

    def __init__(
        self, replay: Replay, hidden: Tensor, layout: Layout, given: Mapping[str, Any], half: torch.dtype | None
    ):
        own = layout.offsets
        self.offsets = layout.offsets = own.clone()
        self.columns = torch.zeros_like(layout.columns)
        positions = {"position_ids": self.columns.unsqueeze(0)} if replay.embeds else {}
        self.layers = _Layers(replay, {**given, **positions})
        torch.clear_autocast_cache()  # cached rounded weights would tie the recording to earlier computations
        try:
            with (
                _undisturbed(hidden.device),
                torch.autocast("cuda", half or torch.bfloat16, half is not None, cache_enabled=False),
            ):
                # other values than the first replay's, here and above, so that the trial detects recorded constants
                sample = torch.randn_like(hidden).requires_grad_(hidden.requires_grad)
                torch.cuda.make_graphed_callables(
                    self.layers, (sample,), num_warmup_iters=WARM_UP, allow_unused_input=True, pool=replay._pool
                )
        finally:
            layout.offsets = own

    def __call__(self, hidden: Tensor, layout: Layout) -> Any:
        self.offsets.copy_(layout.offsets)
        self.columns.copy_(layout.columns)
        replayed = self.layers(hidden)
        return self.layers.kind(last_hidden_state=replayed) if self.layers.kind else replayed


class _Layers(nn.Module):
    """A stack of layers as a function of the hidden states alone."""

    def __init__(self, replay: Replay, given: Mapping[str, Any]):
        super().__init__()
        self.stack, self.rounding, self.takes, self.given = replay.stack, replay.rounding, replay.takes, given
        self.training = self.stack.training
        self.kind: Any = None
        """Class of the output that the stack wraps the hidden states in; None if it returns a plain tensor."""

    def forward(self, hidden: Tensor) -> Tensor:
        self.rounding.forget()  # a tensor rounded in an earlier pass would not be rounded in the recording
        out = type(self.stack).forward(self.stack, **{self.takes: hidden}, **self.given)
        if isinstance(out, Tensor):
            return out
        if len(out) != 1 or not isinstance(out, ModelOutput):
            raise Unpackable("its layers return more than hidden states")
        self.kind = type(out)
        return out[0]


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Restore the random state after the block, and after a failed recording also the stream and the generator."""
    stream, generator = torch.cuda.current_stream(device), torch.cuda.default_generators[device.index]
    drawn, spare = generator.get_state(), generator.clone_state()
    try:
        yield
    except BaseException:
        torch.cuda.set_stream(stream)
        generator.graphsafe_set_state(spare)
        raise
    generator.set_state(drawn)
