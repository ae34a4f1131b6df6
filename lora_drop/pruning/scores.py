"""The result of stage 2: the score and importance of every LoRA (paper eq. 3 and 4), without tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lora_drop.errors import UserError, listed
from lora_drop.pruning import saved
from lora_drop.pruning.criteria.base import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Scored:
    """One LoRA and its score: a row of `scores.json`.

    `score` is g_i, the mean over the sample of ‖ΔW_i x_i‖²; `importance` is I_i = g_i / Σ g over the layers of the same
    projection (paper eq. 3 and 4); `parameters` is the size of the pair A, B.
    """

    name: str
    projection: str
    layer: int
    score: float
    importance: float
    parameters: int


@dataclass(frozen=True)
class Scores:
    """The importance of every LoRA; `rows` in model order. Notebooks display it as a table."""

    rows: tuple[Scored, ...]
    examples: int
    tokens: int
    norms: dict[str, list[float]] | None = None
    """Per module, the value of each example (‖ΔW x‖² for the paper's criterion); None unless requested."""
    left_out: tuple[str, ...] = ()
    """Modules whose LoRA is not scored: those outside the numbered blocks, which belong to no layer (a pooler, a language
    model's head), embeddings and convolutions. They keep their LoRA, and a selection does not count it."""
    criterion: str = PAPER
    """Name of the criterion of the scores."""

    @property
    def notice(self) -> str:
        """A sentence about the LoRAs that were not scored; empty if all were."""
        if not self.left_out:
            return ""
        return (
            f"not scored: {listed(self.left_out)}. Only LoRAs on linear modules of numbered blocks are scored; the others "
            "are neither shared nor counted by a selection"
        )

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame: a row per LoRA with name, projection, layer, score, importance and parameters."""
        from pandas import DataFrame

        return DataFrame([asdict(row) for row in self.rows])

    def plot(self, title: str = "") -> Figure:
        """Return a matplotlib figure of the importance of each layer, a panel per projection."""
        from lora_drop.pruning.picture import importance_figure

        return importance_figure(self.rows, None, title or f"importance by {self.criterion}")

    def save(self, path: str | Path) -> None:
        """Write the scores as JSON, in the format of a run's `scores.json`; `load` reads them."""
        content = {
            "criterion": self.criterion,
            "examples": self.examples,
            "tokens": self.tokens,
            "left_out": list(self.left_out),
            "norms": self.norms,
            "modules": [asdict(row) for row in self.rows],
        }
        saved.write(path, content)

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read scores written by `save`, or a run's `scores.json`. Raise UserError if the file holds no scores."""
        with saved.reading(path, "scores", " Make a run's again with: lora-drop score --force") as content:
            left_out, name = tuple(content.get("left_out", ())), content.get("criterion", PAPER)
            return cls(_rows(content), content["examples"], content["tokens"], content.get("norms"), left_out, name)

    def _repr_html_(self) -> str:
        from lora_drop.pruning.notebook import scores_html

        return scores_html(self)


class HasRows(Protocol):
    """An object with `rows`, one per LoRA, such as `lora_drop.score` returns."""

    @property
    def rows(self) -> Sequence[Scored]:
        """Every LoRA with its importance."""


def normalise(scores: Mapping[int, float], projection: str = "") -> dict[int, float]:
    """Return I_i = g_i / Σ g for the layers of one projection (paper eq. 4), which messages name.

    Raise UserError if a score is negative or not finite, or if all are zero (a LoRA that was never trained has B = 0).
    """
    of = f" of {projection}" if projection else ""
    wrong = {layer: score for layer, score in scores.items() if not (math.isfinite(score) and score >= 0)}
    if wrong:
        raise UserError(
            f"Scores{of} must be finite and ≥ 0, but are {wrong} (layer: score). Did the warm-up diverge? Lower its "
            "learning rate."
        )
    total = math.fsum(scores.values())
    if total == 0:
        raise UserError(f"All scores{of} are 0: the LoRA was not trained (B is still zero). Warm it up before scoring.")
    return {layer: score / total for layer, score in scores.items()}


def rescored(scored: Sequence[Scored], scores: Sequence[float]) -> list[Scored]:
    """Return the rows with new scores and the importances that follow from them."""
    layers: dict[str, dict[int, float]] = {}
    for row, score in zip(scored, scores, strict=True):
        layers.setdefault(row.projection, {})[row.layer] = score
    shares = {projection: normalise(by_layer, projection) for projection, by_layer in layers.items()}
    return [
        replace(row, score=score, importance=shares[row.projection][row.layer])
        for row, score in zip(scored, scores, strict=True)
    ]


def _rows(content: Any) -> tuple[Scored, ...]:
    """Return the rows in the content of a `scores.json`. Raise KeyError or TypeError if it is malformed."""
    rows = tuple(Scored(**row) for row in content["modules"])
    kinds = {"name": str, "projection": str, "layer": int, "score": Real, "importance": Real, "parameters": int}
    for row in rows:
        check_kinds(vars(row), kinds)
    return rows


def check_kinds(content: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    """Raise TypeError unless the content of a JSON file has values of these types (a bool is no number)."""
    for key, kind in kinds.items():
        value = content[key]
        if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
            raise TypeError(f"{key} is {value!r}")
