"""The command line: parse, call one function, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from lora_drop import processes
from lora_drop.cli.experiments import report, reproduce
from lora_drop.cli.export import export
from lora_drop.cli.options import Backbone, RunDir, configuration, flags, is_set, options, own_run_dir
from lora_drop.cli.own import OWN_DATA, predict, show_data
from lora_drop.cli.runs import runs
from lora_drop.cli.terminal import forsake, tolerate_encodings
from lora_drop.errors import UserError
from lora_drop.faults import as_sentences
from lora_drop.interruption import end_at_once, ends_at_once, stoppable
from lora_drop.registry import TASKS
from lora_drop.runs.stages import STAGES

if TYPE_CHECKING:
    from lora_drop.config.schema import Config

app = typer.Typer(
    help="Find the layers that a task needs, and fine-tune with fewer parameters than LoRA (LoRA-drop, arXiv "
    "2402.07721). Options before the command: --version, or --plugin FILE (a Python file with your own tasks, "
    "methods or figures).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: drawing it with rich takes longer than the rest of `--help`
    context_settings={
        "help_option_names": ["-h", "--help"],
        # without these, typer imports pydantic only to find none of them before CMD in `lora-drop CMD --help`
        "default_map": {"help": False, "install_completion": False, "show_completion": False},
        "max_content_width": 120,
    },
)
COMMON = ("quiet", "as_json", "debug")
WHERE = ("seed", "device", "offline", "force", *COMMON)
LIMITS = ("limit_train", "limit_eval")
RUN = ("config", "overrides", "backbone", *OWN_DATA, "budget", "bootstrap", "data_dir", *LIMITS, *WHERE)


def _stage(name: str, help_text: str) -> Callable[..., None]:
    """Return the command of a stage that has only the options of a run."""

    @options(*RUN)
    def command(run_dir: RunDir, **given: Any) -> None:
        _perform(run_dir, [name], given)

    command.__doc__ = help_text
    return command


@options("criterion", *RUN)
def score(
    run_dir: RunDir,
    adapter: Annotated[
        str | None,
        typer.Option(help="Score this LoRA, trained elsewhere (a PEFT adapter's folder), instead of a warm-up."),
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="The task on whose rows --adapter is scored.")
    ] = None,
    **given: Any,
) -> None:
    """Stage 2: warm up a LoRA, then score each layer by its output or by other criteria."""
    if adapter is None and task is not None:
        raise UserError("--task is only for --adapter. Without --adapter, set it in the configuration: -o task=NAME")
    if adapter is None:
        _perform(run_dir, ["score"], given)
        return
    from lora_drop.cli.adapter import named

    _perform(run_dir, ["sample", "score"], named(adapter, task, given, run_dir))


@options("config", "overrides", "data_dir", "limit_eval", *WHERE)
def evaluate(
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", "-d", help="Folder of the run whose adapter is evaluated.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file instead: one prediction per item (text, JSONL, or E2E's TSV).")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", "-t", help="The task that --predictions are for.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="The split to evaluate, or that --predictions are for; default: the task's first."),
    ] = None,
    **given: Any,
) -> None:
    """Stage 5: evaluate the trained adapter, or score any system's output with --task and --predictions."""
    if predictions is not None and task is not None:
        if any(given[name] for name in ("config", "overrides", "limit_eval")):
            raise UserError(
                "-c, -o and --limit-eval are for a run; --predictions are scored as they are. Leave them out."
            )
        _score_file(task, predictions, split, given)
    elif run_dir is None or predictions is not None or task is not None:
        raise UserError("Give either --run-dir (a trained run) or both --task and --predictions (a file to score).")
    else:
        named = [f"eval.split={split}"] if split is not None else []
        _perform(run_dir, ["eval"], {**given, "overrides": [*(given["overrides"] or []), *named]})


_WITH_OPTIONS_OF_THEIR_OWN: dict[str, Callable[..., None]] = {"score": score, "eval": evaluate}
for stage in STAGES:
    if stage.command:
        app.command(stage.name)(_WITH_OPTIONS_OF_THEIR_OWN.get(stage.name) or _stage(stage.name, stage.help))


