"""The interface of a kind of backbone, one file per kind.

To add a kind, write a file with a `BackboneKind` and add its name to `registry.py`. A backbone's name begins with its
kind: `tiny:bert` is of the kind `tiny`. A name without a kind is a folder or a repository on the Hub (`saved.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_drop.progress import SILENT, Reporter
from lora_drop.registry import BACKBONES

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


Loaded = tuple[Any, Mapping[str, Any] | None]
"""A model, and the weights that were not loaded (`missing_keys`, `mismatched_keys`), or None if all are random."""


@dataclass(frozen=True)
class Backbone:
    """A located pretrained model: the arguments of `from_pretrained`, and the identity of its weights."""

    name: str
    path: str
    identity: str
    """Changes when the weights change; an input of every stage that computes with the model."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `from_pretrained`."""
    quantization: str = "none"
    origin: dict[str, str] = field(default_factory=dict)
    """Repository, revision and commit of a model on the Hub, or name and path of a folder."""

    @property
    def model(self) -> str:
        """The name without its kind."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Request:
    """Options for locating a backbone."""

    offline: bool = False
    """True to never contact the Hub."""
    weights: bool = True
    """True if the weights are required, False if the configuration is enough."""
    known: Mapping[str, str] | None = None
    """The `origin` of a backbone of this name that was used before; the same commit is used again."""
    report: Reporter = SILENT
    """Gets the progress of fetching, and a notice of a newer revision."""


@dataclass(frozen=True)
class BackboneKind:
    """A source of pretrained models."""

    name: str
    models: Mapping[str, Any] | None
    """The known models, by the name after the colon. None allows any name; `locate` then refuses unknown ones."""
    locate: Callable[[str, Request], Backbone]
    """`locate(name, request)` finds a model by its whole name, or raises UserError with a remedy."""
    config: Callable[[Backbone], PretrainedConfig]
    """Returns a fresh configuration of the architecture; the caller adds the head that the task needs."""
    tokenizer: Callable[[Backbone], PreTrainedTokenizerBase]
    model: Callable[[Backbone, Any, PretrainedConfig, torch.device | None], Loaded]
    """`model(backbone, kind, config, device)` loads the model with transformers' Auto class `kind`; torch is seeded."""


HUB_NAMES = {
    "packaged:minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
    "packaged:mpnet-base": "sentence-transformers/all-mpnet-base-v2",
    "packaged:smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""Original Hub repositories of the packaged models."""


def public_name(name: str, origin: Mapping[str, str]) -> str | None:
    """Return the name under which another machine finds a backbone, or None for a folder on this one.

    `origin` is the located backbone's (`Backbone.origin`, or `run.json`).
    """
    if "hub" in origin:
        return origin["hub"]
    return HUB_NAMES.get(name) or (name if prefix_of(name) else None)


def prefix_of(name: str) -> str:
    """Return the kind with which a backbone's name begins, or an empty string for a folder or a name on the Hub."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in BACKBONES.names() else ""
