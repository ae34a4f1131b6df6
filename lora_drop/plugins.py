"""A user's own tasks and methods, from one file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.methods.base import Method
from lora_drop.registry import METHODS, TASKS
from lora_drop.tasks.base import Task


def load_plugin(path: str | Path) -> None:
    """Execute a user's file and add every Task and Method that it defines. Raises UserError if it cannot be read or defines none."""
    file = Path(path).expanduser()
    specification = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or specification is None or specification.loader is None:
        raise UserError(f"The plugin {path} is not a Python file.")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    found = [value for value in vars(module).values() if isinstance(value, (Task, Method))]
    if not found:
        raise UserError(f"The plugin {path} defines no Task and no Method at its top level.")
    for thing in found:
        registry = TASKS if isinstance(thing, Task) else METHODS
        if thing.name in registry.own and registry.get(thing.name) is thing:
            continue  # imported to build on
        registry.add(thing.name, thing)
