"""LoRA (Hu et al. 2021) by PEFT: ΔW = alpha/rank · B A on every query and value; A Kaiming-initialised, B zero.

This module also builds, saves and loads the adapters of every other method based on PEFT.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_drop.config.schema import MethodConfig
from lora_drop.errors import UserError, counted, first_line
from lora_drop.faults import foreign
from lora_drop.methods.base import Method, head_parameters, heads
from lora_drop.methods.compact import is_compact
from lora_drop.methods.saved_config import checked
from lora_drop.pruning.places import Place, find_places, transposed
from lora_drop.pruning.selection import Selection

RANK = 8


def build(backbone: PreTrainedModel, config: MethodConfig, seed: int, selection: Selection | None) -> nn.Module:
    """Put a LoRA on every module of the target projections."""
    return add_lora(backbone, config, seed, find_places(backbone, config.target_projections))


def add_lora(backbone: PreTrainedModel, config: MethodConfig, seed: int, places: Iterable[Place]) -> PeftModel:
    """Put a fresh LoRA on the given modules. The backbone is frozen; its head stays trainable."""
    rank, places = config.rank or RANK, list(places)
    lora = LoraConfig(
        r=rank,
        lora_alpha=config.alpha or 2 * rank,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        **where(backbone, places),
    )
    return wrap(backbone, lora, seed)


def where(backbone: PreTrainedModel, places: Sequence[Place]) -> dict[str, Any]:
    """Return the options common to all PEFT configurations: modules with an adapter, and modules trained whole."""
    return {
        "target_modules": [place.name for place in places],
        "fan_in_fan_out": transposed(backbone, places),
        "task_type": task_type(backbone),
        "modules_to_save": heads(backbone) or None,
        "bias": "none",
    }


def wrap(backbone: PreTrainedModel, config: PeftConfig, seed: int) -> PeftModel:
    """Return the backbone wrapped in a PEFT adapter; `seed` decides its initial weights."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():  # PEFT 0.21 uses a name of transformers 5 that transformers 6 will drop
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        model = get_peft_model(backbone, config)
    assert isinstance(model, PeftModel)
    return model


def task_type(backbone: PreTrainedModel) -> str:
    """Return PEFT's name for the task. With SEQ_CLS, PEFT also trains and saves the head."""
    return "SEQ_CLS" if "SequenceClassification" in type(backbone).__name__ else "CAUSAL_LM"


def save(model: nn.Module, folder: Path) -> None:
    """Write an ordinary PEFT adapter: `adapter_config.json` and `adapter_model.safetensors`."""
    assert isinstance(model, PeftModel)
    # embeddings are never trained; by default, PEFT would look up the backbone's vocabulary, on the Hub if necessary
    model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save"):  # PEFT's sets, in a different order in each process
        config[key] = sorted(set(config[key])) if isinstance(config.get(key), list) else config.get(key)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


COPY = re.compile(r"\.(modules_to_save|original_module)(?=\.)")
"""Part of the names under which PEFT also saves a head's biases with bias="all"."""


def load(backbone: PreTrainedModel, folder: Path) -> PeftModel:
    """Build the adapter described by `folder` and load its weights."""
    model = wrapped(backbone, folder)
    fill(model, folder)
    return model


def wrapped(backbone: PreTrainedModel, folder: Path, config: PeftConfig | None = None) -> PeftModel:
    """Return the backbone wrapped in the adapter of `folder`, without its weights. Raise UserError if it does not fit.

    `config` is the folder's configuration, if it has already been read.
    """
    config = config or read_config(folder)
    with foreign(f"{folder} holds no adapter for this model"):
        return wrap(backbone, config, seed=0)


def read_config(folder: Path) -> PeftConfig:
    """Read a saved adapter's configuration. Raise UserError if it is missing, damaged, or in the compact form."""
    if is_compact(folder):
        raise UserError(
            f"{folder} is a compact LoRA-drop adapter: it holds one copy of each shared LoRA, and fits only models "
            "whose layers are tied. Load it into the plain backbone with lora_drop.load_adapter, which ties them."
        )
    with foreign(f"{folder} holds no readable PEFT adapter. Train it again with --force"):
        if not (folder / "adapter_config.json").is_file():  # PEFT would treat the path as a name on the Hub
            raise ValueError("it has no adapter_config.json")
        return checked(PeftConfig.from_pretrained(str(folder.absolute())))


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a saved adapter. Unlike PEFT, look for no other file: no pickle, and nothing on the Hub.

    Raise OSError or SafetensorError.
    """
    return load_file(folder / "adapter_model.safetensors")


def fill(model: PeftModel, folder: Path, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Load saved weights into a model of the same structure, and return them. Raise UserError unless they fit exactly.

    `weights` are the folder's weights, if they have already been read. A file without the copies of shared tensors is
    refused, as it would silently leave a LoRA at its initial values.
    """
    try:
        weights = weights or read_weights(folder)
        _check_head(model, folder, weights)
        outcome: Any = set_peft_model_state_dict(model, weights)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no adapter for this model: {first_line(error)}") from error
    learnt = {name for name, tensor in model.named_parameters(remove_duplicate=False) if tensor.requires_grad}
    missing = [name for name in outcome.missing_keys if name in learnt]
    unexpected = [name for name in outcome.unexpected_keys if not (COPY.search(name) and COPY.sub("", name) in weights)]
    if missing or unexpected:
        raise UserError(
            f"{folder} does not fit this model: {len(missing)} tensors missing, {len(unexpected)} unexpected (such as "
            f"{(missing or unexpected)[0]})."
        )
    return weights


def _check_head(model: PeftModel, folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise UserError if the saved head differs from the model's only in the number of outputs, hence of labels."""
    for name, parameter in head_parameters(model).items():
        stored = weights.get(name.replace(".modules_to_save.default", ""))
        if stored is None or stored.shape == parameter.shape or stored.shape[1:] != parameter.shape[1:]:
            continue
        raise UserError(
            f"{folder} has a head of {counted(len(stored), 'output')} (one for each label), and this model one of "
            f"{len(parameter):,}. Use data with the labels that the adapter was trained on, or another adapter."
        )


METHOD = Method(name="lora", title="LoRA", build=build, save=save, load=load, starts=True)
