"""The commands that perform stages: one for each stage, and `run` for all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_drop.cli.options import RunDir, configuration, is_set, options, own_run_dir
from lora_drop.cli.own import OWN_DATA
from lora_drop.errors import UserError
from lora_drop.registry import TASKS
from lora_drop.runs.stages import STAGES

if TYPE_CHECKING:
    from lora_drop.config.schema import Config

COMMON = ("quiet", "as_json", "debug")
WHERE = ("seed", "device", "offline", "force", *COMMON)
LIMITS = ("limit_train", "limit_eval")
RUN = ("config", "overrides", "backbone", *OWN_DATA, "budget", "bootstrap", "data_dir", *LIMITS, *WHERE)


def _stage(name: str, help_text: str) -> Callable[..., None]:
    """Return the command of a stage that has only the options of a run."""

    @options(*RUN)
    def command(run_dir: RunDir, **given: Any) -> None:
        _perform_and_print(run_dir, [name], given)

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
        _perform_and_print(run_dir, ["score"], given)
        return
    from lora_drop.cli.adapter import named

    _perform_and_print(run_dir, ["sample", "score"], named(adapter, task, given, run_dir))


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
        _perform_and_print(run_dir, ["eval"], {**given, "overrides": [*(given["overrides"] or []), *named]})


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
    _perform_and_print(run_dir or own_run_dir(given), ["all"], given, compare or [])


_WITH_OPTIONS_OF_THEIR_OWN: dict[str, Callable[..., None]] = {"score": score, "eval": evaluate}
STAGE_COMMANDS = {
    stage.name: _WITH_OPTIONS_OF_THEIR_OWN.get(stage.name) or _stage(stage.name, stage.help)
    for stage in STAGES
    if stage.command
}
"""The command of each stage that has one, by its name."""


def _perform_and_print(
    run_dir: Path, stages: list[str], given: dict[str, Any], compare: list[str] | None = None
) -> None:
    from lora_drop.cli.console import ConsoleReporter, err, out, print_agreement, print_profile, print_rows
    from lora_drop.cli.perform import perform_stages

    config = configuration(given, run_dir)
    with ConsoleReporter(err, given["quiet"]) as reporter:
        summary = perform_stages(
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
