"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from lora_drop.experiments.agreement import (
    between_seeds,
    kendall,
    projections_of,
    retained_alike,
    scored,
    scored_by_row,
)
from lora_drop.experiments.claims import FEWEST, judge
from lora_drop.experiments.epochs import kept_epochs, optimism
from lora_drop.experiments.learnt import ERRORS
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import FLAGS, Cell, Row, Table, limits
from lora_drop.files import csv_cell

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
)
CSV_COLUMNS = (
    *("experiment", "backbone", "overrides", "row", "title", "retained", "task", "metric", "n_seeds", "seeds"),
    *("mean", "standard_deviation", "best_epoch_mean", "held_out_epoch_mean", "last_epoch_mean"),
    *("parameters", "head_parameters", "published", "difference", "flags"),
)


def to_markdown(tables: Sequence[Table]) -> str:
    """Return the tables of one experiment and backbone, each with what its numbers rest on."""
    return "\n".join(_markdown(table) for table in tables)


def to_latex(tables: Sequence[Table]) -> str:
    """Return the tables as `tabular`s of the package booktabs."""
    return "\n".join(_latex(table) for table in tables)


def to_csv(tables: Sequence[Table]) -> str:
    """Return one line per cell, and per average, unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows(line for table in tables for row in table.rows for line in _csv_lines(table, row))
    return stream.getvalue()


def _csv_lines(table: Table, row: Row) -> Iterator[list[object]]:
    asked = json.dumps(table.overrides, sort_keys=True) if table.overrides else ""
    retained = " ".join(f"{name}:{mean:g}" for name, mean in row.retained.items())
    cells = [(each.task, each.metric, row.cells[each.key]) for each in table.columns if each.key in row.cells]
    if averaged(table) and row.average is not None:
        theirs = row.published.get("average")
        average = Cell(row.average, None, (), row.average_flags, None, None, None, theirs, row.difference)
        cells.append(("average", "", average))
    for task, metric, cell in cells:
        head = [table.experiment, table.backbone, asked, row.name, row.title, retained, task, metric]
        seeds = [len(cell.seeds) or "", " ".join(map(str, cell.seeds))]
        epochs = (cell.mean, cell.deviation, cell.best, cell.held_out, cell.last)
        numbers = (*epochs, row.parameters, row.head, cell.published, cell.difference)
        yield [*map(csv_cell, head), *seeds, *(_shown(number, ".10g") for number in numbers), cell.flags]


def heads(table: Table) -> list[str]:
    """Return the names of the columns."""
    retained = [f"retained {name}" for name in table.projections]
    return ["", "parameters", *retained, *(column.title for column in table.columns), *["Avg"] * averaged(table)]


def averaged(table: Table) -> bool:
    """Return True if the columns are different tasks, so that their mean is meaningful."""
    return len({column.task for column in table.columns}) == len(table.columns) > 1


def lines(table: Table, flag: Callable[[str], str]) -> Iterable[tuple[str, list[str]]]:
    """Yield (kind, cells) of each line: `measured`, then `published` and `difference` where there are any."""
    several = averaged(table)
    for row in table.rows:
        scores = [_score(row.cells.get(column.key), flag) for column in table.columns]
        average = [_shown(row.average, ".1f") + (flag(row.average_flags) if row.average is not None else "")] * several
        kept = [_shown(row.retained.get(name), ".1f") for name in table.projections]
        parameters = _shown(row.parameters, ",.0f")
        yield "measured", [row.title, parameters, *kept, *scores, *average]
        published = _published_line(table, row, several)
        if any(published[1:]):
            yield "published", published
        differences = [cell.difference if (cell := row.cells.get(column.key)) else None for column in table.columns]
        if any(value is not None for value in (*differences, row.difference)):
            blank = [""] * (len(table.projections) + 1)
            shown = map(_signed, [*differences, *[row.difference] * several])
            yield "difference", ["difference", *blank, *shown]


def notes(table: Table) -> list[str]:
    """Return what the numbers rest on."""
    trained = [record for record in table.records if record.metrics]
    found = [_how_scored(table, trained)] if trained else []
    letters = {letter for row in table.rows for cell in row.cells.values() for letter in cell.flags}
    if letters:
        found.append("† limited: " + ", ".join(f"{each} = {FLAGS[each]}" for each in FLAGS if each in letters) + ".")
    rows = sorted({(record.task_title, *record.limited.items()) for record in table.records if record.limited})
    if rows:
        used = (f"{title} " + ", ".join(f"{count:,} {part}" for part, count in parts) for title, *parts in rows)
        found.append(f"Rows used: {'; '.join(used)}.")
    if any(not column.learnt for column in table.columns):
        found.append(_unlearnt(table))
    fewer = [(each.task_title, *each.deviations["train.epochs"]) for each in trained if "e" in limits(each)]
    if fewer:
        told = sorted({f"{title} {here:g} instead of {there:g}" for title, there, here in fewer})
        found.append(f"Epochs: {'; '.join(told)}.")
    if table.source:
        other = table.backbone != table.published_backbone
        where = f", on {table.published_backbone}: not comparable with this backbone" if other else ""
        found.append(f"Published: {table.source}{where}. Cells that the source does not show are empty.")
        found += [f"{row.title}: {row.published['note']}." for row in table.rows if "note" in row.published]
        if any(row.published.get("derived") for row in table.rows):
            found.append("≈: not printed there.")
    return found


def _unlearnt(table: Table) -> str:
    names = [column.title for column in table.columns if not column.learnt]
    chance = f"no run is more than {ERRORS} standard errors above a constant prediction"
    told = f"Nothing was learnt in {', '.join(names)}: {chance}"
    if not averaged(table):
        return told + "."
    left = len(table.columns) - len(names)
    none = "." if left > 1 else ", and so there is none."
    return f"{told}; Avg leaves {'it' if len(names) == 1 else 'them'} out{none}"


def _how_scored(table: Table, trained: Sequence[Record]) -> str:
    kinds = " or ".join(sorted({record.select_epoch for record in trained}))
    metrics: dict[str, list[str]] = {}
    for column in table.columns:
        metrics.setdefault(column.task, []).append(column.metric)
    splits = {
        f"{each.task_title} {', '.join(metrics[each.task])} on {each.split} (n = {each.examples:,})" for each in trained
    }
    unit = "in percent" if trained[0].percent else "from 0 to 100"
    return (
        f"Mean ± standard deviation (number of seeds), {unit}, of the {kinds} epoch of each run: "
        f"{'; '.join(sorted(splits))}. "
        "Parameters: trained ones of the adapter, mean over tasks and seeds, without the head."
    )


def _published_line(table: Table, row: Row, several: bool) -> list[str]:
    theirs = row.published
    retained = [_shown(theirs.get("retained", {}).get(name), "g") for name in table.projections]
    derived = theirs.get("derived", ())
    scores = [
        "≈ " * (column.key in derived) + _shown(theirs.get("scores", {}).get(column.key), "g")
        for column in table.columns
    ]
    average = [_shown(theirs.get("average"), "g")] * several
    return ["published", str(theirs.get("parameters", "")), *retained, *scores, *average]


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
    return "\n".join(text + _elsewhere(table) + _epochs(table) + claims(table) + agreement(table))


def _elsewhere(table: Table) -> list[str]:
    """Return the lines of a table of other papers' results; none where there are none on this table's tasks."""
    body = [
        [each["title"], str(each["parameters"]), *scores, each["source"]]
        for each in table.elsewhere
        if any(scores := [_shown(each["scores"].get(column.key), "g") for column in table.columns])
    ]
    head = ["", "parameters", *(column.title for column in table.columns), "source"]
    if not body:
        return []
    return [f"Others on {table.published_backbone}, in settings of their own:", "", *_markdown_table(head, body)]


def _epochs(table: Table) -> list[str]:
    """Return the lines of the table of epochs; none if no run was evaluated after each of several."""
    head, body = kept_epochs(table)
    several = any(len(record.epochs) > 1 and record.best for record in table.records)
    if not several:
        return []
    told = "Means (number of seeds) by the choice of the epoch. " + optimism(table)
    lines = _markdown_table(list(map(_literal, head)), [list(map(_literal, cells)) for cells in body])
    return ["### The epoch that is kept", "", *lines, told.rstrip(), ""]


def claims(table: Table) -> list[str]:
    """Return the lines of the claims' table; none without claims of which something was measured."""
    verdicts = judge(table)
    if not verdicts:
        return []
    body = []
    for found in verdicts:
        margin = "" if found.margin is None else f", margin {found.margin:g}"
        width = f"{_signed(found.low)} to {_signed(found.high)}" if len(found.differences) > 1 else ""
        pairs = f"{len(found.differences)} ({found.tasks})"
        what = f"{found.row} against {found.against}{margin}"
        body.append(list(map(_literal, [found.text, what, _signed(found.mean), width, pairs, found.verdict])))
    head = ["claim", "compared", "difference", "95 %", "pairs (tasks)", "verdict"]
    return [
        *["### Claims", "", *_markdown_table(head, body)],
        f"Differences of the primary scores in points, of runs with the same task and seed; 95 % interval of their mean by "
        f"the bootstrap over the pairs. Fewer than {FEWEST} pairs decide nothing. Each claim is judged at 95 % by itself: "
        f"nothing is corrected for their number, {len(verdicts)}.",
        "",
    ]


