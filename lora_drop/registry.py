"""Registries of tasks, methods, criteria, kinds of backbones and figures by name.

| source | entry |
|---|---|
| this package | a line below |
| an installed package | an entry point `name = "module:OBJECT"` in a group below, such as `lora_drop.tasks` |
| a file (`lora-drop --plugin FILE.py`) | every `Task`, `Method`, `Criterion`, `BackboneKind` or `Figure` at top level |

The groups are `lora_drop.tasks`, `.methods`, `.criteria`, `.backbones` and `.figures`. A name is resolved on use, so
listing names imports nothing. (For the same reason, this file cannot refer to those types.)
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Generic, TypeVar

from lora_drop.errors import UserError, closest

T = TypeVar("T")


class Registry(Generic[T]):
    """Objects of one kind, by name."""

    def __init__(self, what: str, group: str, own: Mapping[str, str]):
        """Register this package's objects (`own`: "module:OBJECT" by name) and the entry points of `group`."""
        self.what, self.group, self.own = what, group, dict(own)
        self.added: dict[str, T] = {}

    @cached_property
    def installed(self) -> dict[str, Any]:
        """Entry points of installed packages by name."""
        from importlib.metadata import entry_points  # imported late: it takes longer than printing the help

        return {entry.name: entry for entry in entry_points(group=self.group)}

    def names(self) -> list[str]:
        """Return all names, this package's first."""
        return list(dict.fromkeys([*self.own, *self.installed, *self.added]))

    def get(self, name: str) -> T:
        """Return the object with this name. Raise UserError for an unknown name."""
        if name in self.added:
            return self.added[name]
        if name in self.own:
            module, attribute = self.own[name].split(":")
            return getattr(importlib.import_module(module), attribute)
        if name in self.installed:
            return self.installed[name].load()
        names = self.names()
        raise UserError(f"Unknown {self.what} {name!r}.{closest(str(name), names)} Known: {', '.join(names)}")

    def add(self, name: str, thing: T) -> None:
        """Add an object. Raise UserError if the name is taken, as results must not depend on the order of plugins."""
        if name in self.names():
            raise UserError(f"There is already a {self.what} {name!r}. Give the new one another name.")
        self.added[name] = thing


TASKS: Registry[Any] = Registry(
    "task",
    "lora_drop.tasks",
    {
        "cola": "lora_drop.tasks.glue:COLA",
        "sst2": "lora_drop.tasks.glue:SST2",
        "mrpc": "lora_drop.tasks.glue:MRPC",
        "qqp": "lora_drop.tasks.glue:QQP",
        "stsb": "lora_drop.tasks.glue:STSB",
        "mnli": "lora_drop.tasks.glue:MNLI",
        "qnli": "lora_drop.tasks.glue:QNLI",
        "rte": "lora_drop.tasks.glue:RTE",
        "toy-nli": "lora_drop.tasks.toy_nli:TASK",
        "e2e": "lora_drop.tasks.e2e:TASK",
        "dart": "lora_drop.tasks.dart:TASK",
        "dialogsum": "lora_drop.tasks.dialogsum:TASK",
        "toy-nlg": "lora_drop.tasks.toy_nlg:TASK",
    },
)
METHODS: Registry[Any] = Registry(
    "method",
    "lora_drop.methods",
    {
        name: f"lora_drop.methods.{name}:METHOD"
        for name in ("full", "lora", "sparse_adapter", "vera", "tied_lora", "adalora", "lora_drop")
    },
)
CRITERIA: Registry[Any] = Registry(
    "criterion",
    "lora_drop.criteria",
    {
        name: f"lora_drop.pruning.criteria.{name}:CRITERION"
        for name in ("output", "output_relative", "gradient", "fisher", "activation", "weight", "random")
    },
)
"""The paper's criterion comes first. No criterion imports torch before it scores."""
BACKBONES: Registry[Any] = Registry(
    "kind of backbone",
    "lora_drop.backbones",
    {
        "saved": "lora_drop.models.saved:KIND",
        "packaged": "lora_drop.models.packaged:KIND",
        "tiny": "lora_drop.models.untrained:TINY_KIND",
        "shape": "lora_drop.models.untrained:SHAPE_KIND",
    },
)
"""A backbone's name begins with its kind, except for `saved` (a folder, or a repository on the Hub)."""
TITLES = {
    "full": "Full-FT",
    "lora": "LoRA",
    "sparse_adapter": "Sparse Adapter",
    "vera": "VeRA",
    "tied_lora": "Tied-LoRA",
    "adalora": "AdaLoRA",
    "lora_drop": "LoRA-drop",
}
"""Titles of this package's methods, repeated here so that listing runs does not import torch."""
SELECTING = ("lora_drop",)
"""Methods of this package that need a selection of layers, repeated here so that checking does not import torch."""


def needs_selection(method: str) -> bool:
    """Return True for a method that needs a selection of layers."""
    return method in SELECTING if method in METHODS.own else METHODS.get(method).needs_selection


FIGURES: Registry[Any] = Registry(
    "figure",
    "lora_drop.figures",
    {
        name: f"lora_drop.experiments.figures.{name}:FIGURE"
        for name in (
            "tradeoff",
            "importance",
            "layers",
            "curves",
            "distribution",
            "sharing",
            "ratios",
            "claims",
            "retained",
            "criteria",
        )
    },
)
