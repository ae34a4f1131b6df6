"""The eight GLUE tasks of the paper, from the official files or the Hub (nyu-mll/glue).

Each task is one definition: columns, label names in the Hub's order, and metrics. Label texts in the files are mapped
to the same indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from lora_drop.tasks.base import Source, Task
from lora_drop.tasks.files import label_index, number_in, official_file, read_tsv, some
from lora_drop.tasks.hub_rows import HubRows

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Columns:
    """The columns of one GLUE task, in the official files and on the Hub."""

    folder: str
    hub: str
    """Configuration of the Hub's data set; also the name of the task."""
    texts: tuple[str, ...]
    label: str
    file_labels: tuple[str, ...] = ()
    """Label texts in the file, in index order; empty for a score from 0 to 5."""
    header: tuple[str, ...] = ()
    """Names of all columns, for files without a header."""
    hub_texts: tuple[str, ...] = ("sentence1", "sentence2")
    dev: str = "dev.tsv"
    advice: str = ""
    """A hint for the message about a missing file."""
    skip_short_lines: bool = False
    """Skip lines with missing cells. QQP's official train file has three, which GLUE's own loaders skip, too."""

    def file(self, split: str) -> str:
        """Return the official file of a split, relative to the data folder."""
        return f"glue/{self.folder}/{'train.tsv' if split == 'train' else self.dev}"


def load_split(columns: Columns, source: Source, split: str) -> Dataset:
    """Load "train" or "validation" of a task with a single evaluation split."""
    name, hub = columns.file(split), HubRows(HUB, columns.hub)
    path = official_file(source, name, split, str(hub), columns.advice)
    if path is not None:
        return _read(columns, path)
    rows = hub.load(source, split, name, (*columns.hub_texts, "label"), columns.advice)
    number = int if columns.file_labels else official_score
    return _dataset([rows[text] for text in columns.hub_texts], [number(value) for value in rows["label"]])


def _read(columns: Columns, path: Path) -> Dataset:
    skip_short = columns.skip_short_lines and path.name == "train.tsv"
    lines = some(path, read_tsv(path, (columns.label, *columns.texts), columns.header, skip_short))
    labels: list[float]
    if columns.file_labels:
        labels = [label_index(path, number, cells[0], columns.file_labels) for number, cells in lines]
    else:
        labels = [number_in(path, number, cells[0], 0, 5) for number, cells in lines]
    return _dataset([[cells[1 + text] for _, cells in lines] for text in range(len(columns.texts))], labels)


def _dataset(texts: Sequence[Sequence[str]], labels: Sequence[float]) -> Dataset:
    """Return rows from a list of first sentences, an optional list of second ones, and labels."""
    sentences = dict(zip(("text", "text_pair"), map(list, texts), strict=False))
    return Dataset.from_dict({"id": [str(number) for number in range(len(labels))], **sentences, "label": labels})


def official_score(value: float) -> float:
    """Return a similarity score as in the official file, given the Hub's 32-bit copy: 3.8 for 3.799999952316284.

    A score is the mean over a few annotators. The file prints at most three decimals, or 14 of a fraction such as 19/9.
    Return the candidate of these that equals `value` in 32 bits, else the shortest decimal number that does.
    """
    stored = np.float32(value)
    fraction = Fraction(value).limit_denominator(20)
    for candidate in (round(value, 3), round(fraction.numerator / fraction.denominator, 14)):
        if np.float32(candidate) == stored:
            return candidate
    return float(str(stored))


def _load_mnli(source: Source, split: str) -> Dataset:
    if split == "train":
        return load_split(_MNLI, source, "train")
    if split == "validation":
        halves = concatenate_datasets([_load_mnli(source, f"validation_{part}") for part in ("matched", "mismatched")])
        ids = [f"{part}-{row}" for part, row in zip(halves["group"], halves["id"], strict=True)]
        return halves.remove_columns("id").add_column("id", ids)
    part = split.removeprefix("validation_")
    rows = load_split(replace(_MNLI, dev=f"dev_{part}.tsv", advice=_ONE_HALF), source, split)
    return rows.add_column("group", [part] * len(rows))