def agreement(table: Table) -> list[str]:
    """Return how far rows and seeds rank the layers alike, where the experiment compares ratios, or asks for it."""
    return [*_between_rows(table), *_between_seeds(table)]


def _between_rows(table: Table) -> list[str]:
    """A matrix for each projection."""
    if "ratios" not in table.figures:
        return []
    names = list(scored_by_row(table))
    text = []
    for projection in projections_of(table):
        taus = kendall(table, projection)
        text += [f"Kendall τ between the rows, {projection}:", ""]
        text += ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
        for one in names:
            found = [1.0 if one == two else taus[(one, two) if (one, two) in taus else (two, one)] for two in names]
            text.append(f"| {one} | " + " | ".join("" if math.isnan(tau) else f"{tau:.2f}" for tau in found) + " |")
        text.append("")
    return text


def _between_seeds(table: Table) -> list[str]:
    """A line for each row and task that has several seeds."""
    if not table.agreement:
        return []
    projections = projections_of(table)
    body: list[list[str]] = []
    shown: dict[str, list[Any]] = {}
    for row, title, records in _by_row_and_task(table):
        known = shown.setdefault(title, [])
        fresh = [record.scores for record in records if record.scores not in known]
        if len(records) > 1 and fresh:  # rows that only select differently share the warm-ups of an earlier one
            known += fresh
            body.append([row.title, title, *_seeds_alike(records, projections)])
    if not body:
        return []
    head = ["", "task", "sample", "batch", "warm-up steps", "seeds", *(f"τ {name}" for name in projections)]
    head += [f"alike {name}" for name in projections]
    told = "Kendall τ between the layers' importances of every two seeds, and how many of the retained layers they have in common (mean):"
    return [told, "", *_markdown_table(head, body)]


