"""The content of a table in every format: the names of its columns, its lines, and notes on the numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from lora_drop.experiments.learnt import ERRORS
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import FLAGS, Cell, Row, Table, limits


def heads(table: Table) -> list[str]:
    """Return the names of the columns."""
    retained = [f"retained {name}" for name in table.projections]
    return ["", "parameters", *retained, *(column.title for column in table.columns), *["Avg"] * averaged(table)]


def averaged(table: Table) -> bool:
    """Return True if the columns are different tasks, so that their mean is meaningful."""
    return len({column.task for column in table.columns}) == len(table.columns) > 1


def lines(table: Table, flag: Callable[[str], str]) -> Iterable[tuple[str, list[str]]]:
    """Yield (kind, cells) of each line: `measured`, then `published` and `difference` where they exist."""
    several = averaged(table)
    for row in table.rows:
        scores = [_score(row.cells.get(column.key), flag) for column in table.columns]
        average = [text_of(row.average, ".1f") + (flag(row.average_flags) if row.average is not None else "")] * several
        kept = [text_of(row.retained.get(name), ".1f") for name in table.projections]
        parameters = text_of(row.parameters, ",.0f")
        yield "measured", [row.title, parameters, *kept, *scores, *average]
        published = _published_line(table, row, several)
        if any(published[1:]):
            yield "published", published
        differences = [cell.difference if (cell := row.cells.get(column.key)) else None for column in table.columns]
        if any(value is not None for value in (*differences, row.difference)):
            blank = [""] * (len(table.projections) + 1)
            shown = map(signed, [*differences, *[row.difference] * several])
            yield "difference", ["difference", *blank, *shown]


def notes(table: Table) -> list[str]:
    """Return notes on what the numbers are based on."""
    trained = [record for record in table.records if record.metrics]
    found = [_how_scored(table, trained)] if trained else []
    letters = {letter for row in table.rows for cell in row.cells.values() for letter in cell.flags}
    if letters:
        found.append("† limited: " + ", ".join(f"{each} = {FLAGS[each]}" for each in FLAGS if each in letters) + ".")
    rows = sorted({(record.task_title, *record.limited.items()) for record in table.records if record.limited})
    if rows:
        used = (f"{title} " + ", ".join(f"{count:,} {part}" for part, count in parts) for title, *parts in rows)
        found.append(f"Rows used: {'; '.join(used)}.")
    for share in sorted({record.config.get("train", {}).get("held_out", 0.0) for record in trained} - {0.0}):
        found.append(f"Held out of training (train.held_out): {share:.0%} of the training rows.")
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
        "Parameters: trained ones of the adapter, mean over seeds, then over tasks, without the head."
    )


def _published_line(table: Table, row: Row, several: bool) -> list[str]:
    theirs = row.published
    retained = [text_of(theirs.get("retained", {}).get(name), "g") for name in table.projections]
    derived = theirs.get("derived", ())
    scores = [
        "≈ " * (column.key in derived) + text_of(theirs.get("scores", {}).get(column.key), "g")
        for column in table.columns
    ]
    average = [text_of(theirs.get("average"), "g")] * several
    return ["published", str(theirs.get("parameters", "")), *retained, *scores, *average]


def _score(cell: Cell | None, flag: Callable[[str], str]) -> str:
    if cell is None:
        return ""
    spread = f" ± {cell.deviation:.1f}" if cell.deviation is not None else ""
    return f"{cell.mean:.1f}{spread} ({len(cell.seeds)}){flag(cell.flags)}"


def text_of(value: float | None, form: str) -> str:
    """Return a number in a format; empty for None."""
    return "" if value is None else format(value, form)


def signed(value: float | None, digits: int = 1) -> str:
    """Return a difference with `digits` decimals and its sign, or no sign for 0; empty for None."""
    text = text_of(value, f"+.{digits}f").replace("-", "−")
    return text if text.strip("+−0.") else text[1:]


def one_line(text: str) -> str:
    """Return a text on a single line."""
    return " ".join(text.split())
