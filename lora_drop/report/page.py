"""Render runs into one self-contained HTML file: it loads no script, font or image."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lora_drop.config.identity import as_yaml, criterion_of
from lora_drop.errors import UserError
from lora_drop.files import write_text
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.report.charts import line_chart, pareto
from lora_drop.report.criteria import side_by_side, title_of
from lora_drop.report.snippets import at_threshold, snippets
from lora_drop.report.thresholds import slider
from lora_drop.runs import words
from lora_drop.runs.facts import Facts, read_facts, with_compared

PAGE = "report.html"


def write_page(folders: Sequence[Path], target: Path) -> None:
    """Write the page of run directories, including those that `run --compare` made inside them.

    Args:
        folders: One or more run directories.
        target: The file to write.

    Raises:
        UserError: If a folder is not a run, one of its files is damaged, or the page cannot be written.
    """
    runs = [run for folder in folders for run in with_compared(read_facts(folder))]
    try:
        write_text(target, render(list({run.path.resolve(): run for run in runs}.values())))
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror}). Name another file with --out.") from error


def is_page(path: Path) -> bool:
    """Return True for a file that `write_page` wrote."""
    return b"Made by lora-drop" in path.read_bytes()


def render(runs: Sequence[Facts]) -> str:
    """Return the page of the runs. The output is deterministic."""
    return _template().render(topics=_topics(runs), words=words, css=_read("page.css"), script=_read("page.js"))


def _topics(runs: Sequence[Facts]) -> list[dict[str, Any]]:
    """Return the content for each task and backbone. Own data with other rows count as another task."""
    topics: list[list[Facts]] = []
    for run in runs:
        mine = next((topic for topic in topics if all(_alike(run, other) for other in topic)), None)
        if mine is None:
            topics.append([run])
        else:
            mine.append(run)
    found = []
    for mine in topics:
        rows, repeated = words.compared(mine), words.repetitions(mine)
        found.append(
            {
                "task": _name(mine[0], [topic[0] for topic in topics]),
                "backbone": mine[0].backbone,
                "runs": mine,
                "verdict": words.verdict(rows),
                "rows": rows,
                "pareto": pareto(rows) if len(rows) > 1 else "",
                "profiles": [_profile(run) for run in mine if run.selection is not None and run.scored],
                "doubts": [
                    *((run, doubt) for run in mine for doubt in words.doubted(run)),
                    *((run, _repeats(repeated[run.path])) for run in mine if run.path in repeated),
                ],
                "curves": [(run, _curves(run)) for run in mine],
            }
        )
    return found


def _repeats(other: Facts) -> str:
    return f"it has the configuration and the seed of {other.path}, so only the latter is counted"


def _alike(one: Facts, other: Facts) -> bool:
    return (one.subject, one.backbone) == (other.subject, other.backbone) and not one.of_other_rows(other)


def _name(run: Facts, others: Sequence[Facts]) -> str:
    """Return the name of a run's task.

    Own data with the same name but other rows are told apart by their path, or by path and content if that is the same.
    """
    namesakes = [other for other in others if other.subject == run.subject and other.of_other_rows(run)]
    if not namesakes:
        return run.subject
    place = run.data_path
    if all(other.data_path != place for other in namesakes):
        return place
    return f"{place} ({', '.join(f'{split} {content[:8]}' for split, content in run.contents.items())})"


def _profile(run: Facts) -> dict[str, Any]:
    """Return the content for a selection: its cells by layer and projection, and the data of the slider."""
    selection = run.selection
    assert selection is not None
    intervals = {(row["projection"], row["layer"]): row for row in run.stability.get("modules", [])}
    cells = {(row.projection, row.layer): row for row in run.scored}
    widest = max(row.importance for row in run.scored)
    names = list(dict.fromkeys(row.projection for row in run.scored))
    table = [
        (layer, [(name, cells.get((name, layer)), intervals.get((name, layer))) for name in names])
        for layer in sorted({row.layer for row in run.scored})
    ]
    data, criterion = slider(run), criterion_of(run.config)
    return {
        "run": run,
        "answer": words.answer(run),
        "selection": selection,
        "whole": data["whole"],
        "layers": [(name, selection.projections[name]) for name in names],
        "table": table,
        "widest": widest,
        "resamples": run.stability.get("resamples", 0),
        "slider": data,
        "criterion": criterion,
        "measured": "‖ΔW·x‖²" if criterion == PAPER else title_of(criterion),
        "snippets": snippets(run),
        "command": at_threshold(run),
        "criteria": side_by_side(run),
        "saves": f"{1 - selection.trainable_parameters / data['whole']:.0%}",
    }


def _curves(run: Facts) -> list[tuple[str, Any]]:
    """Return titles and charts of the losses and metrics of a run, as far as it has them."""
    charts = []
    if run.warmup_losses:
        points = [(float(step), loss) for step, loss in enumerate(run.warmup_losses, 1)]
        told = f"loss of the warm-up, {points[0][1]:.3f} at the first and {points[-1][1]:.3f} at the last step"
        charts.append(("warm-up", line_chart(points, f"step of {len(points):,}", "loss", told)))
    for key, title in (("loss", "training"), (run.primary, "evaluation after each epoch")):
        points = [(epoch["epoch"], epoch[key]) for epoch in run.epochs if key in epoch]
        if len(points) > 1:
            told = f"{key} from {points[0][1]:.3f} after the first epoch to {points[-1][1]:.3f} after the last"
            charts.append((title, line_chart(points, "epoch", key, told)))
    return charts


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("lora_drop.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["yaml"] = as_yaml
    return environment.get_template("page.html.j2")


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
