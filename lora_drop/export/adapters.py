"""`--to peft` and `--to compact`: the adapter without its backbone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_drop.errors import UserError
from lora_drop.export.source import ExportedRun
from lora_drop.files import copy_files, read_json
from lora_drop.methods.compact import TIES, WEIGHTS, write_compact

PEFT_WEIGHTS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
DESCRIPTIONS = ("config.json", "task.json")
"""Files of an adapter with the names of the labels, the scale of a number, and how rows are read."""


def peft(source: ExportedRun, folder: Path) -> str:
    """Write the PEFT adapter with the public name of its backbone; return its size in words."""
    _check(source)
    copy_files(source.adapter, folder)
    config = {**read_json(folder / PEFT_CONFIG), **_named(source)}
    (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return f"{PEFT_WEIGHTS} has {_bytes(folder / PEFT_WEIGHTS):,} bytes"


def compact(source: ExportedRun, folder: Path) -> str:
    """Write the compact form, which stores shared tensors once; return its size in words."""
    _check(source)
    if not (source.adapter / TIES).is_file() or not read_json(source.adapter / TIES)["tied"]:
        raise UserError(
            f"In {source.run.path} no layers share a LoRA ({source.facts.title}), so there is nothing to make "
            "compact. Use --to peft."
        )
    write_compact(source.adapter, folder, _named(source))
    for name in DESCRIPTIONS:
        if (source.adapter / name).is_file():
            shutil.copyfile(source.adapter / name, folder / name)
    whole = _bytes(source.adapter / PEFT_WEIGHTS)
    return f"{WEIGHTS} has {_bytes(folder / WEIGHTS):,} bytes; as a PEFT adapter, {whole:,}"


def _check(source: ExportedRun) -> None:
    if not (source.adapter / PEFT_CONFIG).is_file():
        raise UserError(f"{source.facts.title} is not a PEFT adapter. Use --to merged, if the method can be merged.")


def _named(source: ExportedRun) -> dict[str, str | None]:
    return {"base_model_name_or_path": source.base, "revision": source.revision}


def _bytes(path: Path) -> int:
    return path.stat().st_size