def _by_row_and_task(table: Table) -> Iterator[tuple[Row, str, list[Record]]]:
    """Yield the scored records of each row and task, with the title of the task."""
    for row in table.rows:
        mine = [record for record in scored(table) if record.row == row.name]
        for title in dict.fromkeys(record.task_title for record in mine):
            yield row, title, [record for record in mine if record.task_title == title]


def _seeds_alike(records: Sequence[Record], projections: Iterable[str]) -> list[str]:
    """Return the cells of a line: the size of the warm-up, the seeds, and how far they agree in each projection."""
    first = records[0]
    batch = first.config["warmup"].get("batch_size") or first.config["train"]["batch_size"]
    numbers = [f"{number:,}" for number in (first.sampled, batch, first.warmup_steps)]
    seeds = " ".join(str(record.seed) for record in records)
    taus = [" ".join(f"{tau:.2f}" for tau in between_seeds(records, name)) for name in projections]
    return [*numbers, seeds, *taus, *(retained_alike(records, name) for name in projections)]


def _markdown_table(head: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table, and an empty one."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(cells)} |" for cells in body), ""]


def _latex(table: Table) -> str:
    names = heads(table)
    text = ["% " + _one_line(f"{table.title}; {table.backbone}; {json.dumps(table.overrides, sort_keys=True)}")]
    text += [r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}", r"\toprule"]
    text += [" & ".join(map(_escape, names)) + r" \\", r"\midrule"]
    for kind, cells in lines(table, lambda flags: "†" + flags if flags else ""):
        shown = [_escape(cell) for cell in cells]
        if kind != "measured":
            shown = [rf"\textit{{{cell}}}" if cell else "" for cell in shown]
        text.append(" & ".join(shown) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}", *(f"% {_one_line(note)}" for note in notes(table)), ""])


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _literal(text: str) -> str:
    """Return Markdown that shows a text of a table, such as a row's title, as it is."""
    return re.sub(r"([\\`*<\[|])", r"\\\1", _one_line(text))


def _escape(text: str) -> str:
    """Return LaTeX that shows a text of a table as it is, and our own signs as symbols."""
    head, dagger, flags = _one_line(text).partition("†")
    return head.translate(_LATEX) + (rf"$^{{\dagger {flags}}}$" if dagger else "")


def _score(cell: Cell | None, flag: Callable[[str], str]) -> str:
    if cell is None:
        return ""
    spread = f" ± {cell.deviation:.1f}" if cell.deviation is not None else ""
    return f"{cell.mean:.1f}{spread} ({len(cell.seeds)}){flag(cell.flags)}"


def _shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _signed(value: float | None) -> str:
    return _shown(value, "+.1f").replace("-", "−")
