"""Tables as Markdown, each followed by others' results, choices of the epoch, claims and agreement of rankings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from lora_drop.experiments.agreement import (
    between_rows,
    between_seeds,
    projections_of,
    retained_alike,
    scored,
    scored_by_row,
    seeds_and_tasks,
    warm_ups_by_task,
)
from lora_drop.experiments.claims import Verdict, judge
from lora_drop.experiments.epochs import kept_epochs, optimism
from lora_drop.experiments.lines import heads, lines, notes, one_line, signed, text_of
from lora_drop.experiments.means import MOST_SEEDS, Interval
from lora_drop.experiments.records import Record
from lora_drop.experiments.retained import STEP, slopes_told
from lora_drop.experiments.table import Row, Table

_fine = partial(signed, digits=2)


def to_markdown(tables: Sequence[Table]) -> str:
    """Return the tables of one experiment and backbone, each with the notes and tables that belong to it."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    names = heads(table)
    asked = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in table.overrides.items())
    over = f"over the experiment's configuration: {asked}." if asked else "the experiment's own configuration."
    text = [f"## {_literal(table.title)}", "", f"Backbone `{table.backbone}`; {over}", ""]
    body = []
    for kind, cells in lines(table, lambda flags: f" †{flags}" if flags else ""):
        shown = list(map(_literal, cells))
        body.append(shown if kind == "measured" else [f"*{cell}*" if cell else "" for cell in shown])
    text += [*_markdown_table(list(map(_literal, names)), body), *(line + "\n" for line in notes(table))]
    return "\n".join(text + _elsewhere(table) + _epochs(table) + claims(table) + _retained(table) + agreement(table))


def _elsewhere(table: Table) -> list[str]:
    """Return the lines of a table of other papers' results; empty if there are none on this table's tasks."""
    body = [
        [each["title"], str(each["parameters"]), *scores, each["source"]]
        for each in table.elsewhere
        if any(scores := [text_of(each["scores"].get(column.key), "g") for column in table.columns])
    ]
    head = ["", "parameters", *(column.title for column in table.columns), "source"]
    if not body:
        return []
    return [f"Others on {table.published_backbone}, in settings of their own:", "", *_markdown_table(head, body)]


def _epochs(table: Table) -> list[str]:
    """Return the lines of the table of epochs; empty if no run was evaluated after each of several epochs."""
    head, body = kept_epochs(table)
    several = any(len(record.epochs) > 1 and record.best for record in table.records)
    if not several:
        return []
    told = "Means (number of seeds) by the choice of the epoch. " + optimism(table)
    lines = _markdown_table(list(map(_literal, head)), [list(map(_literal, cells)) for cells in body])
    return ["### The epoch that is kept", "", *lines, told.rstrip(), ""]


def claims(table: Table) -> list[str]:
    """Return the lines of the table of claims, and of those that nothing decides; empty if there is no claim."""
    verdicts = judge(table)
    lines = [*_table_of_claims(verdicts), *_not_judged(table, verdicts)]
    return ["### Claims", "", *lines] if lines else []


def _not_judged(table: Table, verdicts: Sequence[Verdict]) -> list[str]:
    judged = {found.text for found in verdicts}
    others = [claim["says"] for claim in table.claims.values() if claim["says"] not in judged]
    why = "Not judged, because no two runs of one task and seed, in which something was learnt, compare it"
    return [f"{why}: {_literal('; '.join(others))}.", ""] if others else []


