"""The effect of the choice of epoch: best on the evaluation split (the paper's), best on held-out rows, or last.

The best of several epochs on the very rows that are reported is optimistic. The difference from the other two choices
shows by how much.
"""

from __future__ import annotations

from statistics import fmean

from lora_drop.experiments.lines import signed
from lora_drop.experiments.means import mean_over_tasks
from lora_drop.experiments.table import Table

CHOICES = {"best": "best", "held_out": "held-out rows", "last": "last"}
"""Fields of `Record`, with their names in tables."""


def kept_epochs(table: Table) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table with the mean score of each row and task by the choice of the epoch.

    The body is empty if no run was evaluated after each epoch. A choice without measurements has no column.
    """
    shown = [
        (task, choice)
        for task in dict.fromkeys(column.task for column in table.columns)
        for choice in CHOICES
        if any(getattr(record, choice) for record in table.records if record.task == task)
    ]
    titles = {record.task: record.task_title for record in table.records}
    body = []
    for row in table.rows:
        cells = [_mean(table, row.name, task, choice) for task, choice in shown]
        if any(cells):
            body.append([row.title, *cells])
    return ["", *(f"{titles[task]}, {CHOICES[choice]}" for task, choice in shown)], body


def optimism(table: Table) -> str:
    """Return a sentence on how much better the best epoch scores than the other choices; empty if nothing is known.

    The rows of a table are averaged first: those of one task and seed hold out the same rows, and are not repetitions.
    """
    told = []
    titles = {record.task: record.task_title for record in table.records}
    for choice, name in (("held_out", "the one that is best on rows held out of training"), ("last", "the last one")):
        runs: dict[tuple[str, int], list[float]] = {}
        for record in table.records:
            if record.task in table.learnt and getattr(record, choice):
                difference = record.unit * (record.best["score"] - getattr(record, choice)["score"])
                runs.setdefault((record.task, record.seed), []).append(difference)
        by_task: dict[str, list[float]] = {}
        for (task, _), differences in sorted(runs.items()):
            by_task.setdefault(task, []).append(fmean(differences))
        mean = mean_over_tasks(by_task) if by_task else None
        if mean and mean.here:
            low, high = mean.here
            tasks = ", ".join(f"{titles[task]} {_number(fmean(by_task[task]))}" for task in mean.tasks)
            mean_told, *interval = map(_number, (mean.value, low, high))
            told.append(f"{mean_told} points above {name} (95 % {' to '.join(interval)}, over seeds; {tasks})")
    return f"The best epoch on the evaluation split scores {' and '.join(told)}." if told else ""


def _number(value: float) -> str:
    """Return a number with one decimal, a true minus sign, and no sign for 0."""
    return signed(value).removeprefix("+")


def _mean(table: Table, row: str, task: str, choice: str) -> str:
    mine = [record for record in table.records if (record.row, record.task) == (row, task) and getattr(record, choice)]
    scores = [record.unit * getattr(record, choice)["score"] for record in mine]
    return f"{fmean(scores):.1f} ({len(scores)})" if scores else ""
