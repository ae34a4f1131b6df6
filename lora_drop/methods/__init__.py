"""The methods by name. Adding one is a new file with a `Method`, and one line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lora_drop.errors import UserError, closest

if TYPE_CHECKING:
    from lora_drop.methods.base import Method

REGISTRY = ("full", "lora", "sparse_adapter", "vera", "tied_lora", "adalora", "lora_drop")
"""Each is a module of this package with a `METHOD`."""
SELECTING = ("lora_drop",)
"""Those that need a selection of layers: said here, too, so that asking does not import torch."""


def method_names() -> list[str]:
    """Return the names of all methods."""
    return list(REGISTRY)


def needs_selection(name: str) -> bool:
    """Return whether a method needs a selection of layers."""
    return name in SELECTING


def get_method(name: str) -> Method:
    """Return a method. Raises UserError for an unknown name."""
    if name not in REGISTRY:
        raise UserError(f"Unknown method {name!r}.{closest(name, method_names())} Methods: {', '.join(REGISTRY)}")
    method: Method = importlib.import_module(f"lora_drop.methods.{name}").METHOD
    return method
