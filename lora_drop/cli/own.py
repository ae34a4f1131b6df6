"""The commands for the user's own data: predictions for new rows, and a look at a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.cli.options import configuration, options

OWN_DATA = ("data", "text", "label", "kind", "validation", "metric", "template", "dataset_info", "name")


@options("offline", "device", "quiet", "as_json", "debug")
def predict(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run that was trained on your own data.")],
    data: Annotated[str, typer.Option("--data", metavar="PATH", help="New rows: a file, a folder, or org/name (Hub).")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            metavar="FILE",
            help="File for the predictions: csv, tsv or jsonl; default: predictions-NAME in RUN, in the format of the "
            "data.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a folder or of the Hub.")] = "test",
    **given: Any,
) -> None:
    """Write a trained run's predictions beside the columns of new rows, and print metrics if the rows have labels."""
    from lora_drop.cli.console import ConsoleReporter, err, out, print_rows
    from lora_drop.cli.libraries import quiet_libraries
    from lora_drop.runs.predict import predict as write_predictions
    from lora_drop.tasks.base import Source

    with ConsoleReporter(err, given["quiet"]) as reporter:
        quiet_libraries(reporter)
        source = Source(None, given["offline"], report=reporter)
        done = write_predictions(run_dir, data, to, source, reporter, given["device"] or "auto", split)
    compared = {"compared": done.compared} if 0 < done.compared < done.rows else {}
    row = {"predictions": str(done.path), "rows": done.rows, **compared, **done.metrics}
    if given["as_json"]:
        typer.echo(json.dumps(row))
    else:
        print_rows(out, [row])


def show_data(given: dict[str, Any]) -> None:
    """Print what is found in the data that options name."""
    from lora_drop.cli.console import ConsoleReporter, err, out, print_rows
    from lora_drop.cli.libraries import quiet_libraries
    from lora_drop.cli.own_data import as_rows, inspect
    from lora_drop.tasks.base import Source

    class Looking(ConsoleReporter):
        def notice(self, text: str) -> None:
            """Drop the notice: the table shows the same."""

    config = configuration(given)
    with Looking(err) as reporter:
        quiet_libraries(reporter)
        reporter.doing(f"reading {config.data.path or config.data.name}")
        found = inspect(config, Source(None, config.offline, report=reporter), bool(given["backbone"]))
    if given["as_json"]:
        typer.echo(json.dumps(found))
        return
    print_rows(out, as_rows(found))
    out.print(f"\n{found['yaml']}", end="", soft_wrap=True)
