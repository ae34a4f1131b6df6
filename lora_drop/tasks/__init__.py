"""The tasks by name. Adding one is a new file with a `Task`, and one line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from lora_drop.errors import UserError, closest

if TYPE_CHECKING:
    from lora_drop.tasks.base import Task

REGISTRY = {
    "cola": "glue:COLA",
    "sst2": "glue:SST2",
    "mrpc": "glue:MRPC",
    "qqp": "glue:QQP",
    "stsb": "glue:STSB",
    "mnli": "glue:MNLI",
    "qnli": "glue:QNLI",
    "rte": "glue:RTE",
    "toy-nli": "toy_nli:TASK",
    "e2e": "e2e:TASK",
    "dart": "dart:TASK",
    "dialogsum": "dialogsum:TASK",
    "toy-nlg": "toy_nlg:TASK",
}


def task_names() -> list[str]:
    """Return the names of all tasks."""
    return list(REGISTRY)


def get_task(name: str) -> Task:
    """Return a task. Raises UserError for an unknown name."""
    if name not in REGISTRY:
        raise UserError(f"Unknown task {name!r}.{closest(name, task_names())} Tasks: {', '.join(REGISTRY)}")
    module, attribute = REGISTRY[name].split(":")
    task: Task = getattr(importlib.import_module(f"lora_drop.tasks.{module}"), attribute)
    return task
