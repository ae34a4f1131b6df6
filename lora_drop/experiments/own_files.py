"""Compare the files on this machine that a result was made from with the files that exist now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.methods.folder import adapter_folder, adapter_identity
from lora_drop.registry import TASKS
from lora_drop.runs.job import named_adapters


def files_changed(stages: Mapping[str, Mapping[str, Any]], config: Config) -> bool:
    """Return True if data, backbone or adapters have changed since a result was made, or can no longer be read.

    Files that are not on this machine are ignored, and so are those without an identity in the record.

    Args:
        stages: the stages of the record.
        config: the configuration of the run that may have this result.
    """
    origins = {name: origin for stage in stages.values() for name, origin in stage.get("sources", {}).items()}
    made_from = {name: origin["content"] for name, origin in origins.items() if "content" in origin}
    weights = [stage["weights"] for stage in stages.values() if "weights" in stage]
    made_from |= {"backbone": weights[-1]} if weights else {}
    try:
        now = {**_data(config), **_backbone(config), **_adapters(config)}
    except UserError:  # the run itself will say why
        return True
    return any(made_from.get(name, content) != content for name, content in now.items())


def _data(config: Config) -> dict[str, str]:
    from lora_drop.tasks.base import data_folder  # here, as they import datasets
    from lora_drop.tasks.files import official_content
    from lora_drop.tasks.own.task import own_contents

    if config.data.given:
        return own_contents(config.data)
    folder = data_folder(config.data_dir, config.data_revision)
    paths = {split: folder / name for split, name in TASKS.get(config.task).files.items()} if folder else {}
    return {split: official_content(path) for split, path in paths.items() if path.is_file()}


def _backbone(config: Config) -> dict[str, str]:
    if not Path(config.backbone).expanduser().is_dir():
        return {}
    from lora_drop.models.backbones import locate  # here, as it imports torch

    return {"backbone": locate(config.backbone, offline=True, quantization=config.quantization).identity}


def _adapters(config: Config) -> dict[str, str]:
    there = {key: name for key, name in named_adapters(config).items() if Path(name).expanduser().exists()}
    return {key: adapter_identity(adapter_folder(name, key)) for key, name in there.items()}
