"""Build the cells of a table from records alone: means over seeds, beside the paper's published values."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_drop.config.strict import leaves
from lora_drop.errors import UserError
from lora_drop.experiments.learnt import nothing_learnt
from lora_drop.experiments.published import load_published
from lora_drop.experiments.records import Record, settings_today

FLAGS = {"r": "fewer rows", "e": "fewer epochs", "s": "fewer seeds"}
"""Marks of a number that is based on less than the experiment asks for."""


@dataclass(frozen=True)
class Column:
    """One score per row: a task's metric."""

    task: str
    title: str
    metric: str
    key: str
    """Key as in published.yaml: the task, or `task.metric` if a table shows several metrics."""
    learnt: bool = True
    """False if every run stays within chance of a constant prediction; the average then leaves the column out."""


@dataclass(frozen=True)
class Cell:
    """A score over seeds, in the table's unit (percent, or BLEU and ROUGE as they are)."""

    mean: float
    deviation: float | None
    """Standard deviation (n - 1); None for one seed."""
    seeds: tuple[int, ...]
    flags: str
    """Letters of FLAGS."""
    parameters: float | None
    """Trainable parameters of the adapter, mean over seeds."""
    head: float | None
    """The same for the head."""
    best: float | None
    """Mean of the best epochs on the evaluation split."""
    held_out: float | None
    """Mean of the epochs that are best on the rows held out of training."""
    last: float | None
    """Mean of the last epochs."""
    published: float | None
    difference: float | None
    """Difference from the published value; None unless that is for the same backbone."""


@dataclass(frozen=True)
class Row:
    """A method, or a variant of it."""

    name: str
    title: str
    parameters: float | None
    """Trainable parameters of the adapter, mean over the seeds of a task, then over tasks; without the head, as in the
    paper."""
    head: float | None
    cells: dict[str, Cell]
    """Cells by column key; a cell that was never measured is absent."""
    average: float | None
    """Mean of the columns in which something was learnt; None unless there are several and all are measured."""
    average_flags: str
    retained: dict[str, float]
    """Mean number of retained layers per projection."""
    published: Mapping[str, Any]
    """The row of published.yaml; empty if there is none."""
    difference: float | None
    """Difference of the average from the published one; None if that covers more columns."""


@dataclass(frozen=True)
class Table:
    """The runs that one command asked for; runs with other overrides have their own table."""

    experiment: str
    title: str
    backbone: str
    overrides: dict[str, Any]
    columns: tuple[Column, ...]
    projections: tuple[str, ...]
    """Projections with a column of retained layers."""
    rows: tuple[Row, ...]
    records: tuple[Record, ...]
    figures: tuple[str, ...]
    """Figures that the experiment wants drawn."""
    claims: dict[str, dict[str, Any]]
    """Claims of the experiment, by name; see `claims.py`."""
    agreement: bool
    """True if the table shows the agreement of seeds on the ranking of layers."""
    source: str
    """Source of the published values; empty if there are none."""
    published_backbone: str
    elsewhere: tuple[Mapping[str, Any], ...]
    """Other papers' results on that backbone: `title`, `parameters`, `source` and `scores`."""

    @property
    def learnt(self) -> set[str]:
        """The tasks in which something was learnt, by their primary metric; only these are compared."""
        by_task: dict[str, list[Record]] = {}
        for record in self.records:
            by_task.setdefault(record.task, []).append(record)
        primary = {record.task: record.primary for record in self.records if record.metrics}
        return {task for task, mine in by_task.items() if not nothing_learnt(mine, primary.get(task, ""))}


def build_tables(records: Sequence[Record]) -> list[Table]:
    """Make a table of each group of records of one experiment and backbone with the same overrides.

    Records without overrides come first.
    """
    groups: dict[str, list[Record]] = {}
    _refuse_doubles(records)
    _refuse_mixtures(records)
    for record in records:
        groups.setdefault(json.dumps(record.overrides, sort_keys=True), []).append(record)
    return [_table(groups[key]) for key in sorted(groups, key=lambda key: (len(key), key))]


