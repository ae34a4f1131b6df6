"""The command line: parses, calls one function, prints. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drop.cli_bench import bench
from lora_drop.cli_experiments import report, reproduce
from lora_drop.errors import UserError
from lora_drop.options import (
    Bootstrap,
    Budget,
    ConfigFiles,
    DataDir,
    Debug,
    Device,
    Force,
    Json,
    Limit,
    Offline,
    Overrides,
    Quiet,
    RunDir,
    Seed,
)
from lora_drop.terminal import tolerate_encodings

if TYPE_CHECKING:
    from lora_drop.config import Config

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing it with rich takes longer than all the rest of `--help`
    context_settings={
        "help_option_names": ["-h", "--help"],
        # else typer imports pydantic only to learn that `lora-drop CMD --help` has no --help before CMD
        "default_map": {"help": False},
        "max_content_width": 120,
    },
)


def _resolve(files: list[str] | None, run_dir: Path | None, overrides: list[str] | None, **flags: Any) -> Config:
    """Configuration files, or else what the run directory holds; then -o, then the flags."""
    from lora_drop.config import load_config

    stored = run_dir / "config.yaml" if run_dir else None
    if not files and stored is not None and stored.is_file():
        files = [str(stored)]
    keys = {
        "data_dir": flags.get("data_dir"),
        "offline": flags.get("offline") or None,
        "device": flags.get("device"),
        "seed": flags.get("seed"),
        "method.budget": flags.get("budget"),
        "score.bootstrap": flags.get("bootstrap"),
        "limit.train": flags.get("limit_train"),
        "limit.eval": flags.get("limit_eval"),
    }
    return load_config(files or [], overrides or [], keys)


def _stage(name: str, help_text: str) -> None:
    """Register the command of one stage; all stages have the same options."""

    def command(
        run_dir: RunDir,
        config: ConfigFiles = None,
        overrides: Overrides = None,
        budget: Budget = None,
        bootstrap: Bootstrap = None,
        data_dir: DataDir = None,
        limit_train: Limit = None,
        limit_eval: Limit = None,
        seed: Seed = None,
        device: Device = None,
        offline: Offline = False,
        force: Force = False,
        quiet: Quiet = False,
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        resolved = _resolve(
            config,
            run_dir,
            overrides,
            budget=budget,
            bootstrap=bootstrap,
            data_dir=data_dir,
            limit_train=limit_train,
            limit_eval=limit_eval,
            seed=seed,
            device=device,
            offline=offline,
        )
        _perform(run_dir, resolved, [name], force, quiet, as_json)

    command.__doc__ = help_text
    app.command(name)(command)


_stage("sample", "Stage 1: draw the stratified sample of the training set.")
_stage("score", "Stage 2: warm a LoRA up, then score the output of each layer.")
_stage("select", "Stage 3: choose the layers that retain their LoRA.")
_stage("train", "Stage 4: train a fresh model under the selection.")


@app.command("eval")
def evaluate(
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", "-d", help="Folder of the run whose adapter is evaluated.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Instead: score this file, one prediction per item (text, JSONL, or E2E's TSV).")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task that --predictions answers.")] = None,
    split: Annotated[
        str | None, typer.Option(help="The split that --predictions answers; empty: the task's first.")
    ] = None,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    data_dir: DataDir = None,
    limit_eval: Limit = None,
    seed: Seed = None,
    device: Device = None,
    offline: Offline = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stage 5: evaluate the trained adapter. Or, with --task and --predictions, score anybody's output without a model."""
    if predictions is not None and task is not None:
        _score_file(task, predictions, split, data_dir, offline, as_json)
        return
    if run_dir is None or predictions is not None or task is not None:
        raise UserError("Give either --run-dir (a trained run) or both --task and --predictions (a file to score).")
    resolved = _resolve(
        config, run_dir, overrides, data_dir=data_dir, limit_eval=limit_eval, seed=seed, device=device, offline=offline
    )
    _perform(run_dir, resolved, ["eval"], force, quiet, as_json)


def _score_file(
    task: str, predictions: Path, split: str | None, data_dir: str | None, offline: bool, as_json: bool
) -> None:
    from lora_drop.console import ConsoleReporter, err, out, print_table
    from lora_drop.evaluation.predictions import score_predictions
    from lora_drop.tasks import get_task
    from lora_drop.tasks.base import Source

    source = Source.resolve(data_dir, offline, report=ConsoleReporter(err))
    scored = score_predictions(get_task(task), predictions, source, split)
    if as_json:
        typer.echo(json.dumps(scored))
        return
    rows = [[name, value, scored["signatures"].get(name, "")] for name, value in scored["metrics"].items()]
    print_table(
        out, ["metric", "value", "protocol"], rows, title=f"{task}, {scored['split']}, {scored['examples']} items"
    )
    for name, reason in scored.get("skipped", {}).items():
        err.print(f"note: {name} was not computed. {reason}", soft_wrap=True)


