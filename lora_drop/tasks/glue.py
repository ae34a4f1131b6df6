"""The eight GLUE tasks of the paper, from the official files or the Hub (nyu-mll/glue).

A task is one definition: columns, label names in the Hub's order, metric. Label texts of the files are mapped to the same indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets

from lora_drop.errors import UserError
from lora_drop.tasks.base import Source, Task
from lora_drop.tasks.hub_rows import HubRows
from lora_drop.tasks.sources import cell, label_index, number_in, official_file, read_tsv

HUB = "nyu-mll/glue"


@dataclass(frozen=True)
class Layout:
    """Where one GLUE task keeps its columns, in the official files and on the Hub."""

    folder: str
    hub: str
    texts: tuple[str, ...]
    label: str
    file_labels: tuple[str, ...] = ()
    """Label texts of the file in index order; empty for a score from 0 to 5."""
    header: bool = True
    hub_texts: tuple[str, ...] = ("sentence1", "sentence2")
    dev: str = "dev.tsv"
    advice: str = ""
    """What else to say where the file is missing."""
    skip_short_lines: bool = False
    """QQP's official train file has three lines without all cells; GLUE's own loaders leave them out, and so do we."""


def load_split(layout: Layout, source: Source, split: str) -> Dataset:
    """Load "train" or "validation" of a task with one evaluation part."""
    name = f"glue/{layout.folder}/{'train.tsv' if split == 'train' else layout.dev}"
    hub = HubRows(HUB, layout.hub)
    path = official_file(source, name, split, str(hub), layout.advice)
    if path is not None:
        return _read(layout, path)
    rows = hub.load(source, split, name, (*layout.hub_texts, "label"), layout.advice)
    return _from_hub(layout, rows)


def _read(layout: Layout, path: Path) -> Dataset:
    columns: dict[str, list] = {
        "id": [],
        "text": [],
        **({"text_pair": []} if len(layout.texts) == 2 else {}),
        "label": [],
    }
    for number, row in read_tsv(
        path, layout.header, columns=4, skip_short=layout.skip_short_lines and path.name == "train.tsv"
    ):
        columns["id"].append(str(len(columns["id"])))
        for column, name in zip(("text", "text_pair"), layout.texts, strict=False):
            columns[column].append(cell(path, row, name))
        text = cell(path, row, layout.label)
        value = (
            label_index(path, number, text, layout.file_labels)
            if layout.file_labels
            else number_in(path, number, text, 0, 5)
        )
        columns["label"].append(value)
    if not columns["id"]:
        raise UserError(f"{path} has no rows.")
    return Dataset.from_dict(columns)


def _from_hub(layout: Layout, rows: Dataset) -> Dataset:
    columns = {"id": [str(number) for number in range(len(rows))], "text": list(rows[layout.hub_texts[0]])}
    if len(layout.texts) == 2:
        columns["text_pair"] = list(rows[layout.hub_texts[1]])
    number = int if layout.file_labels else official_score
    return Dataset.from_dict({**columns, "label": [number(value) for value in rows["label"]]})


def official_score(value: float) -> float:
    """Return a similarity score as the official file has it, from the Hub's copy in 32 bits: 3.8 for 3.799999952316284.

    A score is the mean of a few annotators'. The file prints at most three decimals of it, or 14 of a fraction such as 19/9; the one that
    32 bits cannot tell from `value` is returned, else the shortest decimal number that they cannot.
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
    """Return the function that names each row's label: the strata of a classification task."""
    return lambda rows: [labels[index] for index in rows["label"]]


def score_strata(rows: Dataset) -> list[str]:
    """Name each row's bin of width 1 of the similarity score from 0 to 5; 5 belongs to the last bin."""
    bins = [min(int(score), 4) for score in rows["label"]]
    return [f"{low}-{low + 1}" for low in bins]