def _score_file(task: str, predictions: Path, split: str | None, given: dict[str, Any]) -> None:
    from lora_drop.cli.console import ConsoleReporter, err, note, out, print_table
    from lora_drop.evaluation.predictions import score_predictions
    from lora_drop.tasks.base import Source

    source = Source.resolve(given["data_dir"], given["offline"], report=ConsoleReporter(err))
    scored = score_predictions(TASKS.get(task), predictions, source, split)
    if given["as_json"]:
        typer.echo(json.dumps(scored))
        return
    rows = [[name, value, scored["signatures"].get(name, "")] for name, value in scored["metrics"].items()]
    title = f"{task}, {scored['split']}, {scored['examples']} items"
    print_table(out, ["metric", "value", "protocol"], rows, title)
    for name, reason in scored.get("skipped", {}).items():
        note(f"{name} was not computed. {reason}")


@app.command()
@options("criterion", *RUN)
def run(
    run_dir: Annotated[
        Path | None,
        typer.Option(
            "--run-dir", "-d", help="Folder of the run (artefacts, checkpoints); default with --data: runs/NAME."
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare", metavar="METHOD", help="Also train this method, in RUN_DIR/compare/METHOD, and print both."
        ),
    ] = None,
    **given: Any,
) -> None:
    """Run all five stages: sample, score, select, train, eval. Finished stages are skipped, killed ones continued."""
    if run_dir is None and not (given["data"] or given["name"]):
        raise UserError("Name the folder of the run with --run-dir DIR.")
    _perform(run_dir or own_run_dir(given), ["all"], given, compare or [])


app.command()(predict)
app.command()(reproduce)
app.command()(report)
app.command()(export)
app.command()(runs)


@app.command("config")
@options("config", "overrides", "as_json", "debug")
def show_config(
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of a configuration file instead.")
    ] = False,
    **given: Any,
) -> None:
    """Print the configuration as YAML, with the meaning of every key, to read or to save and run."""
    if schema:
        from lora_drop.config.json_schema import schema as json_schema

        typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))
        return
    from lora_drop.cli.console import out
    from lora_drop.config.explained import explained
    from lora_drop.config.identity import to_dict

    resolved = configuration(given)
    if given["as_json"]:
        typer.echo(json.dumps(to_dict(resolved)))
    else:
        out.print(explained(resolved), end="", soft_wrap=True)


@app.command()
@options("config", "overrides", "backbone", *OWN_DATA[1:], "data_dir", "offline", "as_json", "debug")
def tasks(
    inspect: Annotated[
        str | None, typer.Option("--inspect", metavar="PATH", help="Inspect your own data instead (as in run --data).")
    ] = None,
    **given: Any,
) -> None:
    """List the tasks with their rows, metric and the place they would be read from, or look at your own data."""
    from lora_drop.cli.inspection import list_tasks

    if inspect is not None or given["dataset_info"]:
        show_data({**given, "data": inspect})
        return
    about_own = [name for name in ("config", "overrides", "backbone", *OWN_DATA[1:]) if given[name] is not None]
    if about_own:
        option = "-o" if about_own[0] == "overrides" else f"--{about_own[0]}"
        raise UserError(f"{option} is for your own data: name them with --inspect PATH.")
    _show(list_tasks(given["data_dir"], given["offline"]), given["as_json"])


@app.command()
@options("overrides", "offline", "as_json", "debug")
def params(
    backbone: Backbone = "packaged:minilm-l6",
    task: Annotated[str, typer.Option("--task", "-t", help="The task, which determines the head.")] = "rte",
    **given: Any,
) -> None:
    """Count every method's trainable parameters from shapes alone."""
    from lora_drop.cli.console import out, print_table
    from lora_drop.cli.inspection import count_methods
    from lora_drop.config.loading import from_dict, override

    values: dict[str, Any] = {"backbone": backbone, "task": task}
    errors: list[str] = []
    override(values, given["overrides"] or [], flags(given), errors)
    counted = count_methods(from_dict(values, errors))
    if given["as_json"]:
        typer.echo(json.dumps(counted))
        return
    rows = [[name, each["adapter"], each["head"], each.get("note", "")] for name, each in counted["methods"].items()]
    print_table(out, ["method", "adapter", "head", ""], rows, title=f"Trainable parameters on {counted['backbone']}")


@app.command()
@options("data_dir", "offline", "as_json", "debug")
def doctor(**given: Any) -> None:
    """Check versions, devices, data, packaged models and the Hub, and suggest a remedy for each problem."""
    from lora_drop.cli.inspection import diagnose

    _show(diagnose(given["data_dir"], given["offline"]), given["as_json"])


def _show(rows: list[dict[str, Any]], as_json: bool) -> None:
    from lora_drop.cli.console import out, print_rows

    if as_json:
        typer.echo(json.dumps(rows))
    else:
        print_rows(out, rows)


