"""The commands for many runs: `reproduce`, and `report`, which also makes the page of runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drop.cli.engines import Address, Gpus, Jobs, Shard, engine_of, part_of
from lora_drop.cli.engines import Name as EngineName
from lora_drop.cli.options import flags, options
from lora_drop.errors import UserError
from lora_drop.files import check_writable

if TYPE_CHECKING:
    from lora_drop.experiments.engines.base import Engine
    from lora_drop.experiments.estimate import Estimate
    from lora_drop.experiments.grid import Planned
    from lora_drop.experiments.results import Results
    from lora_drop.experiments.table import Table
    from lora_drop.progress import GridReporter

Names = Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these, separated by commas.")]
Folder = Annotated[Path, typer.Option(help="Folder of the results: EXPERIMENT/BACKBONE/*.json, tables and figures.")]


@options(
    *("config", "overrides", "limit_train", "limit_eval", "data_dir", "device", "offline", "quiet", "as_json", "debug")
)
def reproduce(
    experiment: Annotated[
        str, typer.Argument(help="table1, figure9, ... (all names: lora-drop reproduce list), or a YAML file.")
    ],
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="A model other than the paper's.")] = None,
    tasks: Names = None,
    methods: Names = None,
    seeds: Names = None,
    runs: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("runs/reproduce"),
    results: Folder = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, what is done, and what the rest would cost.")
    ] = False,
    jobs: Jobs = 1,
    shard: Shard = None,
    engine: EngineName = "local",
    address: Address = None,
    gpus_per_run: Gpus = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Also count results of older versions of a stage, task or method.")
    ] = False,
    **given: Any,
) -> None:
    """Perform the runs of a table or figure of the paper, and write it. Finished runs are skipped."""
    from lora_drop.experiments.grid import Choice, expand, load_experiment
    from lora_drop.experiments.results import Results

    if experiment == "list":
        _list(given["as_json"])
        return
    asked = given["config"] or [], given["overrides"] or [], flags(given)
    choice = Choice(
        backbone, _split("--tasks", tasks), _split("--methods", methods), _numbers("--seeds", seeds), *asked
    )
    make = engine_of(engine, runs, jobs, address, gpus_per_run)
    planned, kept = part_of(expand(load_experiment(experiment), choice), shard), Results(results, keep_old)
    kept.check(planned)
    if not dry_run:
        for folder in {kept.path(run).parent for run in planned}:
            check_writable(folder, "--results")
        if engine == "local" and not all(map(kept.has, planned)):  # else no run is made, or none on this machine
            check_writable(runs, "--runs")
    if dry_run:
        _show_plan(planned, kept, jobs, given["as_json"])
    elif not _perform_and_show(planned, runs, kept, make, given["quiet"], given["as_json"]):
        raise typer.Exit(1)


def _list(as_json: bool) -> None:
    from lora_drop.cli.console import out, print_rows
    from lora_drop.experiments.grid import experiment_names, load_experiment

    found = [load_experiment(name) for name in experiment_names()]
    if as_json:
        typer.echo(json.dumps([{"experiment": item.name, "title": item.title} for item in found]))
    else:
        print_rows(out, [{"experiment": item.name, "what": item.title, "runs": item.size} for item in found])


@options("quiet", "as_json", "debug")
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|EXPERIMENT]...",
            help="Run directories, for their page (report.html), or experiments, for their tables; default: all "
            "experiments with results.",
        ),
    ] = None,
    results: Folder = Path("results"),
    figures: Annotated[bool, typer.Option(help="Also draw the figures of experiments.")] = True,
    page: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File of the page; default: in the run's folder, or in the current folder for several runs."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Make the page of one or more runs (report.html), or the tables and figures of experiments from their results."""
    runs = [Path(name) for name in names or [] if _is_run(name)]
    if runs:
        _write_page(runs, names or [], page, given)
    elif wrong := [
        name for name in names or [] if "/" in name or (Path(name).is_dir() and not (results / name).is_dir())
    ]:
        raise UserError(
            f"{wrong[0]} is not a run directory: it has no run.json. (Experiments are named without a path.)"
        )
    elif page is not None:
        raise UserError("--out is for the page of run directories. Name them as well: lora-drop report RUN --out FILE")
    else:
        _write_tables(results, names or [], figures, given)


def _is_run(name: str) -> bool:
    return (Path(name) / "run.json").is_file()


def _write_page(runs: list[Path], names: list[str], page: Path | None, given: dict[str, Any]) -> None:
    from lora_drop.cli.console import out
    from lora_drop.report.page import PAGE, is_page, write_page

    others = [name for name in names if not _is_run(name)]
    if others:
        raise UserError(
            f"{others[0]} is not a run directory (it has no run.json), but the other names are. Name either run "
            "directories or experiments."
        )
    target = page or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    if target not in [run / PAGE for run in runs] and target.is_file() and not is_page(target):
        raise UserError(f"{target} exists and is not a page of lora-drop. Name another file with --out, or remove it.")
    write_page(runs, target)
    if given["as_json"]:
        typer.echo(json.dumps({"page": str(target)}))
    else:
        out.print(f"Page: {target}", soft_wrap=True)


def _write_tables(results: Path, experiments: list[str], figures: bool, given: dict[str, Any]) -> None:
    from lora_drop.cli.console import note, out
    from lora_drop.experiments.report import report as write

    written = write(results, experiments, figures, tell=note)
    if given["as_json"]:
        typer.echo(json.dumps({"folders": [str(folder) for folder in written]}))
        return
    for folder, tables in written.items():
        _show_tables(tables)
        if not given["quiet"]:
            out.print(f"Files: {folder}\n", soft_wrap=True)


