"""The methods by name. Adding one is a new file with a `Method`, and one line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lora_drop.errors import UserError, closest

if TYPE_CHECKING:
    from lora_drop.methods.base import Method

REGISTRY = {
    "full": "full:METHOD",
    "lora": "lora:METHOD",
    "sparse_adapter": "sparse_adapter:METHOD",
    "vera": "vera:METHOD",
    "tied_lora": "tied_lora:METHOD",
    "adalora": "adalora:METHOD",
    "lora_drop": "lora_drop:METHOD",
}


def method_names() -> list[str]:
    """Return the names of all methods."""
    return list(REGISTRY)


def get_method(name: str) -> Method:
    """Return a method. Raises UserError for an unknown name."""
    if name not in REGISTRY:
        raise UserError(f"Unknown method {name!r}.{closest(name, method_names())} Methods: {', '.join(REGISTRY)}")
    module, attribute = REGISTRY[name].split(":")
    method: Method = getattr(importlib.import_module(f"lora_drop.methods.{module}"), attribute)
    return method
