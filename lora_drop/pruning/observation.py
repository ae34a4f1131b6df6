"""Observe z = A x of every LoRA in a forward pass, for the real tokens of the batch only.

The model computes z anyway, so observing it costs nothing. (Some criteria read other values per token instead: a `View`
of the module's input x.)

Most modules are called once, on `batch seq width`. Every kind of call has a rule:

| input of a call | what counts |
|---|---|
| `batch seq width` | tokens kept by the mask (the decoder's, in decoder modules that do not read the encoder) |
| `batch·seq width` | the same, in the same order |
| `batch width` (a pooled row) | one vector per row |
| `batch n width`, in a batch without tokens (`pixel_values`) | everything |
| anything else, in a module that is also called on tokens (DeBERTa's relative positions) | nothing |
| anything else | refused: an expert sees tokens that cannot be traced to their rows |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lora_drop.errors import UserError
from lora_drop.pruning.adapters import Lora, unwrapped

Add = Callable[[str, Tensor], None]
View = Callable[[Lora, Tensor], Tensor]
"""`view(lora, x)` returns n values per token (`*batch n`) from the input x of a module."""


@runtime_checkable
class Layout(Protocol):
    """Positions of the tokens of a batch that runs without padding, as `1 tokens width` (`training.packing`)."""

    @property
    def tokens(self) -> int:
        """Real tokens in the batch."""

    def restore(self, hidden: Tensor) -> Tensor:
        """Return packed states as `batch seq width`, zero at padding."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode inside the context, and restore the mode of each of its modules afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Call(NamedTuple):
    """The call of a module that is running."""

    name: str
    lora: Lora
    x: Tensor
    in_decoder: bool


