"""The command line: parse, call one function, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from lora_drop import processes
from lora_drop.cli.experiments import report, reproduce
from lora_drop.cli.export import export
from lora_drop.cli.options import Backbone, configuration, flags, options
from lora_drop.cli.own import OWN_DATA, predict, show_data
from lora_drop.cli.runs import runs
from lora_drop.cli.stages import STAGE_COMMANDS, run
from lora_drop.cli.terminal import forsake, tolerate_encodings
from lora_drop.errors import UserError
from lora_drop.faults import as_sentences
from lora_drop.interruption import end_at_once, ends_at_once, stoppable
from lora_drop.runs.stages import STAGES

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

for name, command in STAGE_COMMANDS.items():
    app.command(name)(command)
app.command()(run)
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

        typer.echo(json.dumps(json_schema(), indent=None if given["as_json"] else 2, ensure_ascii=False))
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