def _table_of_claims(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return []
    checked = any(found.held_out for found in verdicts)
    head = ["claim", "compared", "difference", "95 %, these tasks", "95 %, others", "pairs (tasks)", "verdict"]
    head += [*["on held-out rows", "95 %, these tasks", "verdict"] * checked, "seeds to decide"]
    body = [_judged(found, checked) for found in verdicts]
    told = (
        "Differences of the primary scores in points, of runs with the same task and seed: their mean by task, then over tasks. "
        "The first interval is that for other seeds on these tasks and these rows, and decides the verdict; the second is for "
        "other tasks, of which a few say little (where it is narrower, they agree by chance). Tasks with one seed take no part "
        "where others have several. Each claim is judged at 95 % by "
        f"itself: nothing is corrected for their number, {len(verdicts)}. "
    )
    if checked:
        told += (
            "On held-out rows: the same runs and epochs on the rows held out of training, which have chosen nothing and are "
            "others for each seed. "
        )
    told += "Seeds to decide: so many of each task would, if mean and spreads stay what they are."
    return [*_markdown_table(head, body), told, ""]


def _judged(found: Verdict, checked: bool) -> list[str]:
    """Return the cells of a claim."""
    margin = "" if found.margin is None else f", margin {found.margin:g}"
    pairs = f"{sum(len(found.differences[task]) for task in found.mean.tasks)} ({len(found.mean.tasks)})"
    cells = [found.text, f"{found.row} against {found.against}{margin}", signed(found.mean.value)]
    cells += [_range(found.mean.here), _range(found.mean.elsewhere), pairs, found.verdict]
    if checked:
        other = found.held_out
        cells += [signed(other.mean.value), _range(other.mean.here), other.verdict] if other else [""] * 3
    return list(map(_literal, [*cells, _needed(found)]))


def _needed(found: Verdict) -> str:
    """Return what would decide an undecided claim: a number of seeds, or another task; empty if it is decided."""
    if found.verdict != "undecided" or found.mean.here is None:
        return ""
    return str(found.seeds or f"more than {MOST_SEEDS}") if len(found.mean.tasks) > 1 else "another task"


def _range(interval: Interval | None, written: Callable[[float], str] = signed) -> str:
    return "" if interval is None else f"{written(interval[0])} to {written(interval[1])}"


def _retained(table: Table) -> list[str]:
    """Return the lines of the table of slopes, a column for each kind of rows; none unless the experiment draws them."""
    told = slopes_told(table) if "retained" in table.figures else []
    if not told:
        return []
    tasks = list(dict.fromkeys(task for _, found in told for task in found.by_task))
    body = [[task, *(_each_seed(found.by_task.get(task, ())) for _, found in told)] for task in tasks]
    body.append(["mean over tasks", *(_fine(found.mean.value) for _, found in told)])
    body.append(["95 %, these tasks", *(_range(found.mean.here, _fine) for _, found in told)])
    body.append(["95 %, others", *(_range(found.mean.elsewhere, _fine) for _, found in told)])
    text = (
        f"Points of the primary score for each further {STEP:g} % of the importance that is retained (mean over the projections), seed "
        "by seed: the slope over runs of one task and seed that differ only in the policy. The kept epoch of each run."
    )
    lines = _markdown_table(["", *(name for name, _ in told)], [list(map(_literal, cells)) for cells in body])
    return ["### Does the score rise with the importance retained?", "", *lines, text, ""]


def _each_seed(values: Sequence[float]) -> str:
    return " ".join(map(_fine, values))


def agreement(table: Table) -> list[str]:
    """Return the agreement of rows, seeds and tasks on the ranking of layers, if the experiment compares it."""
    return [*_between_rows(table), *_between_seeds(table), *_between_tasks(table)]


def _between_rows(table: Table) -> list[str]:
    """Return a matrix of rows for each projection, if the experiment compares ratios."""
    if "ratios" not in table.figures:
        return []
    text = []
    for projection in projections_of(table.records):
        names, taus = list(scored_by_row(table, projection)), between_rows(table, projection)
        text += [f"Kendall τ between the rows, {projection}:", ""]
        text += ["| | " + " | ".join(map(_literal, names)) + " |", "|---" * (len(names) + 1) + "|"]
        for one in names:
            found = [1.0 if one == two else taus[(one, two) if (one, two) in taus else (two, one)] for two in names]
            text.append(
                f"| {_literal(one)} | " + " | ".join("" if math.isnan(tau) else f"{tau:.2f}" for tau in found) + " |"
            )
        text.append("")
    return text


def _between_seeds(table: Table) -> list[str]:
    """Return a table with a line for each row and task that has several seeds."""
    if not table.agreement:
        return []
    projections = projections_of(table.records)
    body: list[list[str]] = []
    shown: dict[str, list[Any]] = {}
    for row, title, records in _by_row_and_task(table):
        known = shown.setdefault(title, [])
        fresh = [record.scores for record in records if record.scores not in known]
        if len(records) > 1 and fresh:  # rows that only select differently share an earlier row's warm-ups
            known += fresh
            body.append([row.title, title, *_seeds_alike(records, projections)])
    if not body:
        return []
    head = ["", "task", "sample", "batch", "warm-up steps", "seeds", *(f"τ {name}" for name in projections)]
    head += [f"alike {name}" for name in projections]
    told = "Kendall τ between the layers' importances of every two seeds, and how many of the retained layers they have in common (mean):"
    return [told, "", *_markdown_table(head, body)]


def _between_tasks(table: Table) -> list[str]:
    """Return a table that compares the agreement of two seeds of a task with that of two tasks, by projection."""
    by_task = warm_ups_by_task(table) if table.agreement else {}
    found = {name: both for name in projections_of(table.records) if (both := seeds_and_tasks(by_task, name))}
    if not found:
        return []
    kinds = ("two seeds of a task", "two tasks")
    body = [
        [f"τ, {kind}", *(f"{both[number].tau:.2f}" for both in found.values())] for number, kind in enumerate(kinds)
    ]
    for number, kind in enumerate(kinds):
        body.append(
            [f"retained layers in common, {kind}", *(f"{100 * both[number].common:.0f} %" for both in found.values())]
        )
    body.append(["of two random choices", *(f"{100 * both[1].chance:.0f} %" for both in found.values())])
    count = sum(map(len, by_task.values()))
    told = f"Is the ranking the task's, or the model's? Means over every two of {count} warm-ups, one of each task and seed:"
    return [told, "", *_markdown_table(["", *found], body)]


def _by_row_and_task(table: Table) -> Iterator[tuple[Row, str, list[Record]]]:
    """Yield the scored records of each row and task, with the title of the task."""
    for row in table.rows:
        mine = [record for record in scored(table) if record.row == row.name]
        for title in dict.fromkeys(record.task_title for record in mine):
            yield row, title, [record for record in mine if record.task_title == title]


def _seeds_alike(records: Sequence[Record], projections: Iterable[str]) -> list[str]:
    """Return the cells of a line: the size of the warm-up, the seeds, and their agreement on each projection."""
    first = records[0]
    batch = first.config["warmup"].get("batch_size") or first.config["train"]["batch_size"]
    numbers = [f"{number:,}" for number in (first.sampled, batch, first.warmup_steps)]
    seeds = " ".join(str(record.seed) for record in records)
    taus = [" ".join(f"{tau:.2f}" for tau in between_seeds(records, name)) for name in projections]
    return [*numbers, seeds, *taus, *(retained_alike(records, name) for name in projections)]


def _markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, followed by an empty line."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body), ""]


def _literal(text: str) -> str:
    """Return Markdown that shows a table's text, such as a row's title, literally."""
    return re.sub(r"([\\`*<\[|])", r"\\\1", one_line(text))