class Observer:
    """Hooks on every LoRA of a model, which is in eval mode meanwhile.

    On exit, also after an exception, the hooks are removed and the mode is restored.
    """

    def __init__(self, model: nn.Module, layers: Mapping[str, Lora], add: Add, view: View | None, by_example: bool):
        """Call `add(name, z)` for each call that counts; z is `batch seq rank`, zero where there is no real token.

        A `view` replaces z by its own values. Without `by_example`, z may be `1 tokens rank`: a packed batch is not put
        back into rows.
        """
        self.model, self.layers, self.add, self.view, self.by_example = model, layers, add, view, by_example
        inner = unwrapped(model)
        self.base: Any = getattr(inner, "get_base_model", lambda: inner)()
        self.two_stacks = bool(getattr(getattr(self.base, "config", None), "is_encoder_decoder", False))
        self.device = next(model.parameters()).device
        self.tokens = 0
        """Real tokens of the last batch."""
        self._constant: dict[str, set[int]] | None = None
        self._inside: _Call | None = None
        """The running module: its name, LoRA and input, and True if it is in the decoder of an encoder-decoder. None
        while other values than the batch's tokens are computed (`packing.own_attention` computes positions without
        hooks)."""

    def __enter__(self) -> Observer:
        in_decoder = set(map(id, self.base.get_decoder().modules())) if self.two_stacks else set()
        with ExitStack() as undo:
            undo.enter_context(eval_mode(self.model))
            if any(map(_is_compiled, self.model.modules())):  # before the hooks existed: it would skip them
                undo.enter_context(torch.compiler.set_stance("force_eager"))
            for name, lora in self.layers.items():
                hook = self._hook(name, lora, id(lora.layer) in in_decoder)
                undo.callback(lora.layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
                undo.callback(lora.layer.register_forward_hook(self._left).remove)
            if self.view is None:
                for projector in {lora.projector for lora in self.layers.values() if not lora.merges}:  # some share one
                    undo.callback(projector.register_forward_hook(self._projected).remove)
            if self.two_stacks:
                undo.callback(self.base.get_encoder().register_forward_hook(self._encoded).remove)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's arguments, on its device; labels are kept only if they feed a decoder."""
        from accelerate.utils import send_to_device

        kept = {key: value for key, value in batch.items() if key != "labels" or (self.two_stacks and _is_text(value))}
        return send_to_device(kept, self.device)

    def look(self, inputs: dict[str, Any], layout: Layout | None) -> None:
        """Run the model on a batch, packed as `layout` says.

        Raise UserError for a module whose inputs are not the batch's tokens, or that is not called.
        """
        rows = examples_in(inputs)
        if rows == 1 and layout is None and self._constant is None:
            self._constant = self._find_constant(inputs)
        self._begin(inputs, layout, rows)
        self.model(**inputs)
        self._end()

    def _find_constant(self, inputs: dict[str, Any]) -> dict[str, set[int]]:
        """Return, by module, the indices of the calls whose input does not depend on the batch.

        A batch of one row looks like DeBERTa's relative positions, which are also one row and may be as long. A batch
        of two rows does not, so the row is duplicated.
        """
        twice = {
            key: value.repeat(2, *[1] * (value.ndim - 1)) if _rows(value) == 1 else value
            for key, value in inputs.items()
        }
        self._begin(twice, None, 2)
        self._adds = False
        try:
            self.model(**twice)
        except (RuntimeError, ValueError, IndexError) as error:
            one_each = all(_rows(value) in (0, 1) for value in inputs.values())
            if one_each or isinstance(error, torch.OutOfMemoryError):
                raise
            return {}  # some inputs are not one per row, such as an image's patches, and cannot be repeated like this
        return {
            name: {call for call, counted in enumerate(calls) if not counted} for name, calls in self._calls.items()
        }

    def _begin(self, inputs: dict[str, Any], layout: Layout | None, rows: int) -> None:
        self._layout, self._rows, self._adds = layout, rows, True
        self._mask = _mask(inputs)
        self._decoder_mask = _decoder_mask(inputs, self._mask)
        self._encoder_output: Tensor | None = None
        self._calls: dict[str, list[bool]] = {name: [] for name in self.layers}
        self._unknown: dict[str, tuple[int, ...]] = {}
        self.tokens = int(self._mask.sum()) if self._mask is not None else 0

    def _end(self) -> None:
        for name, shape in self._unknown.items():
            if not any(self._calls[name]):
                raise UserError(
                    f"{name} is called with inputs of shape {shape}, which are not the batch's tokens (an expert sees "
                    "only some of them, and it is unknown of which example). Its LoRA cannot be scored: leave it out "
                    "of target_modules."
                )
        silent = [name for name, calls in self._calls.items() if not calls]
        if silent:
            raise UserError(
                f"{silent[0]} was not called in this forward pass, so its LoRA has no output to score. Leave it out of target_modules."
            )

    def _hook(self, name: str, lora: Lora, in_decoder: bool) -> Callable[..., None]:
        view = Lora.project if self.view is None and lora.merges else self.view

        def observe(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x: Tensor = args[0] if args else kwargs["x"]
            self._inside = _Call(name, lora, x, in_decoder)
            if view is not None:
                self._take(self._inside, view(lora, x))

        return observe

    def _left(self, *_: Any) -> None:
        self._inside = None

    def _projected(self, _projector: nn.Module, _args: tuple[Any, ...], z: Tensor) -> None:
        if self._inside is not None:
            self._take(self._inside, self._inside.lora.completed(z))

    def _take(self, call: _Call, z: Tensor) -> None:
        """Record a call of a module, and add its values if they belong to the batch's tokens."""
        name, _, x, in_decoder = call
        constant = self._rows == 1 and len(self._calls[name]) in (self._constant or {}).get(name, ())
        real = None if constant else self._real(z, x, in_decoder)
        self._calls[name].append(real is not None)
        if real is None:
            self._unknown[name] = tuple(x.shape)
        elif self._adds:
            self.add(name, real)

    def _real(self, z: Tensor, x: Tensor, in_decoder: bool) -> Tensor | None:
        """Return z as `batch seq rank`, zero at padding, or None if it does not belong to the batch's tokens."""
        dims = tuple(z.shape[:-1])
        if self._layout is not None:
            if dims != (1, self._layout.tokens):
                return None
            return self._layout.restore(z) if self.by_example else z
        reads_encoder = self._encoder_output is not None and x.data_ptr() == self._encoder_output.data_ptr()
        mask = self._decoder_mask if in_decoder and not reads_encoder else self._mask
        if mask is None:
            if len(dims) < 2 or dims[0] != self._rows:
                return None
            self.tokens = max(self.tokens, self._rows * dims[1])
            return z.flatten(1, -2)
        if dims in (tuple(mask.shape), (mask.numel(),)):
            z = z.view(*mask.shape, -1)
            return z.masked_fill(~mask.unsqueeze(-1), 0)
        return z.unsqueeze(1) if dims == (len(mask),) else None

    def _encoded(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        self._encoder_output = output[0]


def _is_compiled(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def a_batch(batch: Any) -> Mapping[str, Any]:
    """Return the batch. Raise UserError unless it maps argument names of a model's forward to tensors."""
    if not isinstance(batch, Mapping) or not any(_rows(value) for key, value in batch.items() if key != "labels"):
        what = "a dict without tensors of inputs" if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"A batch is {what}. Give an iterable of batches (a list, a DataLoader), each a dict of the tensors that the model's "
            "forward takes: input_ids, attention_mask, …"
        )
    return batch


def examples_in(inputs: Mapping[str, Any]) -> int:
    """Return the number of rows of a batch."""
    for name in ("input_ids", "inputs_embeds", "attention_mask"):
        if name in inputs:
            return len(inputs[name])
    return next(rows for rows in map(_rows, inputs.values()) if rows)


def _rows(value: Any) -> int:
    return len(value) if isinstance(value, Tensor) and value.ndim else 0


def _is_text(labels: Any) -> bool:
    """Return True if labels are tokens. Those of a multi-label classifier are also 2-d (`batch labels`), but floats."""
    return isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()


def _mask(inputs: Mapping[str, Any]) -> Tensor | None:
    """Return the mask of real tokens (`batch seq`), or None if the batch has no tokens (images)."""
    mask = inputs.get("attention_mask")
    if mask is not None:
        if mask.ndim != 2:
            raise UserError(f"attention_mask has the shape {tuple(mask.shape)}; scoring needs one of (batch, seq).")
        return mask != 0
    for name in ("input_ids", "inputs_embeds"):
        if name in inputs:
            return torch.ones(inputs[name].shape[:2], dtype=torch.bool, device=inputs[name].device)
    return None


def _decoder_mask(inputs: Mapping[str, Any], mask: Tensor | None) -> Tensor | None:
    """Return the mask of the decoder's real tokens.

    A classifier feeds its decoder the encoder's tokens, shifted right by one, and reads the output at the position that
    the last token had before the shift. Later positions do not affect that output, so the encoder's mask is right.
    """
    if "decoder_attention_mask" in inputs:
        return inputs["decoder_attention_mask"] != 0
    if _is_text(inputs.get("labels")):
        return inputs["labels"] != -100  # -100 is ignored by PyTorch's loss
    if "decoder_input_ids" in inputs:
        return torch.ones_like(inputs["decoder_input_ids"], dtype=torch.bool)
    return mask
