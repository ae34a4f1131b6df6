"""The interface of a task: data and a few functions, independent of models and methods.

Rows are `datasets.Dataset`s with fixed columns:

- classification, multilabel and regression: `id` (str), `text` (str), `text_pair` (str, only for sentence pairs),
  `label` (int, an index into `Task.labels`; for multilabel 1.0 or 0.0 for each label; for regression a float), and
  `group` (str) if an evaluation split has parts that are also reported separately (MNLI: matched, mismatched);
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


def data_folder(data_dir: str | None, revision: str | None) -> Path | None:
    """Return the given folder, else $LORA_DROP_DATA unless a revision of the Hub is given, else None."""
    folder = data_dir or (None if revision else os.environ.get("LORA_DROP_DATA"))
    return Path(folder).expanduser() if folder else None


@dataclass(frozen=True)
class Source:
    """The source of rows: a folder with the official files, else the Hub.

    A folder named for the run (`data_dir`, --data-dir) is the only source. A missing file is an error, even if the
    folder has files of other tasks or splits, so that no run silently mixes two sources. $LORA_DROP_DATA is only a
    default of the machine: rows missing there come from the Hub, with a notice.
    """

    data_dir: Path | None
    offline: bool = False
    named: bool = False
    """True if the folder was named for this run, False if by $LORA_DROP_DATA."""
    revision: str | None = None
    """Branch, tag or commit of the data set on the Hub; None is its usual branch."""
    known: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """`origins` of an earlier run, to read the same commits again."""
    report: Reporter = SILENT
    """Receives notices about unexpected origins of rows and about newer commits."""
    origins: dict[str, dict[str, str]] = field(default_factory=dict, compare=False)
    """Origin of the rows read, by split: `file` (in the data folder) and `content` (its hash), or `hub` and `commit`."""

    @classmethod
    def resolve(cls, data_dir: str | None, offline: bool = False, revision: str | None = None, **others: Any) -> Source:
        """Return the source with the given folder, else $LORA_DROP_DATA unless a Hub revision is given, else no folder.

        Raises UserError if the folder does not exist, or if both a folder and a revision are given.
        """
        if data_dir and revision:
            raise UserError(
                f"data_dir={data_dir} and data_revision={revision} exclude each other: rows come from files, or from a "
                "revision of the Hub. Leave one out (-o data_dir=null or -o data_revision=null)."
            )
        place = data_folder(data_dir, revision)
        if place and not place.is_dir():
            origin = "data_dir" if data_dir else "LORA_DROP_DATA"
            raise UserError(
                f"The data folder {place} does not exist (named by {origin}). Create it or name another with --data-dir."
            )
        return cls(place, offline, named=bool(data_dir), revision=revision, **others)


@dataclass(frozen=True)
class Task:
    """One benchmark. `version` is incremented whenever its numbers may change."""

    name: str
    version: int
    kind: Literal["classification", "multilabel", "regression", "generation"]
    description: str
    load: Callable[[Source, str], Dataset]
    """`load(source, split)` returns the rows of "train" or of an evaluation split. Raises UserError with a remedy."""
    strata: Callable[[Dataset], list[str]]
    """Returns the stratum of each row, for stratified sampling."""
    metrics: tuple[str, ...]
    """Names of the metrics to compute, those of the paper first."""
    primary: str
    """The metric that the paper reports, and that selects the best epoch."""
    title: str = ""
    """Name in tables; if empty, `name`."""
    labels: tuple[str, ...] = ()
    """Label names in index order; empty for numbers and texts."""
    splits: tuple[str, ...] = ("validation",)
    """Evaluation splits, the default first."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Official file of each split, relative to the data folder."""
    hub: str = ""
    """Description of the origin of the rows if there are no files."""
    official_rows: Mapping[str, int] = field(default_factory=dict)
    """Number of rows of each split in the official release."""
    center: float = 0.0
    """Mean of the values of a regression. Rows hold (value - center) / spread, so numbers of any size can be learnt."""
    spread: float = 1.0
    """Standard deviation of the values of a regression; see `center`."""
    record: Mapping[str, Any] = field(default_factory=dict)
    """For the user's own data: how rows are read, as JSON-like values. A trained adapter keeps it to read new rows."""

    @property
    def outputs(self) -> int:
        """Size of the classifier's output: the number of labels, 1 for regression, 0 for generation."""
        return {"regression": 1, "generation": 0}.get(self.kind, len(self.labels))

    def number(self, value: float) -> float:
        """Return a value of the rows, or a prediction, in the units of the data."""
        return value if (self.center, self.spread) == (0.0, 1.0) else float(f"{value * self.spread + self.center:.10g}")

    def check_split(self, split: str) -> str:
        """Return `split` if it is one of this task's evaluation splits. Raises UserError otherwise."""
        if split not in self.splits:
            own = " For other rows of yours: lora-drop predict RUN --data FILE" if self.record else ""
            raise UserError(
                f"{self.name} has no split {split!r}. Its evaluation splits: {', '.join(self.splits)}.{own}"
            )
        return split


def text_rows(split: str, prompts: Sequence[str], **columns: Sequence[Any]) -> Dataset:
    """Return rows of a generation task: prompts, with `completion` and `stratum`, or with `references`, as columns."""
    return Dataset.from_dict(
        {"id": [f"{split}-{number}" for number in range(len(prompts))], "prompt": prompts, **columns}
    )


def quantile_strata(values: Sequence[float], bins: int, what: str) -> list[str]:
    """Return the bin of each number, `WHAT 1 of BINS` for the lowest. Bins are cut at the quantiles of the numbers."""
    cuts = quantiles(values, n=bins, method="inclusive") if len(values) > 1 else []
    return [f"{what} {bisect_right(cuts, value) + 1} of {bins}" for value in values]


def stratum_column(rows: Dataset) -> list[str]:
    """Return the strata of a generation task: the column of training rows, or a single one for evaluation rows."""
    return list(rows["stratum"]) if "stratum" in rows.column_names else ["all"] * len(rows)