@app.command()
def run(
    run_dir: RunDir,
    config: ConfigFiles = None,
    overrides: Overrides = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", metavar="METHOD", help="Also train this method, in RUN_DIR/compare/METHOD, and print both."
        ),
    ] = None,
    budget: Budget = None,
    bootstrap: Bootstrap = None,
    data_dir: DataDir = None,
    limit_train: Limit = None,
    limit_eval: Limit = None,
    seed: Seed = None,
    device: Device = None,
    offline: Offline = False,
    force: Force = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """All five stages: sample, score, select, train, eval. What is already done is skipped; what was killed is continued."""
    resolved = _resolve(
        config,
        run_dir,
        overrides,
        budget=budget,
        bootstrap=bootstrap,
        data_dir=data_dir,
        limit_train=limit_train,
        limit_eval=limit_eval,
        seed=seed,
        device=device,
        offline=offline,
    )
    _perform(run_dir, resolved, ["all"], force, quiet, as_json, compare or [])


app.command()(reproduce)
app.command()(report)
app.command()(bench)


@app.command("config")
def show_config(
    config: ConfigFiles = None, overrides: Overrides = None, as_json: Json = False, debug: Debug = False
) -> None:
    """Print every key with its value and what it means."""
    from lora_drop.config import Config, load_config, to_dict
    from lora_drop.console import out
    from lora_drop.strict import flatten

    resolved = to_dict(load_config(config or [], overrides or []))
    if as_json:
        typer.echo(json.dumps(resolved))
        return
    for key, (_, text) in flatten(Config).items():
        value: Any = resolved
        for part in key.split("."):
            value = value[part]
        out.print(key, style="bold", end="")
        out.print(f" = {json.dumps(value, ensure_ascii=False) if value is not None else ''}")
        out.print(f"    {text}")


@app.command()
def tasks(data_dir: DataDir = None, offline: Offline = False, as_json: Json = False, debug: Debug = False) -> None:
    """List the tasks: rows, metric, and where they would be read."""
    from lora_drop.inspection import list_tasks

    _show(list_tasks(data_dir, offline), as_json)


@app.command()
def params(
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone", "-b", help="A Hub id (or id@revision), a folder, packaged:NAME, shape:NAME or tiny:NAME."
        ),
    ] = "packaged:minilm-l6",
    task: Annotated[str, typer.Option("--task", "-t", help="Decides the head.")] = "rte",
    overrides: Overrides = None,
    offline: Offline = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Count every method's trainable parameters, from shapes alone."""
    from lora_drop.config import from_dict, override
    from lora_drop.console import out, print_table
    from lora_drop.inspection import count_methods

    values: dict[str, Any] = {"backbone": backbone, "task": task}
    errors: list[str] = []
    override(values, overrides or [], {"offline": offline or None}, errors)
    counted = count_methods(from_dict(values, errors))
    if as_json:
        typer.echo(json.dumps(counted))
        return
    rows = [
        [name, entry["adapter"], entry["head"], entry.get("note", "")] for name, entry in counted["methods"].items()
    ]
    print_table(out, ["method", "adapter", "head", ""], rows, title=f"Trainable parameters on {counted['backbone']}")


@app.command()
def doctor(data_dir: DataDir = None, offline: Offline = False, as_json: Json = False, debug: Debug = False) -> None:
    """Check versions, devices, data, packaged models and the Hub. Say what to do about each."""
    from lora_drop.inspection import diagnose

    _show(diagnose(data_dir, offline), as_json)


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    from lora_drop.console import out, print_table

    if as_json:
        typer.echo(json.dumps(rows))
    else:
        print_table(out, list(rows[0]), [list(row.values()) for row in rows])


def _perform(
    run_dir: Path,
    config: Config,
    stages: list[str],
    force: bool,
    quiet: bool,
    as_json: bool,
    compare: list[str] | None = None,
) -> None:
    from lora_drop.commands import perform
    from lora_drop.console import ConsoleReporter, err, out, print_profile, print_table

    reporter = ConsoleReporter(err, quiet)
    try:
        summary = perform(run_dir, config, stages, force, reporter, compare or [])
    except KeyboardInterrupt as interrupt:
        reporter.close()
        err.print("Interrupted. The same command continues where it stopped.")
        raise typer.Exit(130) from interrupt
    finally:
        reporter.close()
    if summary.scored and not quiet:
        print_profile(out, summary.scored, summary.selection, summary.stability)
    if summary.results:
        print_table(out, list(summary.results[0]), [list(row.values()) for row in summary.results])
    for remark in summary.remarks:
        reporter.notice(remark)
    if not quiet:
        out.print(f"Files: {run_dir}", soft_wrap=True)
    if as_json:
        last = {"run_dir": str(run_dir), "stages": stages, "results": summary.results, "remarks": summary.remarks}
        typer.echo(json.dumps(last))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: exit code 0 done, 2 a mistake in the input, 1 a failure of ours, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    tolerate_encodings()
    os.environ.pop(
        "MPLBACKEND", None
    )  # a notebook's, perhaps of another installation: figures are only written to files
    try:
        app(args=arguments)
    except UserError as error:
        if "--debug" in arguments:
            raise
        from lora_drop.console import err

        err.print(f"Error: {error}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
