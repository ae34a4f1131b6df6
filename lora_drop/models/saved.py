"""Models in transformers' own format: a folder, or a repository on the Hugging Face Hub (a folder in its cache)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from lora_drop.errors import UserError, closest
from lora_drop.faults import foreign
from lora_drop.models.base import Backbone, BackboneKind, Loaded, Request
from lora_drop.models.content import sha256_of_all
from lora_drop.models.hub import loaded_files, locate_model, tokenizer_files
from lora_drop.models.quantization import nf4
from lora_drop.registry import BACKBONES


def locate(name: str, request: Request) -> Backbone:
    """Find the folder, or else the model on the Hub, and check its files. Raise UserError on failure."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _locate_folder(name, folder, request.weights)
    known = request.known or {}
    if known.get("name") == name:  # it was a folder; a model of this name on the Hub is another one
        if not Path(known["folder"]).is_dir():
            raise UserError(
                f"The backbone {name} was the folder {known['folder']}, which no longer exists. Put it back or, if "
                "you mean a model on the Hub, name another folder for the run."
            )
        return _locate_folder(name, Path(known["folder"]), request.weights)
    if name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
        raise UserError(f"The backbone folder {name} does not exist.")
    prefix, colon, _ = name.partition(":")
    nearest = closest(prefix, BACKBONES.names()) if colon else ""
    if nearest:
        raise UserError(f"Unknown kind of backbone {prefix!r} in {name}.{nearest}")
    model = locate_model(name, request)
    _check_no_adapter(model.folder)
    identity = model.identity if request.weights else ""
    return Backbone(name, str(model.folder), identity, {"local_files_only": True}, origin=model.origin)


def _locate_folder(name: str, folder: Path, weights: bool) -> Backbone:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} holds a PEFT adapter and no model. Name its base model as the backbone, and the adapter with "
                "train.start_from."
            )
        raise UserError(f"{folder} holds no transformers model: it has no config.json.")
    _check_no_adapter(folder)
    local = {"local_files_only": True}  # a folder is never a name on the Hub
    origin = {"name": name, "folder": str(folder.absolute())}
    if not weights:
        return Backbone(name, str(folder), "", local, origin=origin)
    files = loaded_files(folder)
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{folder} holds no .safetensors weights (model.safetensors, or an index and its parts). {_conversion(folder)}"
        )
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks {file}, which the index of its weights names. Copy it there.")
    return Backbone(name, str(folder), sha256_of_all(folder / file for file in files), local, origin=origin)


def _conversion(folder: Path) -> str:
    """Return how the weights in a folder without safetensors can be had in that form."""
    if not list(folder.glob("pytorch_model*.bin")):
        return "Save the model there with transformers (model.save_pretrained), which writes them."
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        name = ""
    # the class that was saved keeps every weight; AutoModel would lose a language model's head
    known = isinstance(name, str) and isinstance(getattr(transformers, name, None), type)
    model, place = name if known else "AutoModel", repr(str(folder))
    return (
        "pytorch_model.bin may execute code when loaded. If you trust it, convert it once in Python: "
        f"from transformers import {model}; {model}.from_pretrained({place}).save_pretrained({place})"
    )


def _check_no_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter beside the model, which transformers would load into it. Put the adapter into a "
            "folder of its own and name it with train.start_from, or remove it."
        )


def load_config(backbone: Backbone) -> PretrainedConfig:
    """Read the model's config.json, but force named outputs, which all code that runs the model expects."""
    config: PretrainedConfig = from_pretrained(AutoConfig, backbone)
    config.return_dict, config.torchscript = True, False
    return config


def load_tokenizer(backbone: Backbone, **options: Any) -> PreTrainedTokenizerBase:
    """Read the model's tokenizer; `options` go to transformers."""
    try:
        return from_pretrained(AutoTokenizer, backbone, **options)
    except UserError as error:
        if "gguf_file" in backbone.options or tokenizer_files(path.name for path in Path(backbone.path).iterdir()):
            raise
        raise UserError(
            f"{backbone.path} has no tokenizer. Save the one that the model was trained with into it: "
            f"tokenizer.save_pretrained({backbone.path!r})"
        ) from error


def load_model(backbone: Backbone, kind: Any, config: PretrainedConfig, device: torch.device | None) -> Loaded:
    """Read the model's weights in fp32, or quantized onto `device`; see `BackboneKind.model`."""
    options: dict[str, Any] = {"config": config, "dtype": torch.float32, "use_safetensors": True}
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if backbone.quantization != "none":
        options |= {"quantization_config": nf4(), "device_map": {"": device or "cuda"}}
    return from_pretrained(kind, backbone, **options)


def from_pretrained(kind: Any, backbone: Backbone, **options: Any) -> Any:
    """Call `from_pretrained` of an Auto class. Raise UserError for damaged files or a model that needs its own code."""
    with foreign(f"The backbone {backbone.name} cannot be loaded"):
        try:
            return kind.from_pretrained(backbone.path, trust_remote_code=False, **backbone.options, **options)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise UserError(
                f"The backbone {backbone.name} comes with its own code, which is never executed. Choose a model that "
                "transformers supports."
            ) from error


KIND = BackboneKind("saved", None, locate, load_config, load_tokenizer, load_model)
