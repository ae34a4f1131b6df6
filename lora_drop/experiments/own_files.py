"""Files of the user's own that a result was made from, compared with those that are there now."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.files import file_digest
from lora_drop.methods.folder import adapter_folder
from lora_drop.runs.job import named_adapters


def files_changed(stages: Mapping[str, Mapping[str, Any]], config: Config) -> bool:
    """Return True if data, backbone or adapters have changed since a result was made, or cannot be read any more.

    What is not on this machine does not count, nor does what the record does not tell.

    Args:
        stages: of the record.
        config: of the run that the record is to be the result of.
    """
    origins = {name: origin for stage in stages.values() for name, origin in stage.get("sources", {}).items()}
    made_from = {name: origin["content"] for name, origin in origins.items() if "content" in origin}
    weights = [stage["weights"] for stage in stages.values() if "weights" in stage]
    made_from |= {"backbone": weights[-1]} if weights else {}
    try:
        now = {**_data(config), **_backbone(config), **_adapters(config)}
    except UserError:  # the run says why
        return True
    return any(made_from.get(name, content) != content for name, content in now.items())


def _data(config: Config) -> dict[str, str]:
    if not config.data.given:
        return {}
    from lora_drop.tasks.own.task import own_contents  # not before: imports datasets

    return own_contents(config.data)


def _backbone(config: Config) -> dict[str, str]:
    if not Path(config.backbone).expanduser().is_dir():
        return {}
    from lora_drop.models.backbones import locate  # not before: imports torch

    return {"backbone": locate(config.backbone, offline=True, quantization=config.quantization).identity}


def _adapters(config: Config) -> dict[str, str]:
    there = {key: name for key, name in named_adapters(config).items() if Path(name).expanduser().exists()}
    return {key: file_digest(adapter_folder(name, key)) for key, name in there.items()}