def _classification(
    name: str, layout: Layout, labels: tuple[str, ...], metrics: tuple[str, ...], rows: tuple[int, int], about: str
) -> Task:
    folder = f"glue/{layout.folder}"
    return Task(
        name=name,
        version=1,
        kind="classification",
        description=about,
        load=partial(load_split, layout),
        strata=label_strata(labels),
        metrics=metrics,
        primary=metrics[0],
        title=layout.folder,
        labels=labels,
        files={"train": f"{folder}/train.tsv", "validation": f"{folder}/dev.tsv"},
        hub=f"{HUB} ({layout.hub})",
        official_rows=dict(zip(("train", "validation"), rows, strict=True)),
    )


_ONE_HALF = " To evaluate on one half of MNLI: -o eval.split=validation_matched (or validation_mismatched)."
ENTAILMENT = ("entailment", "not_entailment")
PAIR = ("sentence1", "sentence2")

COLA = _classification(
    "cola",
    Layout("CoLA", "cola", ("3",), "1", file_labels=("0", "1"), header=False, hub_texts=("sentence",)),
    ("unacceptable", "acceptable"),
    ("matthews_correlation", "accuracy"),
    (8551, 1043),
    "linguistic acceptability of a sentence",
)
SST2 = _classification(
    "sst2",
    Layout("SST-2", "sst2", ("sentence",), "label", file_labels=("0", "1"), hub_texts=("sentence",)),
    ("negative", "positive"),
    ("accuracy",),
    (67349, 872),
    "sentiment of a phrase from a film review",
)
MRPC = _classification(
    "mrpc",
    Layout("MRPC", "mrpc", ("#1 String", "#2 String"), "Quality", file_labels=("0", "1")),
    ("not_equivalent", "equivalent"),
    ("accuracy", "f1"),
    (3668, 408),
    "whether two sentences are paraphrases",
)
QQP = _classification(
    "qqp",
    Layout(
        "QQP",
        "qqp",
        ("question1", "question2"),
        "is_duplicate",
        file_labels=("0", "1"),
        hub_texts=("question1", "question2"),
        skip_short_lines=True,
    ),
    ("not_duplicate", "duplicate"),
    ("accuracy", "f1"),
    (363846, 40430),
    "whether two questions ask the same",
)
QNLI = _classification(
    "qnli",
    Layout(
        "QNLI",
        "qnli",
        ("question", "sentence"),
        "label",
        file_labels=ENTAILMENT,
        hub_texts=("question", "sentence"),
    ),
    ENTAILMENT,
    ("accuracy",),
    (104743, 5463),
    "whether a sentence answers a question",
)
RTE = _classification(
    "rte",
    Layout("RTE", "rte", PAIR, "label", file_labels=ENTAILMENT),
    ENTAILMENT,
    ("accuracy",),
    (2490, 277),
    "whether a text entails a hypothesis",
)
_STSB = Layout("STS-B", "stsb", PAIR, "score")
STSB = Task(
    name="stsb",
    version=1,
    kind="regression",
    description="similarity of two sentences, from 0 to 5",
    load=partial(load_split, _STSB),
    strata=score_strata,
    metrics=("spearman", "pearson"),
    primary="spearman",
    title="STS-B",
    files={"train": "glue/STS-B/train.tsv", "validation": "glue/STS-B/dev.tsv"},
    hub=f"{HUB} (stsb)",
    official_rows={"train": 5749, "validation": 1500},
)
_MNLI_LABELS = ("entailment", "neutral", "contradiction")
_MNLI = Layout("MNLI", "mnli", PAIR, "gold_label", file_labels=_MNLI_LABELS, hub_texts=("premise", "hypothesis"))
MNLI = Task(
    name="mnli",
    version=1,
    kind="classification",
    description="entailment between two sentences of ten genres",
    load=_load_mnli,
    strata=label_strata(_MNLI_LABELS),
    metrics=("accuracy",),
    primary="accuracy",
    title="MNLI",
    labels=_MNLI_LABELS,
    splits=("validation", "validation_matched", "validation_mismatched"),
    files={
        "train": "glue/MNLI/train.tsv",
        "validation_matched": "glue/MNLI/dev_matched.tsv",
        "validation_mismatched": "glue/MNLI/dev_mismatched.tsv",
    },
    hub=f"{HUB} (mnli)",
    official_rows={"train": 392702, "validation_matched": 9815, "validation_mismatched": 9832},
)
