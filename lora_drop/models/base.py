"""The interface of a kind of backbone, one file per kind. Adding one: a file with a `BackboneKind`, its name in
`registry.py`.

The kind is what a backbone's name begins with: `tiny:bert` is of the kind `tiny`. A name without one is a folder or a
repository of the Hub (`saved.py`).
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
"""A model, and which weights were not loaded (`missing_keys`, `mismatched_keys`); None if all are to be random."""


@dataclass(frozen=True)
class Backbone:
    """A named pretrained model that has been located: what `from_pretrained` needs, and what identifies its weights."""

    name: str
    path: str
    identity: str
    """Changes when the weights change: an input of every stage that computes with the model."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of `from_pretrained`."""
    quantization: str = "none"
    origin: dict[str, str] = field(default_factory=dict)
    """Repository, revision and commit of a model of the Hub."""

    @property
    def model(self) -> str:
        """The name without its kind."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class Request:
    """How a backbone is looked for."""

    offline: bool = False
    """True if the Hub must not be asked."""
    weights: bool = True
    """True if the weights must be there; else the configuration is enough."""
    known: Mapping[str, str] | None = None
    """The `origin` of a backbone of this name that was used before: the same commit is taken again."""
    report: Reporter = SILENT
    """Told of what is fetched, and of a newer revision."""


@dataclass(frozen=True)
class BackboneKind:
    """A way to have a pretrained model."""

    name: str
    models: Mapping[str, Any] | None
    """What there is, by the name after the colon; None: any name, and `locate` refuses those that it does not know."""
    locate: Callable[[str, Request], Backbone]
    """`locate(name, request)`: the whole name. Raises UserError that says what to do if the model cannot be had."""
    config: Callable[[Backbone], PretrainedConfig]
    """A fresh configuration of the architecture; the caller gives it the head that the task needs."""
    tokenizer: Callable[[Backbone], PreTrainedTokenizerBase]
    model: Callable[[Backbone, Any, PretrainedConfig, torch.device | None], Loaded]
    """`model(backbone, kind, config, device)`: of transformers' `kind`, an Auto class; torch is seeded."""


HUB_NAMES = {
    "packaged:minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
    "packaged:mpnet-base": "sentence-transformers/all-mpnet-base-v2",
    "packaged:smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
"""The repositories that packaged models come from."""


def public_name(name: str, origin: Mapping[str, str]) -> str | None:
    """Return the name under which another machine finds a backbone; None for a folder of this one.

    `origin` is that of the backbone as it was located (`Backbone.origin`, or `run.json`).
    """
    if "hub" in origin:
        return origin["hub"]
    return HUB_NAMES.get(name) or (name if prefix_of(name) else None)


def prefix_of(name: str) -> str:
    """Return the kind that a backbone's name begins with; empty for a folder or a name on the Hub."""
    prefix, colon, _ = name.partition(":")
    return prefix if colon and prefix in BACKBONES.names() else ""
