"""The commands over many runs: `reproduce` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.options import ConfigFiles, DataDir, Debug, Device, Json, Limit, Offline, Overrides, Quiet

Names = Annotated[str | None, typer.Option(metavar="A,B,...", help="Only these, separated by commas.")]
Results = Annotated[Path, typer.Option(help="Folder of the results: EXPERIMENT/BACKBONE/*.json, tables and figures.")]


def reproduce(
    experiment: Annotated[
        str, typer.Argument(help="table1, figure9, ... (all names: lora-drop reproduce list), or a YAML file.")
    ],
    backbone: Annotated[str | None, typer.Option("--backbone", "-b", help="Another model than the paper's.")] = None,
    tasks: Names = None,
    methods: Names = None,
    seeds: Names = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    limit_train: Limit = None,
    limit_eval: Limit = None,
    runs: Annotated[Path, typer.Option(help="Folder of the run directories.")] = Path("runs/reproduce"),
    results: Results = Path("results"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, what is done, and what the rest would cost.")
    ] = False,
    data_dir: DataDir = None,
    device: Device = None,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Perform the runs of a table or figure of the paper. What is done is skipped, what was killed is continued, and the result is written."""
    from lora_drop.console import out, print_table
    from lora_drop.experiments.grid import Choice, expand, experiment_names, load_experiment

    if experiment == "list":
        found = [load_experiment(name) for name in experiment_names()]
        if as_json:
            typer.echo(json.dumps([{"experiment": item.name, "title": item.title} for item in found]))
            return
        print_table(
            out,
            ["experiment", "what", "runs"],
            [[item.name, item.title, len(expand(item, Choice()))] for item in found],
        )
        return
    flags = {
        "data_dir": data_dir,
        "device": device,
        "offline": offline or None,
        "limit.train": limit_train,
        "limit.eval": limit_eval,
    }
    choice = Choice(
        backbone=backbone,
        tasks=_split(tasks),
        rows=_split(methods),
        seeds=_numbers(seeds),
        files=config or [],
        overrides=overrides or [],
        flags=flags,
    )
    loaded = load_experiment(experiment)
    planned = expand(loaded, choice)
    if dry_run:
        _show_plan(planned, runs, results, as_json)
        return
    failed = _perform(planned, runs, results, quiet, as_json)
    if failed:
        raise typer.Exit(1)


def report(
    experiments: Annotated[
        list[str] | None, typer.Argument(help="Names of experiments; none: all that have results.")
    ] = None,
    results: Results = Path("results"),
    figures: Annotated[bool, typer.Option(help="Also draw the figures.")] = True,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make tables and figures from the results. Tables are Markdown, CSV and LaTeX; nothing else than the results is read."""
    from lora_drop.console import out
    from lora_drop.experiments.report import report as write

    written = write(results, experiments or [], figures)
    for folder, tables in written.items():
        _show_tables(tables)
        if not quiet:
            out.print(f"Files: {folder}\n", soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({"folders": [str(folder) for folder in written]}))


def _perform(planned: list[Any], runs: Path, results: Path, quiet: bool, as_json: bool) -> dict[str, str]:
    from lora_drop.commands import quiet_libraries
    from lora_drop.console import ConsoleGridReporter, err, out
    from lora_drop.experiments.engine import perform_grid
    from lora_drop.experiments.records import record_path
    from lora_drop.experiments.report import report as write

    quiet_libraries()
    reporter = ConsoleGridReporter(err, quiet)
    try:
        outcome = perform_grid(planned, runs, results, reporter)
    except KeyboardInterrupt as interrupt:
        err.print("Interrupted. The same command continues where it stopped.")
        raise typer.Exit(130) from interrupt
    finally:
        reporter.close()
    if outcome.busy:
        err.print(f"{len(outcome.busy)} runs are being performed by another process.")
    for name, message in outcome.failed.items():
        err.print(f"Failed: {name}: {message}", soft_wrap=True)
    folders = sorted({record_path(results, run).parent for run in planned})
    present = [folder for folder in folders if any(folder.glob("*.json"))]
    for folder in present:
        (tables,) = write(results, [folder.parent.name], backbones=[folder.name]).values()
        _show_tables(tables)
        out.print(f"Files: {folder}", soft_wrap=True)
    if as_json:
        counts = {"performed": len(outcome.performed), "already": outcome.already, "busy": len(outcome.busy)}
        typer.echo(json.dumps({**counts, "failed": outcome.failed, "folders": [str(folder) for folder in present]}))
    return outcome.failed


def _show_plan(planned: list[Any], runs: Path, results: Path, as_json: bool) -> None:
    from lora_drop.commands import quiet_libraries
    from lora_drop.console import ConsoleGridReporter, err, out, print_table
    from lora_drop.environment import neutral_environment
    from lora_drop.experiments.estimate import estimate
    from lora_drop.experiments.records import is_done

    quiet_libraries()
    done = {run.name for run in planned if is_done(results, run)}
    reporter = ConsoleGridReporter(err)
    reporter.start("timing")
    try:
        with neutral_environment(reporter):
            estimates = list(estimate([run for run in planned if run.name not in done], reporter.advance))
    finally:
        reporter.close()
    if as_json:
        entries = [{"run": run.name, "done": run.name in done} for run in planned]
        typer.echo(json.dumps({"runs": entries, "estimates": [vars(entry) for entry in estimates]}))
        return
    print_table(out, ["run", "state"], [[run.name, "done" if run.name in done else "to do"] for run in planned])
    names = ["row", "task", "runs", "minutes a run", "MB a run", "MB of checkpoints", ""]
    rows = [
        [e.row, e.task, e.runs, _over(e.seconds, 60), _over(e.disk_mb, 1), _over(e.peak_disk_mb, 1), e.reason]
        for e in estimates
    ]
    if rows:
        print_table(out, names, rows, title="\nWhat is left, from a few timed steps")
    known = [entry for entry in estimates if entry.seconds is not None]
    minutes = sum(entry.runs * (entry.seconds or 0) for entry in known) / 60
    disk = sum(entry.runs * (entry.disk_mb or 0) for entry in known)
    unknown = sum(entry.runs for entry in estimates) - sum(entry.runs for entry in known)
    rest = f"; {unknown} runs could not be timed" if unknown else ""
    out.print(
        f"{len(done)} of {len(planned)} runs are done. The others: about {minutes:,.0f} minutes here, {disk:,.0f} MB{rest}."
    )


def _over(value: float | None, unit: float) -> Any:
    return "" if value is None else round(value / unit, 1)


def _show_tables(tables: list[Any]) -> None:
    from lora_drop.console import out, print_table
    from lora_drop.experiments.render import agreement, heads, lines, notes

    for table in tables:
        body = [cells for _, cells in lines(table, lambda flags: f" †{flags}" if flags else "")]
        asked = ", ".join(f"{key}={value}" for key, value in table.overrides.items())
        print_table(out, heads(table), body, title=f"\n{table.title} ({table.backbone}{'; ' if asked else ''}{asked})")
        for note in notes(table):
            out.print(note, soft_wrap=True)
        for line in agreement(table):
            out.print(line, soft_wrap=True)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _numbers(text: str | None) -> list[int]:
    from lora_drop.errors import UserError

    try:
        return [int(part) for part in _split(text)]
    except ValueError as error:
        raise UserError(f"--seeds {text}: seeds are whole numbers separated by commas, such as 0,1,2.") from error
