"""The options of `score --adapter DIR` that follow from an adapter trained elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drop.cli.options import is_set
from lora_drop.config.loading import load_config
from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.methods.folder import adapter_folder

HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
"""A model on the Hub without a revision: `bert-base-uncased`, `org/name`."""


def named(adapter: str, task: str | None, given: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return the options with the adapter's folder, the task, and the backbone that the adapter names.

    A backbone from -b, -o, -c, or a run directory that is already about this adapter, takes precedence. Raises
    UserError if there is no backbone.
    """
    path = str(Path(adapter).expanduser().absolute())
    overrides = [*(given["overrides"] or []), f"warmup.adapter={path}"]
    if task is not None:
        overrides.append(f"task={task}")
    if not (is_set("backbone", given) or _scored_before(path, run_dir)):
        folder = adapter_folder(adapter, "--adapter")
        content = read_json(folder / "adapter_config.json")
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        if not isinstance(base, str) or not base:
            raise UserError(f"{folder} does not name the model that it was trained on. Name it: --backbone NAME")
        revision = content.get("revision")
        pinned = isinstance(revision, str) and revision and HUB_ID.fullmatch(base) and not Path(base).is_dir()
        overrides.append(f"backbone={base}@{revision}" if pinned else f"backbone={base}")
    return {**given, "overrides": overrides}


def _scored_before(adapter: str, run_dir: Path) -> bool:
    """Return True if the run directory is already about this adapter, so that its backbone is the one in use."""
    stored = run_dir / "config.yaml"
    return stored.is_file() and load_config(stored=stored).warmup.adapter == adapter
