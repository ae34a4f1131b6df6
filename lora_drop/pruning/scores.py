"""The result of stage 2 as an object: the importance of every LoRA. Notebooks display it as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_drop.errors import UserError, listed
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.pruning.selection import Scored, scored_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Scores:
    """The importance of every LoRA; `rows` in model order."""

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
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """Read scores written by `save`, or a run's `scores.json`. Raise UserError if the file holds no scores."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = tuple(scored_rows(content))
            left_out, name = tuple(content.get("left_out", ())), content.get("criterion", PAPER)
            return cls(rows, content["examples"], content["tokens"], content.get("norms"), left_out, name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} does not hold scores ({type(error).__name__}: {error}).") from error

    def _repr_html_(self) -> str:
        from lora_drop.pruning.notebook import scores_html

        return scores_html(self)
