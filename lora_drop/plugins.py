"""A user's own tasks, methods and kinds of backbones, from one file."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.methods.base import Method
from lora_drop.models.base import BackboneKind
from lora_drop.registry import BACKBONES, METHODS, TASKS
from lora_drop.tasks.base import Task


def load_plugin(path: str | Path) -> None:
    """Execute a user's file and add what it defines. Raises UserError if it cannot be read or defines nothing."""
    file = Path(path).expanduser()
    specification = importlib.util.spec_from_file_location(f"lora_drop_plugin_{file.stem}", file)
    if not file.is_file() or specification is None or specification.loader is None:
        raise UserError(f"The plugin {path} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # where a dataclass looks up its annotations
    specification.loader.exec_module(module)
    found = [
        (registry, value)
        for value in vars(module).values()
        for kind, registry in ((Task, TASKS), (Method, METHODS), (BackboneKind, BACKBONES))
        if isinstance(value, kind)
    ]
    if not found:
        raise UserError(f"The plugin {path} defines no Task, no Method and no BackboneKind at its top level.")
    for registry, thing in found:
        if thing.name in registry.own and registry.get(thing.name) is thing:
            continue  # imported to build on
        registry.add(thing.name, thing)