def label_strata(labels: Sequence[str]) -> Callable[[Dataset], list[str]]:
    """Return a function that returns the label name of each row: the strata of a classification task."""
    return lambda rows: [labels[index] for index in rows["label"]]


def score_strata(rows: Dataset) -> list[str]:
    """Return the bin of each row's similarity score (0 to 5). Bins have width 1; 5 belongs to the last one."""
    bins = [min(int(score), 4) for score in rows["label"]]
    return [f"{low}-{low + 1}" for low in bins]


def _task(
    columns: Columns, labels: tuple[str, ...], metrics: tuple[str, ...], rows: tuple[int, int], about: str
) -> Task:
    """Define a task with a single evaluation split; without labels it is a regression."""
    return Task(
        name=columns.hub,
        version=1,
        kind="classification" if labels else "regression",
        description=about,
        load=partial(load_split, columns),
        strata=label_strata(labels) if labels else score_strata,
        metrics=metrics,
        primary=metrics[0],
        title=columns.folder,
        labels=labels,
        files={split: columns.file(split) for split in ("train", "validation")},
        hub=f"{HUB} ({columns.hub})",
        official_rows=dict(zip(("train", "validation"), rows, strict=True)),
    )


_ONE_HALF = " To evaluate on one half of MNLI: -o eval.split=validation_matched (or validation_mismatched)."
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")
BINARY = ("0", "1")

COLA = _task(
    Columns("CoLA", "cola", ("3",), "1", BINARY, header=("0", "1", "2", "3"), hub_texts=("sentence",)),
    ("unacceptable", "acceptable"),
    ("matthews_correlation", "accuracy"),
    (8551, 1043),
    "linguistic acceptability of a sentence",
)
SST2 = _task(
    Columns("SST-2", "sst2", ("sentence",), "label", BINARY, hub_texts=("sentence",)),
    ("negative", "positive"),
    ("accuracy",),
    (67349, 872),
    "sentiment of a phrase from a film review",
)
MRPC = _task(
    Columns("MRPC", "mrpc", ("#1 String", "#2 String"), "Quality", BINARY),
    ("not_equivalent", "equivalent"),
    ("accuracy", "f1"),
    (3668, 408),
    "whether two sentences are paraphrases",
)
_QUESTIONS = ("question1", "question2")
QQP = _task(
    Columns("QQP", "qqp", _QUESTIONS, "is_duplicate", BINARY, hub_texts=_QUESTIONS, skip_short_lines=True),
    ("not_duplicate", "duplicate"),
    ("accuracy", "f1"),
    (363846, 40430),
    "whether two questions ask the same",
)
_ANSWER = ("question", "sentence")
QNLI = _task(
    Columns("QNLI", "qnli", _ANSWER, "label", ENTAILMENT, hub_texts=_ANSWER),
    ENTAILMENT,
    ("accuracy",),
    (104743, 5463),
    "whether a sentence answers a question",
)
RTE = _task(
    Columns("RTE", "rte", PAIR, "label", ENTAILMENT),
    ENTAILMENT,
    ("accuracy",),
    (2490, 277),
    "whether a text entails a hypothesis",
)
STSB = _task(
    Columns("STS-B", "stsb", PAIR, "score"),
    (),
    ("spearman", "pearson"),
    (5749, 1500),
    "similarity of two sentences, from 0 to 5",
)
_MNLI_LABELS = ("entailment", "neutral", "contradiction")
_MNLI = Columns("MNLI", "mnli", PAIR, "gold_label", _MNLI_LABELS, hub_texts=("premise", "hypothesis"))
MNLI = replace(
    _task(_MNLI, _MNLI_LABELS, ("accuracy",), (392702, 0), "entailment between two sentences of ten genres"),
    load=_load_mnli,
    splits=("validation", "validation_matched", "validation_mismatched"),
    files={
        "train": "glue/MNLI/train.tsv",
        "validation_matched": "glue/MNLI/dev_matched.tsv",
        "validation_mismatched": "glue/MNLI/dev_mismatched.tsv",
    },
    official_rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
)
