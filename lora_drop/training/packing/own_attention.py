"""Attention that is a model's own code, called on rows of similar length between operations on packed tokens.

Nothing of the code is known or copied. Three things are taken from the model itself:

- **What the attention is given** beside the tokens (a mask, a relative position bias): for each group of rows the stack of layers is called up to its
  first attention, with a batch of the group's shape. All layers get the same; a model for which that is wrong fails the trial.
- **Its projections**, linear layers of single tokens, are computed once for all tokens. In the attention's code stand-ins take their places and
  hand out the result for the rows of the group.
- **All that lies between them** is called on the group, padded to its longest row.

In place of the tokens the code is given NaN, so that whatever else it does with them is found out.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lora_drop.training.packing.layout import Group, Layout, Unpackable

if TYPE_CHECKING:
    from lora_drop.training.packing.packed import Packing

Given = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of an attention beside the tokens: by position and by name."""
Products = dict[nn.Module, tuple[Tensor, ...]]
"""What each projection makes of the tokens, in the rows of each group."""


class OwnAttention:
    """The attentions of a stack of layers, and what they are given for each group of rows."""

    def __init__(self, stack: nn.Module, layers: nn.ModuleList):
        """Find the attentions. Raises Unpackable if a layer has none, or several."""
        self.stack, self.first = stack, layers[0]
        self.cores = {module: _Core(module) for module in map(_attention, layers)}
        self.forget()

    def forget(self) -> None:
        """Let go of the batch."""
        self._given: list[Given] = []
        self._packed = self._stub = torch.empty(0)

    def forwards(self, packing: Packing) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """Yield each attention module and how it computes packed tokens."""
        yield from ((module, partial(self._forward, core, packing)) for module, core in self.cores.items())

    def begin(self, given: Mapping[str, Any], packed: Tensor, layout: Layout) -> dict[str, Any]:
        """Find what the attentions are given for each group.

        Args:
            given: what the stack was called with, padded.
            packed: `1 tokens width`, which the first layer will get.
            layout: of the batch.

        Returns:
            What the stack is to be called with: a single token, so that what it makes of the others' number, which is not used, is small.
        """
        if not layout.right_padded:
            raise Unpackable("its own attention needs rows that are padded on the right")
        self._given = []
        for group in layout.groups:
            part = _part(given, group.members, group.length, layout)
            try:
                type(self.stack).forward(self.stack, **{**part, "hidden_states": _ghost(packed, group)})
            except _Reached as reached:
                self._given.append(reached.given)
            else:
                raise Unpackable("its layers call no attention")
        self._packed, self._stub = packed, packed[:, :1].detach()
        return {**_part(given, layout.groups[0].members[:1], 1, layout), "hidden_states": self._stub}

    def enter(self, _layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Give the first layer all tokens instead of the single one: a hook."""
        every = {name: self._packed if value is self._stub else value for name, value in kwargs.items()}
        return tuple(self._packed if value is self._stub else value for value in args), every

    def _forward(self, core: _Core, packing: Packing, *args: Any, **kwargs: Any) -> Any:
        layout = packing.layout
        assert layout is not None
        rest = dict(kwargs)
        hidden: Tensor = args[0] if args else rest.pop("hidden_states")
        if len(self._given) < len(layout.groups):
            raise _Reached((args[1:], rest))
        if hidden.shape[:2] != (1, layout.tokens):
            raise Unpackable("its layers are called on other tokens than the stack of layers is")
        joined, others = core.attend(hidden, layout, self._given)
        if packing.attended():
            packing.begin_trimming()
            joined = joined.contiguous()  # by any function: from now on they are given the tokens that are read
        if core.end is not None:
            joined = core.end(joined)
        return joined if others is None else (joined, *others)


class _Reached(Exception):
    """The stack has called its first attention, with these arguments beside the tokens."""

    def __init__(self, given: Given):
        super().__init__()
        self.given = given


class _Core:
    """An attention module without its projections."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.end: nn.Module | None = None
        """The projection whose result the module returns as it is; it is left to the caller."""
        self.call: _Call | None = None
        self._known = False
        self._code = copy.copy(module)  # the same parameters and settings
        self._code.__dict__["_modules"] = {
            name: _Projection(self, child) if child is not None and _is_linear(child) else child
            for name, child in module._modules.items()
        }

    def attend(self, hidden: Tensor, layout: Layout, given: list[Given]) -> tuple[Tensor, Any]:
        """Return the result for all tokens, `1 tokens width`, and what else the module returns with it (None: it returns no tuple)."""
        self._code.training = self.module.training
        if not self._known:
            self._find_end(hidden, layout, given[0])
        products: Products = {}
        results = [self._run(_Call(hidden, layout, number, products), one) for number, one in enumerate(given)]
        first = results[0]
        whole = [result if isinstance(result, Tensor) else result[0] for result in results]
        return _Join.apply(layout, *whole), None if isinstance(first, Tensor) else first[1:]

    def _run(self, call: _Call, given: Given) -> Any:
        self.call = call
        try:
            return type(self.module).forward(self._code, call.ghost, *given[0], **given[1])
        finally:
            self.call = None  # it holds activations

    def _find_end(self, hidden: Tensor, layout: Layout, given: Given) -> None:
        with _Watching() as watching:
            call = _Call(hidden, layout, 0, {}, watching)
            result = self._run(call, given)
        returned = result if isinstance(result, Tensor) else result[0]
        for projection, made, seen in call.made:
            if made is returned and not watching.used(made, seen):
                self.end = projection
            elif made.shape[:2] == call.ghost.shape[:2]:
                raise Unpackable("its attention projects what it has made of its tokens")
        self._known = True


class _Call:
    """A call of an attention's code for one group of rows."""

    def __init__(
        self, hidden: Tensor, layout: Layout, number: int, products: Products, watching: _Watching | None = None
    ):
        self.hidden, self.layout, self.number, self.products = hidden, layout, number, products
        self.ghost = _ghost(hidden, layout.groups[number])
        self.watching = watching
        self.made: list[tuple[nn.Module, Tensor, int]] = []
        """Projections of something else than tokens, their results, and when that was (`_Watching.seen`)."""

    def product(self, projection: nn.Module) -> Tensor:
        """Return what a projection makes of the group's tokens."""
        if projection not in self.products:
            self.products[projection] = _Split.apply(projection(self.hidden), self.layout)
        return self.products[projection][self.number]


class _Projection:
    """Stands for a projection in the code of its attention."""

    def __init__(self, core: _Core, projection: nn.Module):
        self.core, self.projection = core, projection

    def __call__(self, x: Tensor) -> Tensor:
        call = self.core.call
        assert call is not None
        if x is call.ghost:
            return call.product(self.projection)
        if self.projection is self.core.end:
            return x
        # neither its hooks, which look at tokens, nor a faster product, whose result may not be changed in place
        made: Tensor = type(self.projection).forward(self.projection, x)
        if call.watching is not None:
            call.made.append((self.projection, made, call.watching.seen))
        return made


class _Watching(TorchFunctionMode):
    """Remembers the tensors that torch functions are called with."""

    def __enter__(self) -> _Watching:
        self._arguments: list[Any] = []  # kept alive, so that their ids are theirs
        super().__enter__()
        return self

    @property
    def seen(self) -> int:
        """Arguments so far."""
        return len(self._arguments)

    def used(self, tensor: Tensor, since: int) -> bool:
        """Return True if a function was called with it, after `since` arguments."""
        return any(argument is tensor for argument in self._arguments[since:])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._arguments += [*args, *(kwargs or {}).values()]
        return func(*args, **(kwargs or {}))


class _Split(torch.autograd.Function):
    """`1 tokens width` to `rows length width` of each group; what is at padding counts nowhere."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: Layout) -> tuple[Tensor, ...]:
        ctx.layout = layout
        return tuple(
            tokens[0, group.tokens].index_select(0, group.places(1).gather).view(group.rows, group.length, -1)
            for group in layout.groups
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _joined(ctx.layout, gradients), None


class _Join(torch.autograd.Function):
    """`rows length width` of each group to `1 tokens width`."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, *parts: Tensor) -> Tensor:
        ctx.layout = layout
        return _joined(layout, parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        found = []
        for group in ctx.layout.groups:
            rows = gradients[0][0, group.tokens].index_select(0, group.places(1).gather)
            if group.padded:
                rows.index_fill_(0, group.places(1).empty, 0)
            found.append(rows.view(group.rows, group.length, -1))
        return None, *found


def _joined(layout: Layout, parts: tuple[Tensor, ...]) -> Tensor:
    out = parts[0].new_empty(1, layout.tokens, parts[0].shape[-1])
    for group, part in zip(layout.groups, parts, strict=True):
        torch.index_select(part.flatten(0, 1), 0, group.places(1).scatter, out=out[0, group.tokens])
    return out


def _ghost(tokens: Tensor, group: Group) -> Tensor:
    """Return NaN in the shape of a group, without memory."""
    return tokens.new_full((1,), torch.nan).expand(group.rows, group.length, tokens.shape[-1])


def _part(given: Mapping[str, Any], members: Tensor, length: int, layout: Layout) -> dict[str, Any]:
    """Return arguments of the stack for some rows of the batch, cut to `length`."""
    return {name: _cut(value, members, length, layout.shape) for name, value in given.items()}


def _cut(value: Any, members: Tensor, length: int, shape: tuple[int, ...]) -> Any:
    """Cut `batch seq …`, or the `batch 1 seq seq` of a mask; anything else is returned as it is."""
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.shape[:2] == shape:
        return value[members, :length]
    if value.ndim == 4 and value.shape[-1] == shape[1]:
        value = value[members] if len(value) == shape[0] else value
        return value[:, :, : length if value.shape[2] > 1 else 1, :length]
    return value


def _attention(layer: nn.Module) -> nn.Module:
    """Return the module of a layer that is called an attention and has linear layers of its own."""
    found = [
        module
        for module in layer.modules()
        if "Attention" in type(module).__name__ and any(map(_is_linear, module.children()))
    ]
    if len(found) != 1:
        raise Unpackable(f"it has {len(found) or 'no'} attention{'s' if found else ''} in a layer")
    return found[0]


def _is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer, also under an adapter."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)
