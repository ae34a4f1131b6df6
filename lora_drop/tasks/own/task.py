"""A `Task` from the user's own data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

from datasets import Dataset

from lora_drop.config.identity import OWN
from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError, closest
from lora_drop.files import digest, file_digest
from lora_drop.pruning.sampling import stratified_sample
from lora_drop.tasks.base import Source, Task
from lora_drop.tasks.own import OWN_VERSION
from lora_drop.tasks.own.chats import Chat, Described, described
from lora_drop.tasks.own.columns import chat_reading, find_columns
from lora_drop.tasks.own.reading import Reading, Survey, place_where, some_places, surprise, survey, with_kind
from lora_drop.tasks.own.rows import example, features, kept, strata, strata_of_rows
from lora_drop.tasks.own.splits import Splits, find_splits, local_identities
from lora_drop.tasks.own.tables import Table
from lora_drop.tasks.own.values import Label, missing, number, several

T = TypeVar("T")
SHARE, MOST = 0.2, 2000
"""Default share of the rows held out for evaluation, and the maximum number of such rows."""
SPLIT_SEED = 0
"""Seed for the choice of held-out rows, the same for all seeds of a run, so that all are evaluated on the same rows."""
METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "f1_macro", "matthews_correlation"),
    "multilabel": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("spearman", "pearson"),
    "generation": ("rouge_l", "sacrebleu"),
}
"""Default metrics of each kind; the first selects the best epoch."""
ALLOWED = {
    "classification": ("accuracy", "f1_macro", "f1_micro", "matthews_correlation"),
    "multilabel": ("f1_micro", "f1_macro", "accuracy"),
    "regression": ("pearson", "spearman"),
    "generation": ("sacrebleu", "rouge_l", "perplexity"),
}
ALIASES = {"matthews": "matthews_correlation", "rougeL": "rouge_l", "rougel": "rouge_l"}


def own_contents(data: DataConfig) -> dict[str, str]:
    """Return identities of the files that `data` names, by the names of `Source.origins`, without reading rows.

    Rows of the Hub and missing files have no entry. Raises UserError for a dataset_info.json that cannot be read.
    """
    if data.dataset_info is None:
        return local_identities(data)
    if not Path(data.dataset_info).expanduser().is_file():
        return {}
    known = described(data.dataset_info, str(data.name))
    return {"dataset_info": digest(asdict(known)), **local_identities(_at(known, data))}


def _at(known: Described, data: DataConfig) -> DataConfig:
    """Return `data` with the path and split from dataset_info.json."""
    return replace(data, path=known.path, split=known.split or data.split)


def stored_task(record: Mapping[str, Any], metric: Sequence[str] | None = None) -> Task:
    """Return the task of a trained adapter from the record that the adapter keeps (`Task.record`), without its data.

    `metric` has the form of `data.metric`.
    """
    return _task(Reading.of_record(record), None, metric)


class OwnData:
    """The user's own data: its tables, the reading of its columns, and surveys of the rows."""

    def __init__(self, data: DataConfig, source: Source):
        """Read the tables once. Their content determines the kind, the labels, and the held-out rows.

        Args:
            data: Settings with `path` or `dataset_info`.
            source: Provides the Hub settings and receives notices about rows that are left out.

        Raises:
            UserError: For anything that cannot be read, naming file, line and column.
        """
        self.data, self.source = data, source
        located, chat = self._located()
        self.splits: Splits = find_splits(located, source)
        train = self.splits.train
        columns = find_columns(located, train) if chat is None else chat_reading(chat, train)
        found = survey(train, columns)
        self.reading: Reading = with_kind(columns, train, found)
        self.surveys: dict[str, Survey] = {"train": self._again(train, columns, found)}
        self.doubt = surprise(self.reading, train, self.surveys["train"].counts) if columns.kind == "auto" else ""
        """Why the kind or the labels may not be what is meant; empty if all is as expected."""
        if self.doubt:
            source.report.notice(self.doubt)
        if located.validation is None:
            self._leave_unlabelled()
        if self.splits.validation is not None:
            self.surveys["validation"] = self._surveyed(self.splits.validation)
        self.members = {name: found.used for name, found in self.surveys.items()}
        self.texts = {name: found.texts for name, found in self.surveys.items()}
        """Fingerprints of the texts of the rows, by split."""
        if self.splits.validation is None:
            self._hold_out(self.surveys["train"])
        for name, found in self.surveys.items():
            self._tell(name, found)
        if self.known:
            source.report.notice(
                f"{self.known:,} of {len(self.texts['validation']):,} evaluation rows have a text that a training row "
                "has, too: how well they are predicted says little about new texts"
            )

    def _located(self) -> tuple[DataConfig, Chat | None]:
        """Return the settings, and how to read conversations. What dataset_info.json says about both is resolved."""
        data = self.data
        if data.dataset_info is None:
            return data, None
        known = described(data.dataset_info, str(data.name))
        self.source.origins.setdefault(
            "dataset_info", {"file": str(data.dataset_info), "content": digest(asdict(known))}
        )
        return _at(known, data), known.chat

    def _leave_unlabelled(self) -> None:
        """Leave out an evaluation table that has the texts but no labels, with a notice."""
        table, label = self.splits.validation, self.reading.label
        if table is None or not label or not set(self.reading.columns) <= set(table.columns):
            return
        if label not in table.columns:
            lacks = f"no column {label!r}"
        elif self.reading.kind != "multilabel" and all(missing(row.get(label)) for _, row in table.rows()):
            lacks = f"no label in {label!r}"
        else:
            return
        self.source.report.notice(
            f"{table.name} has {lacks}: a part of the training rows is held out instead. To predict its labels: "
            "lora-drop predict"
        )
        self.splits = replace(self.splits, validation=None)

    def _surveyed(self, validation: Table) -> Survey:
        """Return the survey of the evaluation rows. Raise UserError if they cannot be read as the training rows are."""
        for name in filter(None, (*self.reading.columns, self.reading.label)):
            if name not in validation.columns:
                raise UserError(
                    f"{validation.name} has no column {name!r}, which {self.splits.train.name} has. Rows to evaluate on "
                    "need text and label; to predict rows without labels: lora-drop predict. Columns: "
                    f"{', '.join(validation.columns)}"
                )
        found = survey(validation, self.reading)
        self._check_known(validation, found)
        return found

    def _again(self, table: Table, columns: Reading, found: Survey) -> Survey:
        """Return the survey with labels replaced by class names, which are known by now.

        If the kind turned out to be multilabel, survey the table again, because rows without labels then count as rows.
        """
        turned = self.reading.kind == "multilabel" != columns.kind and found.unlabelled
        if turned:
            return survey(table, self.reading)
        return replace(found, labels=[self.reading.named(label) for label in found.labels])

    @property
    def known(self) -> int:
        """Number of evaluation rows with a text that also occurs in a training row."""
        trained = set(self.texts["train"])
        return sum(text in trained for text in self.texts["validation"])

    def task(self) -> Task:
        """Return the task."""
        return _task(self.reading, self, self.data.metric)

    def table(self, split: str) -> Table:
        """Return the table that contains the rows of a split."""
        return self.splits.train if split == "train" or self.splits.validation is None else self.splits.validation

    def load(self, source: Source, split: str) -> Dataset:
        """Return the rows of "train" or "validation", memory-mapped from a cache that is keyed by their content."""
        table, members = self.table(split), self.members[split]
        folder = Path(__file__).parent
        code = [file_digest(folder / name) for name in ("chats.py", "reading.py", "rows.py", "tables.py", "values.py")]
        key = digest(table.identity, self.reading.record(), digest(members), split, code)
        wanted = set(members)
        source.origins.setdefault(split, {"file": table.name, "content": table.identity})
        return kept(
            key,
            features(self.reading),
            lambda: (
                example(self.reading, f"{split}-{number}", place, row)
                for number, (place, row) in enumerate(table.rows())
                if number in wanted
            ),
        )

    def _hold_out(self, found: Survey) -> None:
        """Split the training rows into training and evaluation rows, stratified."""
        total = len(found.used)
        share = self.splits.share
        size = min(round(SHARE * total), MOST) if share is None else round(share * total)
        if not 1 <= size < total:
            raise UserError(
                f"{self.splits.train.name} has {total} usable rows: too few to hold out {SHARE if share is None else share:g} "
                "of them for evaluation. Name a file with --validation."
            )
        drawn = set(stratified_sample(strata(self.reading, found.labels), size, SPLIT_SEED).indices)
        drawn -= self._only_ones(found, drawn)
        if not drawn:
            raise UserError(
                f"{self.splits.train.name}: no label has two rows, so none can be held out for evaluation. Name a file with --validation."
            )

        def parts(rows: Sequence[T]) -> dict[str, list[T]]:
            return {
                split: [row for index, row in enumerate(rows) if (index in drawn) == (split == "validation")]
                for split in ("train", "validation")
            }

        self.members, self.texts = parts(found.used), parts(found.texts)

    def _only_ones(self, found: Survey, drawn: set[int]) -> set[int]:
        """Return rows of `drawn` to train on after all: each has a label that no training row has otherwise."""
        if self.reading.kind not in ("classification", "multilabel"):
            return set()
        multilabel = self.reading.kind == "multilabel"
        names = [set(several(label)) if multilabel else {label} for label in found.labels]
        learnt = {name for row, each in enumerate(names) if row not in drawn for name in each}
        back: set[int] = set()
        for row in sorted(drawn):
            if not learnt >= names[row]:
                back.add(row)
                learnt |= names[row]
        return back

    def _check_known(self, table: Table, found: Survey) -> None:
        """Raise UserError for an evaluation row with a label that no training row has, or that is not a number."""
        reading = self.reading
        if not found.counts:
            raise UserError(f"{table.name}: none of {found.rows} rows has text and a label in {reading.label!r}.")

        def unknown(label: Label | None) -> bool:
            if reading.kind == "regression":
                return label is not None and number(label) is None
            names = several(label) if reading.kind == "multilabel" else () if label is None else (str(label),)
            return bool(reading.labels) and not set(names) <= set(reading.labels)

        if any(unknown(label) for label in found.counts):
            what = "is not a number" if reading.kind == "regression" else "is not a label of the training rows"
            raise UserError(f"{place_where(table, reading, unknown)} {what} ({self.splits.train.name}).")

    def _tell(self, split: str, found: Survey) -> None:
        for places, what in ((found.empty, "no text"), (found.unlabelled, f"no {self.reading.label!r}")):
            if places:
                self.source.report.notice(f"{some_places(places, what, split)}: left out")


def _task(reading: Reading, data: OwnData | None, metric: Sequence[str] | None) -> Task:
    def load(source: Source, split: str) -> Dataset:
        assert data is not None, "a stored task has no rows"
        return data.load(source, split)

    metrics = _metrics(reading.kind, metric)
    return Task(
        name=OWN,
        version=OWN_VERSION,
        kind=reading.kind,  # type: ignore[arg-type]  # one of them by now
        description=f"own data: {data.splits.train.name}" if data else "own data",
        load=load,
        strata=lambda rows: strata_of_rows(reading, rows),
        metrics=metrics,
        primary=metrics[0],
        labels=reading.labels,
        record=reading.record(),
        center=reading.center,
        spread=reading.spread,
    )


def _metrics(kind: str, named: Sequence[str] | None) -> tuple[str, ...]:
    if not named:
        return METRICS[kind]
    metrics = tuple(dict.fromkeys(ALIASES.get(name, name) for name in named))
    for name in metrics:
        if name not in ALLOWED[kind]:
            raise UserError(
                f"data.metric: {name!r} is not a metric for {kind}.{closest(name, list(ALLOWED[kind]))} Metrics: "
                f"{', '.join(ALLOWED[kind])}"
            )
    return metrics