def _refuse_doubles(records: Sequence[Record]) -> None:
    """Raise UserError for two results for one cell and seed, which would be averaged as if they were two seeds."""
    seen: dict[Any, Record] = {}
    for record in records:
        key = (record.row, record.task, record.seed, json.dumps(record.overrides, sort_keys=True))
        other = seen.setdefault(key, record)
        if other is not record:
            copied = other.config_hash == record.config_hash
            hashes = f"with {other.config_hash} and {record.config_hash} in their file names"
            why = f"one is a copy of the other ({record.config_hash})" if copied else hashes
            raise UserError(
                f"There are two results for {record.row}, {record.task}, seed {record.seed} of {record.experiment} on "
                f"{record.backbone}: {why}. Remove one of them."
            )


def _refuse_mixtures(records: Sequence[Record]) -> None:
    """Raise UserError for results of one cell that differ in more than the seed: their mean would be meaningless."""
    first: dict[Any, tuple[Record, dict[str, Any]]] = {}
    for record in records:
        # those that end before the evaluation have no split
        key = (record.row, record.task, json.dumps(record.overrides, sort_keys=True), bool(record.metrics))
        settings = leaves({**settings_today(vars(record)), "seed": None, "the evaluated split": record.split})
        other, known = first.setdefault(key, (record, settings))
        keys = [name for name in {**known, **settings} if known.get(name) != settings.get(name)]
        if keys:
            raise UserError(
                f"The results for {record.row}, {record.task} of {record.experiment} on {record.backbone} mix several "
                f"configurations: {keys[0]} is {known.get(keys[0])} at seed {other.seed}, and {settings.get(keys[0])} at "
                f"seed {record.seed}. Move the results of one of them to another results folder."
            )


def limits(record: Record) -> str:
    """Return how a run was limited, as letters of FLAGS, except seeds, which are counted over runs."""
    published, here = record.deviations.get("train.epochs", [0, 0])
    return "r" * bool(record.limited) + "e" * (here < published)


def _table(records: list[Record]) -> Table:
    layout, first = _layout(records), records[0]
    # figures show tasks in the order of the table's columns
    place = {task: number for number, task in enumerate(layout["tasks"])}
    records = sorted(records, key=lambda record: place.get(record.task, len(place)))
    published = load_published().get(layout["published"], {"rows": {}, "source": "", "backbone": ""})
    columns = _columns(records, layout)
    rows = []
    for name, title in layout["rows"].items():
        mine = [record for record in records if record.row == name]
        known = published["rows"].get(name, {})
        comparable = first.backbone == published["backbone"]
        if mine or known:
            rows.append(_row(name, title, mine, columns, layout, known, comparable))
    return Table(
        experiment=first.experiment,
        title=layout["title"],
        backbone=first.backbone,
        overrides=first.overrides,
        columns=tuple(columns),
        projections=_projections(records) if "retained" in layout["columns"] else (),
        rows=tuple(rows),
        records=tuple(records),
        figures=tuple(layout["figures"]),
        claims=layout["claims"],
        agreement="agreement" in layout["columns"],
        source=published["source"],
        published_backbone=published["backbone"],
        elsewhere=tuple(published.get("elsewhere", ())),
    )


def _layout(records: Sequence[Record]) -> dict[str, Any]:
    """Return the layout of the experiment, even if it has grown since some of the records were written.

    The layout with the most rows comes first; the others fill in what it lacks.
    """
    layouts = sorted((record.layout for record in records), key=lambda layout: -len(layout["rows"]))
    merged = dict(layouts[0])
    for key in ("rows", "tasks", "claims"):
        known = {name: entry for layout in reversed(layouts) for name, entry in layout.get(key, {}).items()}
        merged[key] = {name: known[name] for layout in layouts for name in layout.get(key, {})}
    for key in ("seeds", "figures", "columns", "metrics"):
        merged[key] = list(dict.fromkeys(name for layout in layouts for name in layout[key]))
    return merged


