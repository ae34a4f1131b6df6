"""Find and identify the folder of a saved adapter, without importing torch."""

from __future__ import annotations

from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.files import digest, file_digest

COMPACT = "lora_drop.safetensors"
"""The weights of an adapter in the compact form (`compact.py`)."""


def adapter_identity(folder: Path) -> str:
    """Return a hash of an adapter's configuration and weights. A model card or checkpoints beside them do not count."""
    return digest([file_digest(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")])


def adapter_folder(path: str, key: str = "train.start_from") -> Path:
    """Return the adapter's folder for a path given under `key`: the path itself, or `adapter` in a run's folder.

    Raise UserError if there is no adapter in PEFT's form.
    """
    folder = Path(path).expanduser()
    if (folder / COMPACT).is_file():
        raise UserError(
            f"{key}={path} is a compact LoRA-drop adapter. Start from the run itself, or from its PEFT form "
            "(lora-drop export RUN --to peft)."
        )
    for found in (folder, folder / "adapter"):
        if (found / "adapter_config.json").is_file():
            return found
    raise UserError(
        f"{key}={path} is neither a PEFT adapter nor a run with a trained one: it has no adapter_config.json. "
        "(A whole model is named as the backbone.)"
    )
