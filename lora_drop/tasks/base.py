"""The interface of a task: data plus a few functions, nothing that knows a model or a method.

Rows are `datasets.Dataset`s with fixed columns:

- classification, multilabel and regression: `id` (str), `text` (str), `text_pair` (str, only for sentence pairs),
  `label` (int, an index into `Task.labels`; several labels: 1.0 or 0.0 for each; float for regression), and `group`
  (str) where an evaluation split has parts that are also reported apart (MNLI: matched, mismatched);
- generation: `id` (str), `prompt` (str), and `completion` (str) in training rows, `references` (list of str) in
  evaluation rows; `stratum` (str) in training rows.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any, Literal

from datasets import Dataset

from lora_drop.errors import UserError
from lora_drop.progress import SILENT, Reporter


@dataclass(frozen=True)
class Source:
    """Where rows come from: a folder with the official files, else the Hub.

    A folder that is named (`data_dir`, --data-dir) is the only source: a file that it lacks is an error, also where it
    holds those of other tasks or splits, so that no run mixes two sources unasked. $LORA_DROP_DATA is a habit of the
    machine: rows missing there come from the Hub, with a notice.
    """

    data_dir: Path | None
    offline: bool = False
    named: bool = False
    """True if the folder was named for this run, not by $LORA_DROP_DATA."""
    revision: str | None = None
    """Branch, tag or commit of the data set on the Hub; None: its usual branch."""
    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`origins` that were used before: the same commit is read again."""
    report: Reporter = SILENT
    """Told where rows come from another place than expected, and of newer ones."""
    origins: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)
    """By split, where the rows that were read came from: the `file` in the data folder, or `hub` with `commit`."""

    @classmethod
    def resolve(cls, data_dir: str | None, offline: bool = False, revision: str | None = None, **others: Any) -> Source:
        """Take the folder given, else $LORA_DROP_DATA unless a revision of the Hub is asked for, else none.

        Raises UserError if the folder does not exist, or if both a folder and a revision are given.
        """
        if data_dir and revision:
            raise UserError(
                f"data_dir={data_dir} and data_revision={revision} exclude each other: rows come from files, or from a "
                "revision of the Hub. Leave one out (-o data_dir=null or -o data_revision=null)."
            )
        folder = data_dir or (None if revision else os.environ.get("LORA_DROP_DATA"))
        if folder and not Path(folder).is_dir():
            origin = "data_dir" if data_dir else "LORA_DROP_DATA"
            raise UserError(
                f"The data folder {folder} does not exist (named by {origin}). Create it or name another with --data-dir."
            )
        return cls(Path(folder) if folder else None, offline, named=bool(data_dir), revision=revision, **others)


@dataclass(frozen=True)
class Task:
    """One benchmark. `version` is raised whenever its numbers may change."""

    name: str
    version: int
    kind: Literal["classification", "multilabel", "regression", "generation"]
    description: str
    load: Callable[[Source, str], Dataset]
    """`load(source, split)`: the rows of "train" or of an evaluation split. Raises UserError that says what to do."""
    strata: Callable[[Dataset], list[str]]
    """The stratum of each row, for stratified sampling."""
    metrics: tuple[str, ...]
    """Names of the metrics computed, those of the paper first."""
    primary: str
    """The metric the paper reports, by which the best epoch is chosen."""
    title: str = ""
    """The name in tables; empty: `name`."""
    labels: tuple[str, ...] = ()
    """Label names in index order; empty for numbers and texts."""
    splits: tuple[str, ...] = ("validation",)
    """Evaluation splits, the default first."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Official file of each split, relative to the data folder."""
    hub: str = ""
    """Where the rows come from without files."""
    official_rows: Mapping[str, int] = field(default_factory=dict)
    """Rows of each split in the official release."""
    center: float = 0.0
    """Of a regression whose rows hold (value - center) / spread: the mean; a model learns numbers of any size so."""
    spread: float = 1.0
    """The standard deviation; see `center`."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """Of own data: how rows are read, as JSON-like values. A trained adapter keeps it, to read other rows alike."""

    @property
    def outputs(self) -> int:
        """Size of the classifier's output: the number of labels, 1 for regression, 0 for generation."""
        return {"regression": 1, "generation": 0}.get(self.kind, len(self.labels))

    def number(self, value: float) -> float:
        """Return a value of the rows, or a prediction, in the unit of the data."""
        return value if (self.center, self.spread) == (0.0, 1.0) else float(f"{value * self.spread + self.center:.10g}")

    def check_split(self, split: str) -> str:
        """Return `split` if it is one of this task's evaluation splits. Raises UserError otherwise."""
        if split not in self.splits:
            own = " Of other rows of yours: lora-drop predict RUN --data FILE" if self.record else ""
            raise UserError(
                f"{self.name} has no split {split!r}. Its evaluation splits: {', '.join(self.splits)}.{own}"
            )
        return split


def text_rows(split: str, prompts: Sequence[str], **columns: Sequence[Any]) -> Dataset:
    """Return rows of a generation task: prompts, and `completion` and `stratum` or `references` beside them."""
    return Dataset.from_dict(
        {"id": [f"{split}-{number}" for number in range(len(prompts))], "prompt": prompts, **columns}
    )


def quantile_strata(values: Sequence[float], bins: int, what: str) -> list[str]:
    """Return the bin of each number, `WHAT 1 of BINS` for the lowest: they are cut at the quantiles of the numbers."""
    cuts = quantiles(values, n=bins, method="inclusive") if len(values) > 1 else []
    return [f"{what} {bisect_right(cuts, value) + 1} of {bins}" for value in values]


def stratum_column(rows: Dataset) -> list[str]:
    """Return the strata of a generation task: of training rows their column, of evaluation rows one for all."""
    return list(rows["stratum"]) if "stratum" in rows.column_names else ["all"] * len(rows)
