"""LoRA-drop (arXiv 2402.07721): score each LoRA by its output, keep the important ones, and let the rest share one.

    scores = lora_drop.score(warmed_up_peft_model, batches)
    selection = lora_drop.select(scores.rows, threshold=0.9)
    model = lora_drop.share(fresh_peft_model, selection)

Names are imported on first use, so that importing the package is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora_drop.api import score
    from lora_drop.methods.lora_drop import load_adapter
    from lora_drop.pruning.scores import Scores
    from lora_drop.pruning.selection import Selection, select
    from lora_drop.pruning.sharing import share
    from lora_drop.runs.load import load_run

_HOMES = {
    "Scores": "pruning.scores",
    "score": "api",
    "Selection": "pruning.selection",
    "select": "pruning.selection",
    "share": "pruning.sharing",
    "load_run": "runs.load",
    "load_adapter": "methods.lora_drop",
}

__all__ = ["Scores", "Selection", "__version__", "load_adapter", "load_run", "score", "select", "share"]


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("lora-drop")
    if name not in _HOMES:
        raise AttributeError(f"module 'lora_drop' has no attribute {name!r}")
    return getattr(import_module(f"lora_drop.{_HOMES[name]}"), name)
