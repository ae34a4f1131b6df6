"""Load a user's own tasks, methods, criteria, kinds of backbones and figures from a file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lora_drop.errors import UserError
from lora_drop.faults import foreign
from lora_drop.interruption import Stopped
from lora_drop.registry import BACKBONES, CRITERIA, FIGURES, METHODS, TASKS, Registry

KINDS: tuple[tuple[Registry[Any], str, str], ...] = (
    (TASKS, "lora_drop.tasks.base", "Task"),
    (METHODS, "lora_drop.methods.base", "Method"),
    (CRITERIA, "lora_drop.pruning.criteria.base", "Criterion"),
    (BACKBONES, "lora_drop.models.base", "BackboneKind"),
    (FIGURES, "lora_drop.experiments.plots", "Figure"),
)
"""Registries, with the module and name of their type. A plugin that defines an instance has imported that module."""
LOADED: list[Path] = []
"""The plugins of this process, which its workers load as well."""


def load_plugin(path: str | Path) -> None:
    """Execute a user's file and add every Task, Method, Criterion, BackboneKind and Figure defined at its top level.

    Raises:
        UserError: if it is not a Python file, if it raises an exception or defines none of these, or if a name is
            taken.
    """
    file = Path(path).expanduser()
    specification = importlib.util.spec_from_file_location(f"lora_drop_plugin_{file.stem}", file)
    if not file.is_file() or specification is None or specification.loader is None:
        raise UserError(f"The plugin {path} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses look up their annotations there
    with foreign(f"The plugin {path} cannot be loaded"):
        try:
            specification.loader.exec_module(module)
        except Stopped:
            raise
        except SystemExit as error:  # a script that ends with sys.exit(main())
            raise UserError(f"The plugin {path} calls sys.exit when it is loaded. Move that under __main__.") from error
    found = list(_things(module))
    if not found:
        raise UserError(f"The plugin {path} defines no {', '.join(name for _, _, name in KINDS)} at its top level.")
    for registry, thing in found:
        if thing.name in registry.own and registry.get(thing.name) is thing:
            continue  # one of this package's, imported by the plugin
        registry.add(thing.name, thing)
    LOADED.append(file.absolute())


def _things(module: ModuleType) -> Iterator[tuple[Registry[Any], Any]]:
    for registry, defined_in, name in KINDS:
        kind = getattr(sys.modules.get(defined_in), name, ())
        yield from ((registry, value) for value in vars(module).values() if isinstance(value, kind))