def _perform(run_dir: Path, stages: list[str], given: dict[str, Any], compare: list[str] | None = None) -> None:
    from lora_drop.cli.console import ConsoleReporter, err, out, print_agreement, print_profile, print_rows
    from lora_drop.cli.perform import perform

    config = configuration(given, run_dir)
    with ConsoleReporter(err, given["quiet"]) as reporter:
        summary = perform(
            run_dir, config, stages, given["force"], reporter, compare or [], _unasked(config, given, run_dir)
        )
    for remark in summary.remarks:
        reporter.notice(remark)
    if given["as_json"]:
        typer.echo(json.dumps({"run_dir": str(run_dir), "stages": stages, **summary.to_json()}))
        return
    if summary.scored and not given["quiet"]:
        print_profile(out, summary.scored, summary.selection, summary.stability)
    if summary.agreement and not given["quiet"]:
        print_agreement(out, summary.agreement)
    print_rows(out, [_shown(result) for result in summary.results])
    if not given["quiet"]:
        out.print(f"Files: {run_dir}", soft_wrap=True)


def _unasked(config: Config, given: dict[str, Any], run_dir: Path) -> str:
    """Return a notice if no task or data is named, so that the generated task is trained; else an empty string."""
    stored = not given["config"] and (run_dir / "config.yaml").exists()
    if is_set("task", given) or stored or config.task != type(config).task:
        return ""
    return f"no task or data is given (-c, --data): training on the generated task {config.task}"


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as a row of the printed table."""
    limited = ", ".join(f"{rows} {part} rows" for part, rows in result["limited"].items())
    line = {key: value for key, value in result.items() if key not in ("epoch", "select_epoch", "limited")}
    return {**line, "epoch": f"{result['epoch']:g} ({result['select_epoch']})", "limited": limited or "no"}


def _leading(arguments: list[str]) -> list[str]:
    """Handle the options before the command, and return the remaining arguments.

    Typer's own options there would import pydantic, which takes longer than the whole of `--help`.
    """
    if arguments[:1] == ["--version"]:
        from lora_drop import __version__

        typer.echo(f"lora-drop {__version__}")
        sys.exit(0)
    option, joined, path = arguments[0].partition("=") if arguments else ("", "", "")
    if option != "--plugin":
        return arguments
    rest = arguments[1:] if joined else arguments[2:]
    path = path if joined else "".join(arguments[1:2])
    if not path:
        raise UserError("--plugin needs the path of a Python file.")
    from lora_drop.plugins import load_plugin

    load_plugin(path)
    return _leading(rest)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line with `arguments`, by default those of this process."""
    if arguments is None:
        end_at_once()
    given = sys.argv[1:] if arguments is None else arguments
    execute(lambda given: app(args=_for_all(_leading(given))), given, processes.together())


def _for_all(arguments: list[str]) -> list[str]:
    """Return the arguments. Raises UserError if several processes were started for a command that each would repeat."""
    several = ("run", *(stage.name for stage in STAGES))
    if processes.size() > 1 and arguments[:1] and arguments[0] not in several:
        processes.refuse()
    return arguments


def execute(
    command: Callable[[list[str]], object], arguments: list[str], launch: AbstractContextManager[None] | None = None
) -> None:
    """Run a command line. The exit code is 0 if done, 2 for a mistake in the input, 1 for an internal failure.

    It is 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, and 1 if the reader of standard output has gone
    (`| head -1`). `launch` is a context in which the command runs (`processes.together`).
    """
    tolerate_encodings()
    # it may come from a notebook, perhaps of another installation; figures are only written to files
    os.environ.pop("MPLBACKEND", None)
    try:
        with launch or nullcontext(), nullcontext() if ends_at_once() else stoppable(), as_sentences(""):
            if not {"-h", "--help", "--version"}.intersection(arguments):
                _check_endpoint()
            command(arguments)
    except BrokenPipeError:  # outside of a command; typer ends a command in the same way
        forsake()
        sys.exit(1)
    except UserError as error:
        if "--debug" in arguments:
            raise
        from lora_drop.cli.console import err

        err.print(f"Error: {error}", soft_wrap=True)
        sys.exit(2)


def _check_endpoint() -> None:
    """Raise UserError for an HF_ENDPOINT whose port is no number: datasets cannot be imported with it."""
    endpoint = os.environ.get("HF_ENDPOINT", "")
    try:
        urlsplit(endpoint).port  # noqa: B018 - read to be checked
    except ValueError as error:
        raise UserError(
            f"HF_ENDPOINT={endpoint} is not a valid address ({error}). Unset it, or set it to https://huggingface.co"
        ) from error


if __name__ == "__main__":
    main()
