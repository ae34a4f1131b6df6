"""A model that is computed without padding for the duration of a batch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface

from lora_drop.training.packing.attention import GroupedAttention, Scoring, longest_row, varlen_attention
from lora_drop.training.packing.dropout import dropout_forward
from lora_drop.training.packing.frozen import Frozen, Half, ready
from lora_drop.training.packing.layout import Layout, Unpackable
from lora_drop.training.packing.lora import lora_forward, plain_loras
from lora_drop.training.packing.model import configs, find_stack, pretrained, uses_interface
from lora_drop.training.packing.own_attention import OwnAttention
from lora_drop.training.packing.replay import Replay

NAME = "lora_drop_packed"
"""Name of the attention in transformers' registry."""
READ = {"first": "first token of each row", "last": "last token of each row", "learned": "learned tokens"}


class _Trimming(TorchFunctionMode):
    """Passes every torch function after the last attention only the tokens that are read.

    This way a residual taken before the attention matches its output, whatever operations the layer uses.
    """

    def __init__(self, packing: Packing):
        super().__init__()
        self.packing = packing

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*map(self.packing.trim, args), **(kwargs or {}))


class Packing:
    """A model that is computed without padding while `over` is entered. Made by `prepare`."""

    active: Packing | None = None

    def __init__(self, model: nn.Module, frozen: Mapping[nn.Linear, Frozen] | None, own: bool):
        """Find the stack of layers. Raises Unpackable if there is none, or none that can be packed.

        Args:
            model: The model to compute.
            frozen: Layers with weights that are prepared for the product.
            own: Let the model's own code compute attention, instead of plugging one in through transformers' interface.
        """
        self.reads, self.trims = "all", False
        base = pretrained(model)
        if not own and not uses_interface(base):
            raise Unpackable(f"{base.config.model_type} does not use transformers' attention interface")
        found = find_stack(base)
        if own and found.embeds:
            raise Unpackable("its layers are run by the module that embeds the tokens")
        self.stack, self.embeds = found.module, found.embeds
        self.own = OwnAttention(found.module, found.layers) if own else None
        self.names = list(inspect.signature(self.stack.forward).parameters)
        self.configs = [] if own else configs(base)
        self.dropouts = [module for module in model.modules() if type(module) is nn.Dropout]
        self.loras = plain_loras(model)
        self.frozen, self.half = frozen or {}, Half()
        self.replay: Replay | None = None
        """Recordings of the layers for training on a GPU."""
        self.longest: int | None = None
        """The most tokens of a row that this device can compute, if the model's attention limits it."""
        self.layout: Layout | None = None
        self.trimming: _Trimming | None = None
        """Active from the last attention to the end of the stack."""
        self.attentions: int | None = None
        """Number of attention calls in a forward pass, once counted."""

    def __str__(self) -> str:
        """Return a description of the computation."""
        trimmed = f", last layer only for the {READ[self.reads]}" if self.trims else ""
        return f"packed{trimmed}" + "; layers replayed as CUDA graphs in training" * bool(self.replay)

    def fits(self, batch: Mapping[str, Tensor]) -> bool:
        """Return True if no row of a batch is longer than this device can compute."""
        if self.longest is None:
            return True
        mask = batch.get("attention_mask")
        return int(batch["input_ids"].shape[1] if mask is None else mask.sum(1).max()) <= self.longest

    @contextmanager
    def over(self, batch: Mapping[str, Tensor], whole: bool = False, learns: bool = False) -> Iterator[Layout]:
        """Compute `batch` without padding inside the context, including any backward pass called there.

        Args:
            batch: The inputs that the model is called with: `input_ids` and `attention_mask` (`batch seq`), and for a
                language model `labels`.
            whole: Compute and return every token in every layer, whatever is read.
            learns: True for a training step. Nothing inspects the layers then, so they may be replayed.
        """
        replay = self.replay if learns else None
        reads, trims = ("all", False) if whole else (self.reads, self.trims and not replay)
        mask = batch.get("attention_mask")
        mask = torch.ones_like(batch["input_ids"]) if mask is None else mask
        layout = Layout(mask, batch.get("labels"), reads, fills=replay is not None)
        with ExitStack() as undo:
            undo.callback(self._forget)
            Packing.active, self.layout, self._trimmed = self, layout, trims
            for config in self.configs:
                undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
                config._attn_implementation = NAME
            undo.enter_context(ready(self.frozen, self.half))
            for module, forward in self._forwards(layout.flat.device):
                module.forward = forward
                undo.callback(delattr, module, "forward")
            if replay:
                self.stack.forward = partial(replay, layout)
                undo.callback(delattr, self.stack, "forward")
            undo.callback(self.stack.register_forward_pre_hook(self._pack, with_kwargs=True).remove)
            if self.own:
                undo.callback(self.own.first.register_forward_pre_hook(self.own.enter, with_kwargs=True).remove)
            undo.callback(self.stack.register_forward_hook(self._unpack).remove)
            yield layout

    def _forwards(self, device: torch.device) -> Iterator[tuple[Any, Callable[..., Any]]]:
        """Yield each module that is computed in a faster way, and its new forward function."""
        if device.type == "cpu":  # a GPU's generator is fast
            yield from ((module, partial(dropout_forward, module)) for module in self.dropouts)
        for layer, adapter in self.loras:
            base = self.frozen.get(layer.base_layer, layer.base_layer)
            yield layer, partial(lora_forward, layer, adapter, base, self.half)
        if self.own:
            yield from self.own.forwards(self)

    def _forget(self) -> None:
        if self.own:
            self.own.forget()
        self.half.forget()
        self._end_trimming()
        Packing.active, self.layout = None, None

    def _end_trimming(self) -> bool:
        """Pass functions all tokens again. Return True if trimming was active."""
        mode, self.trimming = self.trimming, None
        if mode is not None:
            mode.__exit__(None, None, None)
        return mode is not None

    def attended(self) -> bool:
        """Count a call of an attention. Return True if only the tokens that are read continue from here."""
        self._attended += 1
        return self._trimmed and self._attended == self.attentions

    def begin_trimming(self) -> None:
        """Pass functions only the tokens that are read, until the end of the stack."""
        self.trimming = _Trimming(self)
        self.trimming.__enter__()

    def trim(self, value: Any) -> Any:
        """Return a tensor `1 tokens width` with only the tokens that are read. Return anything else unchanged."""
        assert self.layout is not None
        if not isinstance(value, Tensor) or value.ndim != 3 or value.shape[:2] != (1, self.layout.tokens):
            return value
        return value.index_select(1, self.layout.read)

    def _pack(self, stack: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        layout, self._attended = self.layout, 0
        assert layout is not None
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        if self.own:
            packed = given["hidden_states"].flatten(0, 1).index_select(0, layout.taken).unsqueeze(0)
            return (), self.own.begin(given, packed, layout)
        given["attention_mask"] = None
        for name in ("input_ids", "inputs_embeds", "hidden_states", "token_type_ids"):
            if isinstance(given.get(name), Tensor):
                given[name] = given[name].flatten(0, 1).index_select(0, layout.taken).unsqueeze(0)
        if self.embeds:
            given |= {"position_ids": layout.columns.unsqueeze(0), "use_cache": False}
        if self.embeds and layout.fills and isinstance(given.get("input_ids"), Tensor):
            given["inputs_embeds"] = stack.get_input_embeddings()(given.pop("input_ids"))
        return (), given

    def _unpack(self, module: nn.Module, args: tuple, output: Any) -> Any:
        layout, trimmed = self.layout, self._end_trimming()
        assert layout is not None
        if not layout.fills:
            self.attentions = self._attended
        hidden = output if isinstance(output, Tensor) else output[0]
        if layout.reads != "all" and not trimmed:
            hidden = hidden.index_select(1, layout.read)
        hidden = layout.restore(hidden)
        if isinstance(output, Tensor):
            return hidden
        if isinstance(output, tuple):
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        if output.get("hidden_states"):  # some callers read the last one; the others are packed
            output.hidden_states = (*[None] * (len(output.hidden_states) - 1), hidden)
        return output


_UNDERSTOOD = {
    "is_causal",
    "sliding_window",
    "softcap",
    "deterministic",  # concerns flash attention; the other kernels are deterministic
    "position_ids",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
}


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention over the batch of the active `Packing`, with the signature of transformers' interface.

    Args:
        module: The attention module. Its `is_causal` is the default for the option.
        query: `1 heads tokens width`; `key` and `value` may have fewer heads.
        key: See `query`.
        value: See `query`.
        attention_mask: Must be None; the layout defines the rows.
        dropout: Share of the attention weights that is dropped.
        scaling: Factor for the scores; None is 1/√width.
        options: `is_causal`, `sliding_window` and `softcap`. Others must be off or not change the result.

    Returns:
        `1 tokens heads width`, and None for the weights.

    Raises:
        Unpackable: If there is a mask or an option that this attention does not support, such as a sink, or if it is
            called outside the stack of layers.
    """
    packing = Packing.active
    if packing is None or packing.layout is None:
        raise Unpackable("attention was called outside the stack of layers")
    unknown = [
        name for name, given in options.items() if given is not None and given is not False and name not in _UNDERSTOOD
    ]
    if unknown or attention_mask is not None or query.shape[2] != packing.layout.tokens:
        raise Unpackable(f"its attention needs {', '.join(unknown) or 'a mask of its own'}")
    causal = bool(
        options.get("is_causal") if options.get("is_causal") is not None else getattr(module, "is_causal", False)
    )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(scaling, options.get("softcap"), causal, options.get("sliding_window"), dropout)
    device = query.device.type
    mixed = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if mixed else value.dtype  # rotary embeddings may have returned fp32
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    last = packing.attended()
    with torch.autocast(device, enabled=False) if mixed else nullcontext():
        if device == "cpu" and not packing.layout.fills:
            read_only = last and packing.layout.one_each
            out = GroupedAttention.apply(q, k, v, packing.layout, scoring, read_only)
        else:
            packing.longest = longest_row(q, scoring) or packing.longest  # one window in a model
            out = varlen_attention(q, k, v, packing.layout, scoring)
    if last:
        packing.begin_trimming()
    return out.unsqueeze(0), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