def _perform_and_show(
    planned: list[Planned],
    runs: Path,
    results: Results,
    engine: Callable[[GridReporter], Engine],
    quiet: bool,
    as_json: bool,
) -> bool:
    """Perform runs and print their tables; return True if no run is missing."""
    from lora_drop.cli.console import err, note, out
    from lora_drop.cli.grid_progress import ConsoleGridReporter
    from lora_drop.experiments.engine import perform_grid
    from lora_drop.experiments.one_run import run_directory
    from lora_drop.experiments.report import report as write
    from lora_drop.report.page import PAGE, write_page

    with ConsoleGridReporter(err, quiet) as reporter:
        outcome = perform_grid(planned, results, reporter, engine(reporter))
    for name, message in {**outcome.failed, **outcome.busy}.items():
        err.print(f"{'Failed' if name in outcome.failed else 'Missing'}: {name}: {message}", soft_wrap=True)
    for run in planned:
        if run.name in outcome.performed and _is_run(str(run_directory(run, runs))):  # else it is on another machine
            write_page([run_directory(run, runs)], run_directory(run, runs) / PAGE)
    folders = sorted({results.path(run).parent for run in planned})
    present = [folder for folder in folders if any(folder.glob("*.json"))]
    for folder in present:
        (tables,) = write(results.folder, [folder.parent.name], backbones=[folder.name], tell=note).values()
        if not as_json:
            _show_tables(tables)
            out.print(f"Files: {folder}", soft_wrap=True)
    if as_json:
        counts = {"performed": len(outcome.performed), "already": outcome.already, "busy": outcome.busy}
        typer.echo(json.dumps({**counts, "failed": outcome.failed, "folders": [str(folder) for folder in present]}))
    return not (outcome.failed or outcome.busy)


def _show_plan(planned: list[Planned], results: Results, jobs: int, as_json: bool) -> None:
    from lora_drop.cli.console import ConsoleReporter, err, out, print_rows
    from lora_drop.cli.libraries import quiet_libraries
    from lora_drop.experiments.estimate import estimate, on_several_devices
    from lora_drop.training.environment import neutral_environment

    with ConsoleReporter(err) as reporter:
        quiet_libraries(reporter)
        for text in results.notices(planned):
            reporter.notice(text)
        done = {run.name for run in planned if results.has(run)}
        reporter.start("timing")
        with neutral_environment(reporter):
            todo = [run for run in planned if run.name not in done]
            estimates = list(estimate(todo, reporter))
    several = on_several_devices(todo, estimates, jobs)
    if as_json:
        entries = [{"run": run.name, "done": run.name in done} for run in planned]
        costs = {"estimates": [vars(entry) for entry in estimates], "devices": several}
        typer.echo(json.dumps({"runs": entries, **costs}))
        return
    print_rows(out, [{"run": run.name, "state": "done" if run.name in done else "to do"} for run in planned])
    print_rows(out, list(map(_cost, estimates)), title="\nWhat is left, estimated from a few timed steps")
    for reason in filter(None, dict.fromkeys(entry.reason for entry in estimates)):
        rows = dict.fromkeys(entry.row for entry in estimates if entry.reason == reason)
        out.print(f"Not timed ({', '.join(rows)}): {reason}", soft_wrap=True)
    times = [
        {
            "devices": each["devices"],
            "minutes, longest runs first": _over(each["seconds"], 60),
            "in this order": _over(each["in_order"], 60),
        }
        for each in several
    ]
    print_rows(out, times, title="\nOn several devices like this one (--jobs, --shard, --engine ray)")
    minutes = sum(entry.runs * (entry.seconds or 0) for entry in estimates) / 60
    disk = sum(entry.runs * (entry.disk_mb or 0) for entry in estimates)
    unknown = sum(entry.runs for entry in estimates if entry.seconds is None)
    rest = f"; {unknown} runs could not be timed" if unknown else ""
    cost = f"about {minutes:,.0f} minutes here, {disk:,.0f} MB{rest}"
    out.print(f"{len(done)} of {len(planned)} runs are done. The others: {cost}.")


def _cost(entry: Estimate) -> dict[str, Any]:
    minutes, size, peak = _over(entry.seconds, 60), _over(entry.disk_mb, 1), _over(entry.peak_disk_mb, 1)
    cost = {"minutes a run": minutes, "MB a run": size, "MB of checkpoints": peak}
    return {"row": entry.row, "task": entry.task, "runs": entry.runs, **cost}


def _over(value: float | None, unit: float) -> float | None:
    return None if value is None else round(value / unit, 1)


def _show_tables(tables: list[Table]) -> None:
    from lora_drop.cli.console import out, print_table
    from lora_drop.experiments.lines import heads, lines, notes
    from lora_drop.experiments.markdown import agreement

    for table in tables:
        body = [cells for _, cells in lines(table, lambda flags: f" †{flags}" if flags else "")]
        asked = ", ".join(f"{key}={value}" for key, value in table.overrides.items())
        print_table(out, heads(table), body, title=f"\n{table.title} ({table.backbone}{'; ' if asked else ''}{asked})")
        for note in notes(table):
            out.print(note, soft_wrap=True)
        for line in agreement(table):
            out.print(line, soft_wrap=True)


def _split(option: str, text: str | None) -> list[str]:
    parts = [part.strip() for part in (text or "").split(",") if part.strip()]
    if text is not None and not parts:
        raise UserError(
            f"{option} is empty (is a shell variable unset?). Name at least one, or leave the option out for all."
        )
    return parts


def _numbers(option: str, text: str | None) -> list[int]:
    try:
        return [int(part) for part in _split(option, text)]
    except ValueError as error:
        raise UserError(f"--seeds {text}: seeds are whole numbers separated by commas, such as 0,1,2.") from error
