"""Attention computed by a model's own code, called on rows of similar length between operations on packed tokens.

No knowledge of the code is built in, and none of it is copied. Three parts come from the model itself:

- **The other arguments of the attention** (a mask, a relative position bias): for each group of rows, the stack of
  layers is called up to its first attention with a batch of the group's shape. All layers get the same arguments; a
  model for which that is wrong fails the trial.
- **The projections**, linear layers on single tokens, are computed once for all tokens. In the attention's code,
  stand-ins replace them and return the result for the rows of the group.
- **Everything between the projections** is called on the group, padded to its longest row.

The code is given NaN in place of the tokens, so that any other use of them is detected.
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

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of an attention other than the tokens: positional ones and named ones."""
Projected = dict[nn.Module, tuple[Tensor, ...]]
"""The output of each projection, split into the rows of each group."""


class OwnAttention:
    """The attention modules of a stack of layers, and their arguments for each group of rows."""

    def __init__(self, stack: nn.Module, layers: nn.ModuleList):
        """Find the attention modules. Raises Unpackable if a layer has none, or several."""
        self.stack, self.first = stack, layers[0]
        self.cores = {module: _Core(module) for module in map(_attention, layers)}
        self.forget()

    def forget(self) -> None:
        """Release the tensors of the batch."""
        self._given: list[Arguments] = []
        self._packed = self._stub = torch.empty(0)

    def forwards(self, packing: Packing) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """Yield each attention module and its forward function for packed tokens."""
        yield from ((module, partial(self._forward, core, packing)) for module, core in self.cores.items())

    def begin(self, given: Mapping[str, Any], packed: Tensor, layout: Layout) -> dict[str, Any]:
        """Find the arguments of the attention modules for each group.

        Args:
            given: The padded arguments of the stack.
            packed: `1 tokens width`, the input of the first layer.
            layout: The layout of the batch.

        Returns:
            New arguments for the stack. They hold a single token, so that masks and the like that the stack builds for
            the number of tokens, and that are not used, stay small.

        Raises:
            Unpackable: If rows are not padded on the right, or the layers call no attention.
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
        """Pass the first layer all tokens instead of the single one. This is a forward pre-hook."""
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
            joined = joined.contiguous()  # call any function: from now on, functions get only the tokens that are read
        if core.end is not None:
            joined = core.end(joined)
        return joined if others is None else (joined, *others)


class _Reached(Exception):
    """Raised when the stack calls its first attention; holds the arguments other than the tokens."""

    def __init__(self, given: Arguments):
        super().__init__()
        self.given = given


class _Core:
    """An attention module without its projections."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.end: nn.Module | None = None
        """The output projection, if the module returns its result unchanged; the caller then applies it."""
        self.call: _Call | None = None
        self._known = False
        self._code = copy.copy(module)  # shares parameters and settings
        self._code.__dict__["_modules"] = {
            name: _Projection(self, child) if child is not None and _is_linear(child) else child
            for name, child in module._modules.items()
        }

    def attend(self, hidden: Tensor, layout: Layout, given: list[Arguments]) -> tuple[Tensor, Any]:
        """Return the result for all tokens, `1 tokens width`, and the other outputs (None if there is no tuple)."""
        self._code.training = self.module.training
        if not self._known:
            self._find_end(hidden, layout, given[0])
        products: Projected = {}
        results = [self._run(_Call(hidden, layout, number, products), one) for number, one in enumerate(given)]
        first = results[0]
        whole = [result if isinstance(result, Tensor) else result[0] for result in results]
        return _Join.apply(layout, *whole), None if isinstance(first, Tensor) else first[1:]

    def _run(self, call: _Call, given: Arguments) -> Any:
        self.call = call
        try:
            return type(self.module).forward(self._code, call.ghost, *given[0], **given[1])
        finally:
            self.call = None  # it holds activations

    def _find_end(self, hidden: Tensor, layout: Layout, given: Arguments) -> None:
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
        self, hidden: Tensor, layout: Layout, number: int, products: Projected, watching: _Watching | None = None
    ):
        self.hidden, self.layout, self.number, self.products = hidden, layout, number, products
        self.ghost = _ghost(hidden, layout.groups[number])
        self.watching = watching
        self.made: list[tuple[nn.Module, Tensor, int]] = []
        """Projections of anything other than the tokens, their results, and `_Watching.seen` at that time."""

    def product(self, projection: nn.Module) -> Tensor:
        """Return the output of a projection for the group's tokens."""
        if projection not in self.products:
            self.products[projection] = _Split.apply(projection(self.hidden), self.layout)
        return self.products[projection][self.number]


class _Projection:
    """A stand-in for a projection in the code of its attention."""

    def __init__(self, core: _Core, projection: nn.Module):
        self.core, self.projection = core, projection

    def __call__(self, x: Tensor) -> Tensor:
        call = self.core.call
        assert call is not None
        if x is call.ghost:
            return call.product(self.projection)
        if self.projection is self.core.end:
            return x
        # skip its hooks, which expect tokens, and the faster product, because its result must not be changed in place
        made: Tensor = type(self.projection).forward(self.projection, x)
        if call.watching is not None:
            call.made.append((self.projection, made, call.watching.seen))
        return made


class _Watching(TorchFunctionMode):
    """Records the arguments of all torch functions."""

    def __enter__(self) -> _Watching:
        self._arguments: list[Any] = []  # kept alive, so that their ids are not reused
        super().__enter__()
        return self

    @property
    def seen(self) -> int:
        """Number of arguments recorded so far."""
        return len(self._arguments)

    def used(self, tensor: Tensor, since: int) -> bool:
        """Return True if a function was called with the tensor after the first `since` arguments."""
        return any(argument is tensor for argument in self._arguments[since:])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._arguments += [*args, *(kwargs or {}).values()]
        return func(*args, **(kwargs or {}))


class _Split(torch.autograd.Function):
    """Split `1 tokens width` into `rows length width` for each group. Values at padding are never used."""

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
    """Join `rows length width` of each group into `1 tokens width`."""

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
    """Return NaN in the shape of a group, expanded from a single element."""
    return tokens.new_full((1,), torch.nan).expand(group.rows, group.length, tokens.shape[-1])


def _part(given: Mapping[str, Any], members: Tensor, length: int, layout: Layout) -> dict[str, Any]:
    """Return the arguments of the stack for some rows of the batch, cut to `length`."""
    return {name: _cut(value, members, length, layout.shape) for name, value in given.items()}


def _cut(value: Any, members: Tensor, length: int, shape: tuple[int, ...]) -> Any:
    """Cut a tensor `batch seq …`, or a mask `batch 1 seq seq`. Return anything else unchanged."""
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.shape[:2] == shape:
        return value[members, :length]
    if value.ndim == 4 and value.shape[-1] == shape[1]:
        value = value[members] if len(value) == shape[0] else value
        return value[:, :, : length if value.shape[2] > 1 else 1, :length]
    return value


def _attention(layer: nn.Module) -> nn.Module:
    """Return the module of a layer that has "Attention" in its class name and linear layers among its children."""
    found = [
        module
        for module in layer.modules()
        if "Attention" in type(module).__name__ and any(map(_is_linear, module.children()))
    ]
    if len(found) != 1:
        raise Unpackable(f"it has {len(found) or 'no'} attention{'s' if found else ''} in a layer")
    return found[0]


def _is_linear(module: nn.Module) -> bool:
    """Return True for a linear layer, with or without an adapter."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear)
