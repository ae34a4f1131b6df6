"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence

from lora_drop.experiments.agreement import between_seeds, kendall, projections_of, scored, scored_by_row
from lora_drop.experiments.learnt import ERRORS
from lora_drop.experiments.table import FLAGS, Cell, Column, Row, Table, limits

_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$"}
)
CSV_COLUMNS = (
    "experiment",
    "backbone",
    "overrides",
    "row",
    "title",
    "retained",
    "task",
    "metric",
    "n_seeds",
    "seeds",
    "mean",
    "standard_deviation",
    "best_epoch_mean",
    "last_epoch_mean",
    "parameters",
    "head_parameters",
    "published",
    "difference",
    "flags",
)


def to_markdown(tables: Sequence[Table]) -> str:
    """Return the tables of one experiment and backbone, each with what its numbers rest on."""
    return "\n".join(_markdown(table) for table in tables)


def to_latex(tables: Sequence[Table]) -> str:
    """Return the tables as `tabular`s of the package booktabs."""
    return "\n".join(_latex(table) for table in tables)


def to_csv(tables: Sequence[Table]) -> str:
    """Return one line per cell, unrounded."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for row in table.rows:
            writer.writerows(_csv_line(table, row, column) for column in table.columns if column.key in row.cells)
            writer.writerows(_csv_average(table, row) if averaged(table) and row.average is not None else [])
    return stream.getvalue()


def _csv_line(table: Table, row: Row, column: Column) -> list[object]:
    cell = row.cells[column.key]
    seeds = [len(cell.seeds), " ".join(map(str, cell.seeds))]
    numbers = [
        cell.mean,
        cell.deviation,
        cell.best,
        cell.last,
        row.parameters,
        row.head,
        cell.published,
        cell.difference,
    ]
    return [*_csv_head(table, row), column.task, column.metric, *seeds, *map(_exact, numbers), cell.flags]


def _csv_average(table: Table, row: Row) -> list[list[object]]:
    numbers = [row.average, None, None, None, row.parameters, row.head, row.published.get("average"), row.difference]
    return [[*_csv_head(table, row), "average", "", "", "", *map(_exact, numbers), row.average_flags]]


def _csv_head(table: Table, row: Row) -> list[object]:
    asked = json.dumps(table.overrides, sort_keys=True) if table.overrides else ""
    retained = " ".join(f"{name}:{mean:g}" for name, mean in row.retained.items())
    return [table.experiment, table.backbone, asked, row.name, row.title, retained]


def _exact(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def heads(table: Table) -> list[str]:
    """Return the names of the columns."""
    average = ["Avg"] if averaged(table) else []
    return [
        "",
        "parameters",
        *(f"retained {name}" for name in table.projections),
        *(column.title for column in table.columns),
        *average,
    ]


def averaged(table: Table) -> bool:
    """Whether the columns are different tasks, so that their mean says something."""
    return len({column.task for column in table.columns}) == len(table.columns) > 1


def lines(table: Table, flag: Callable[[str], str]) -> Iterable[tuple[str, list[str]]]:
    """Yield (kind, cells) of each line: `measured`, then `published` and `difference` where there is something to say."""
    several = averaged(table)
    for row in table.rows:
        scores = [_score(row.cells.get(column.key), flag) for column in table.columns]
        average = (
            [_number(row.average) + (flag(row.average_flags) if row.average is not None else "")] if several else []
        )
        kept = [_number(row.retained.get(name)) for name in table.projections]
        yield (
            "measured",
            [row.title, f"{row.parameters:,.0f}" if row.parameters is not None else "", *kept, *scores, *average],
        )
        published = _published_line(table, row, several)
        if any(published[1:]):
            yield "published", published
        differences = [cell.difference if (cell := row.cells.get(column.key)) else None for column in table.columns]
        if any(value is not None for value in (*differences, row.difference)):
            blank = [""] * (len(table.projections) + 1)
            average = [_signed(row.difference)] * several
            yield "difference", ["difference", *blank, *map(_signed, differences), *average]


def notes(table: Table) -> list[str]:
    """Return what the numbers rest on."""
    trained = [record for record in table.records if record.metrics]
    found = [_how_scored(table)] if trained else []
    flags = sorted(
        {flag for row in table.rows for cell in row.cells.values() for flag in cell.flags}, key=list(FLAGS).index
    )
    if flags:
        found.append("† limited: " + ", ".join(f"{flag} = {FLAGS[flag]}" for flag in flags) + ".")
    rows = sorted({(record.task_title, *record.limited.items()) for record in table.records if record.limited})
    if rows:
        found.append(
            "Rows used: "
            + "; ".join(f"{title} " + ", ".join(f"{count:,} {part}" for part, count in parts) for title, *parts in rows)
            + "."
        )
    if any(not column.learnt for column in table.columns):
        found.append(_unlearnt(table))
    epochs = sorted(
        {_epochs(record.task_title, *record.deviations["train.epochs"]) for record in trained if "e" in limits(record)}
    )
    if epochs:
        found.append("Epochs: " + "; ".join(epochs) + ".")
    if table.source:
        comparable = (
            ""
            if table.backbone == table.published_backbone
            else f", on {table.published_backbone}: not comparable with this backbone"
        )
        found.append(f"Published: {table.source}{comparable}. Cells that the source does not show are empty.")
    return found


def _unlearnt(table: Table) -> str:
    names = [column.title for column in table.columns if not column.learnt]
    told = f"Nothing was learnt in {', '.join(names)}: no run is more than {ERRORS} standard errors above a constant prediction"
    if not averaged(table):
        return told + "."
    left = len(table.columns) - len(names)
    return f"{told}; Avg leaves {'it' if len(names) == 1 else 'them'} out" + (
        "." if left > 1 else ", and so there is none."
    )


def _epochs(title: str, there: float, here: float) -> str:
    return f"{title} {here:g} instead of {there:g}"


def _how_scored(table: Table) -> str:
    trained = [record for record in table.records if record.metrics]
    kinds = sorted({record.select_epoch for record in trained})
    metrics = {
        task: ", ".join(column.metric for column in table.columns if column.task == task) for task in _tasks(table)
    }
    splits = sorted(
        {
            f"{record.task_title} {metrics[record.task]} on {record.split} (n = {record.examples:,})"
            for record in trained
        }
    )
    unit = "in percent" if trained[0].percent else "from 0 to 100"
    return (
        f"Mean ± standard deviation (number of seeds), {unit}, of the {' or '.join(kinds)} epoch of each run: "
        + "; ".join(splits)
        + ". "
        "Parameters: trained ones of the adapter, mean over tasks and seeds, without the head."
    )


def _tasks(table: Table) -> list[str]:
    return list(dict.fromkeys(column.task for column in table.columns))


def _published_line(table: Table, row: Row, several: bool) -> list[str]:
    theirs = row.published
    retained = [_as_printed(theirs.get("retained", {}).get(name)) for name in table.projections]
    scores = [_as_printed(theirs.get("scores", {}).get(column.key)) for column in table.columns]
    average = [_as_printed(theirs.get("average"))] * several
    return ["published", str(theirs.get("parameters", "")), *retained, *scores, *average]


def _markdown(table: Table) -> str:
    names = heads(table)
    asked = ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in table.overrides.items())
    text = [
        f"## {_literal(table.title)}",
        "",
        f"Backbone `{table.backbone}`; "
        + (f"over the experiment's configuration: {asked}." if asked else "the experiment's own configuration."),
    ]
    text += ["", "| " + " | ".join(map(_literal, names)) + " |", "|" + "---|" * len(names)]
    for kind, cells in lines(table, lambda flags: f" †{flags}" if flags else ""):
        shown = list(map(_literal, cells))
        if kind != "measured":
            shown = [f"*{cell}*" if cell else "" for cell in shown]
        text.append("| " + " | ".join(shown) + " |")
    text += ["", *(line + "\n" for line in notes(table))]
    return "\n".join(text + agreement(table))


def agreement(table: Table) -> list[str]:
    """Return how far rows, or seeds, rank the layers alike, where the experiment compares sample ratios, or asks for it."""
    return [*_between_rows(table), *_between_seeds(table)]


def _between_rows(table: Table) -> list[str]:
    """A matrix for each projection."""
    if "ratios" not in table.figures:
        return []
    names = list(scored_by_row(table))
    text = []
    for projection in projections_of(table):
        taus = kendall(table, projection)
        text += [
            f"Kendall τ between the rows, {projection}:",
            "",
            "| | " + " | ".join(names) + " |",
            "|---" * (len(names) + 1) + "|",
        ]
        for one in names:
            found = [1.0 if one == two else taus[(one, two) if (one, two) in taus else (two, one)] for two in names]
            text.append(f"| {one} | " + " | ".join("" if math.isnan(tau) else f"{tau:.2f}" for tau in found) + " |")
        text.append("")
    return text


def _between_seeds(table: Table) -> list[str]:
    """A line for each row and task that has several seeds."""
    projections = projections_of(table)
    body = []
    for row in table.rows:
        mine = [record for record in scored(table) if record.row == row.name]
        for title in dict.fromkeys(record.task_title for record in mine):
            records = [record for record in mine if record.task_title == title]
            if len(records) > 1:
                taus = [" ".join(f"{tau:.2f}" for tau in between_seeds(records, name)) for name in projections]
                config = records[0].config
                batch = config["warmup"].get("batch_size") or config["train"]["batch_size"]
                numbers = [f"{number:,}" for number in (records[0].sampled, batch, records[0].warmup_steps)]
                seeds = " ".join(str(record.seed) for record in records)
                body.append([row.title, title, *numbers, seeds, *taus])
    if not table.agreement or not body:
        return []
    head = ["", "task", "sample", "batch", "warm-up steps", "seeds", *(f"τ {name}" for name in projections)]
    return [
        "Kendall τ between the layers' importances of every two seeds:",
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(cells) + " |" for cells in body),
        "",
    ]


def _latex(table: Table) -> str:
    names = heads(table)
    text = ["% " + _one_line(f"{table.title}; {table.backbone}; {json.dumps(table.overrides, sort_keys=True)}")]
    text += [
        r"\begin{tabular}{l" + "r" * (len(names) - 1) + "}",
        r"\toprule",
        " & ".join(map(_escape, names)) + r" \\",
        r"\midrule",
    ]
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


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _as_printed(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}".replace("-", "−")