def _columns(records: Sequence[Record], layout: Mapping[str, Any]) -> list[Column]:
    """Return columns for the experiment's tasks, measured or not, or for the other tasks run instead (toy data)."""
    measured = {record.task: record for record in records if record.metrics}
    titles = layout["tasks"] if set(layout["tasks"]) & set(measured) else {}
    titles = {**titles, **{task: record.task_title for task, record in measured.items()}}
    columns = []
    for task, title in titles.items():
        mine = [record for record in records if record.task == task]
        has = {metric for record in mine for metric in record.metrics}
        metrics = [metric for metric in layout["metrics"] if metric in has or not has]  # `slots` is E2E's alone
        for metric in metrics or [measured[task].primary if task in measured else ""]:
            several = len(metrics) > 1
            name, key = (f"{title} {metric}", f"{task}.{metric}") if several else (title, task)
            columns.append(Column(task, name, metric, key, learnt=not nothing_learnt(mine, metric)))
    return columns


def _projections(records: Iterable[Record]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for record in records for name in record.selection.get("projections", {})))


def _row(
    name: str,
    title: str,
    records: Sequence[Record],
    columns: Sequence[Column],
    layout: Mapping[str, Any],
    published: Mapping[str, Any],
    comparable: bool,
) -> Row:
    cells = {}
    for column in columns:
        mine = [record for record in records if record.task == column.task and column.metric in record.metrics]
        if mine:
            theirs = published.get("scores", {}).get(column.key)
            cells[column.key] = _cell(mine, column, layout, theirs, comparable)
    average = _average(cells, columns)
    known = comparable and all(column.learnt for column in columns)
    flags = {flag for column in columns if column.learnt and column.key in cells for flag in cells[column.key].flags}
    return Row(
        name=name,
        title=title,
        parameters=_parameters(records, "adapter"),
        head=_parameters(records, "head"),
        cells=cells,
        average=average,
        average_flags="".join(flag for flag in FLAGS if flag in flags),
        retained=_retained(records),
        published=published,
        difference=_difference(average, published.get("average")) if known else None,
    )


def _parameters(records: Iterable[Record], part: str) -> float | None:
    """Return the number of parameters, averaged over the seeds of each task, then over tasks."""
    by_task: dict[str, list[int]] = {}
    for record in records:
        if record.parameters:
            by_task.setdefault(record.task, []).append(record.parameters[part])
    return _over_tasks(by_task) if by_task else None


def _over_tasks(values: Mapping[str, Sequence[int]]) -> float:
    """Return the mean over tasks of the means over their seeds."""
    return statistics.fmean(map(statistics.fmean, values.values()))


def _average(cells: Mapping[str, Cell], columns: Sequence[Column]) -> float | None:
    """Return the mean of the columns in which something was learnt; None if one of them is not measured.

    Also None unless the columns are several different tasks: a mean over metrics of one task is meaningless.
    """
    compared = [column.key for column in columns if column.learnt]
    several = len({column.task for column in columns}) == len(columns) and len(compared) > 1
    return _mean(cells[key].mean for key in compared) if several and set(compared) <= set(cells) else None


def _retained(records: Iterable[Record]) -> dict[str, float]:
    """Return the mean number of retained layers, by projection."""
    counts: dict[str, dict[str, list[int]]] = {}
    for record in records:
        for name, fate in record.selection.get("projections", {}).items():
            counts.setdefault(name, {}).setdefault(record.task, []).append(len(fate["retained"]))
    return {name: _over_tasks(by_task) for name, by_task in counts.items()}


def _cell(
    records: Sequence[Record], column: Column, layout: Mapping[str, Any], published: float | None, comparable: bool
) -> Cell:
    unit = records[0].unit
    values = [unit * record.metrics[column.metric] for record in records]
    mean = statistics.fmean(values)
    seeds = tuple(sorted(record.seed for record in records))
    limited = "".join(flag for flag in FLAGS if any(flag in limits(record) for record in records))
    primary = column.metric == records[0].primary
    return Cell(
        mean=mean,
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        seeds=seeds,
        flags=limited + "s" * (len(seeds) < len(layout["seeds"])),
        parameters=_parameters(records, "adapter"),
        head=_parameters(records, "head"),
        best=_mean(unit * record.best["score"] for record in records if record.best) if primary else None,
        held_out=_mean(unit * record.held_out["score"] for record in records if record.held_out) if primary else None,
        last=_mean(unit * record.last["score"] for record in records if record.last) if primary else None,
        published=published,
        difference=_difference(mean, published) if comparable else None,
    )


def _difference(here: float | None, there: float | None) -> float | None:
    return None if here is None or there is None else here - there


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None
