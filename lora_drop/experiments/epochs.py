"""The epoch that is kept, and what it is worth: best on the evaluation split (the paper's), best on rows held out of
training, or last.

The best of several epochs on the very rows that are reported is optimistic. The difference from the other two says by
how much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from lora_drop.experiments.claims import FEWEST, interval
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table

CHOICES = {"best": "best", "held_out": "held-out rows", "last": "last"}
"""Fields of `Record`, and their names in tables."""


def kept_epochs(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table with the mean score of each row and task by the choice of the epoch.

    The body is empty if no run was evaluated after each epoch. A choice of which nothing was measured has no column.
    """
    columns = [column for column in table.columns if any(True for _ in _records(table, column.metric, column.task))]
    columns = list({column.task: column for column in columns}.values())
    shown = [
        (column.title, column.task, choice)
        for column in columns
        for choice in CHOICES
        if any(getattr(record, choice) for record in _records(table, column.metric, column.task))
    ]
    body = []
    for row in table.rows:
        cells = [_mean(table, row.name, task, choice) for _, task, choice in shown]
        if any(cells):
            body.append([row.title, *cells])
    return ["", *(f"{title}, {CHOICES[choice]}" for title, _, choice in shown)], body


def optimism(table: Table) -> str:
    """Return a sentence on how much better the best epoch is than that of the other choices; empty if nothing is known."""
    told = []
    for choice, name in (("held_out", "the one that is best on rows held out of training"), ("last", "the last one")):
        pairs = [
            unit * (record.best["score"] - getattr(record, choice)["score"])
            for column in table.columns
            if column.learnt
            for record in _records(table, column.metric, column.task)
            if getattr(record, choice)
            for unit in (100 if record.percent else 1,)
        ]
        if len(pairs) >= FEWEST:
            low, high = interval(pairs)
            told.append(f"{fmean(pairs):.1f} points above {name} (95 % {low:.1f} to {high:.1f}, {len(pairs)} runs)")
    return f"The best epoch on the evaluation split scores {' and '.join(told)}." if told else ""


def _records(table: Table, metric: str, task: str) -> Iterator[Record]:
    return (each for each in table.records if each.task == task and each.primary == metric and each.best)


def _mean(table: Table, row: str, task: str, choice: str) -> str:
    records: Sequence[Record] = [each for each in table.records if each.row == row and each.task == task]
    scores = [
        (100 if each.percent else 1) * getattr(each, choice)["score"] for each in records if getattr(each, choice)
    ]
    return f"{fmean(scores):.1f} ({len(scores)})" if scores else ""
