"""The command `bench`: what training, scoring, generating and starting cost on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.options import DataDir, Debug, Device, Json, Offline, Quiet, Seed


def bench(
    task: Annotated[str, typer.Option("--task", "-t", help="Whose rows are trained on.")] = "rte",
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone", "-b", help="Else packaged:minilm-l6, or a decoder. shape:NAME: a model's sizes, no weights."
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,...", help="Of train, score, share, generation, startup, scaling; else all that fit."
        ),
    ] = None,
    seq_lengths: Annotated[
        str, typer.Option("--seq-lengths", help="real: the task's rows; 32,64,128: generated rows of these lengths.")
    ] = "real",
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds in which all is measured once; else 5.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Training rows of a measured call; else 384.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of an optimizer step; else 32.")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=4, help="Longer rows are cut, stock pads to it; else 128 (512 for texts).")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16, for all that is compared.")] = "fp32",
    threads: Annotated[int | None, typer.Option(min=1, help="Of the CPU; else as many as PyTorch takes.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="As small as can be: shows in seconds that it works, measures nothing.")
    ] = False,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("results/bench"),
    data_dir: DataDir = None,
    seed: Seed = None,
    device: Device = None,
    offline: Offline = False,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure speed, side by side with PEFT and Trainer. Interleaved rounds of training, scoring, generating, starting."""
    from lora_drop.bench.settings import settle

    settings = settle(
        task,
        backbone,
        parts,
        seq_lengths,
        rounds,
        rows,
        batch_size,
        max_length,
        quick,
        precision=precision,
        data_dir=data_dir,
        device=device or "auto",
        offline=offline,
        seed=seed or 0,
    )
    result = _perform(settings, folder, threads, quiet)
    _show(result, quiet)
    if as_json:
        typer.echo(json.dumps(result))


def _perform(settings: Any, folder: Path, threads: int | None, quiet: bool) -> dict[str, Any]:
    import torch

    from lora_drop.bench.benchmark import perform
    from lora_drop.commands import quiet_libraries
    from lora_drop.console import ConsoleReporter, err
    from lora_drop.environment import neutral_environment

    quiet_libraries()
    before = torch.get_num_threads()
    reporter = ConsoleReporter(err, quiet)
    try:
        torch.set_num_threads(threads or before)
        with neutral_environment(reporter):
            return perform(settings, folder, reporter)
    except KeyboardInterrupt as interrupt:
        err.print("Interrupted. Nothing was written.")
        raise typer.Exit(130) from interrupt
    finally:
        reporter.close()
        torch.set_num_threads(before)


def _show(result: dict[str, Any], quiet: bool) -> None:
    from lora_drop.bench.tables import machine_line, tables
    from lora_drop.console import out, print_table

    out.print(machine_line(result), soft_wrap=True)
    for table in tables(result):
        print_table(out, table.columns, table.rows, title=table.title or None)
        for note in table.notes:
            out.print(note, soft_wrap=True)
    if not quiet:
        out.print(f"\nFile: {result['file']}", soft_wrap=True)
