"""`score --adapter DIR`: the options that an adapter trained elsewhere decides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.methods.folder import adapter_folder


def named(adapter: str, task: str | None, given: Mapping[str, Any], run_dir: Path) -> dict[str, Any]:
    """Return the options with the adapter's folder, the task, and the backbone that the adapter names.

    A backbone that is named otherwise (-o, -c, or in the run directory) is taken instead. Raises UserError if there is
    none.
    """
    overrides = [*(given["overrides"] or []), f"warmup.adapter={Path(adapter).expanduser().absolute()}"]
    if task is not None:
        overrides.append(f"task={task}")
    elsewhere = given["config"] or (run_dir / "config.yaml").is_file()
    if not elsewhere and not any(text.split("=")[0].strip() == "backbone" for text in overrides):
        folder = adapter_folder(adapter, "--adapter")
        content = read_json(folder / "adapter_config.json")
        base = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        if not isinstance(base, str) or not base:
            raise UserError(f"{folder} does not name the model that it was trained on. Name it: -o backbone=NAME")
        overrides.append(f"backbone={base}")
    return {**given, "overrides": overrides}
