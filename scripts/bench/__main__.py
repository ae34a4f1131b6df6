"""`make bench`: the speed of training and scoring on this machine beside PEFT and Trainer, and of the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from lora_drop.cli.app import execute
from lora_drop.cli.options import DataDir, Debug, Offline, Quiet


def bench(
    device: Annotated[str, typer.Option(help="cpu or cuda: each has claims of its own.")] = "cpu",
    base_size: Annotated[
        str,
        typer.Option(metavar="NAME", help="The base-size encoder: a backbone or a folder; else packaged:mpnet-base."),
    ] = "",
    only: Annotated[
        str, typer.Option(metavar="A,B,...", help="Of small, base, score, commands (cpu), roberta, llama, nf4 (cuda).")
    ] = "",
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds; else 5, or on a slow machine as many as fit into a quarter of an hour."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=8, help="Training rows of a measured call; else 256.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny models, generated rows: shows that it works, measures nothing.")
    ] = False,
    folder: Annotated[Path, typer.Option("--out", help="Folder of the results.")] = Path("results/bench"),
    data_dir: DataDir = None,
    offline: Offline = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure every claim of speed in interleaved rounds, beside PEFT and Trainer; print floor, aim and result."""
    from bench.parts import perform
    from bench.subject import Settings
    from lora_drop.cli.console import ConsoleReporter, err
    from lora_drop.cli.libraries import quiet_libraries
    from lora_drop.training.environment import neutral_environment

    base_size = base_size or ("tiny:roberta" if quick else "packaged:mpnet-base")
    settings = Settings(
        device=device,
        base_size=base_size,
        rows=rows or (16 if quick else 256),
        rounds=rounds or (1 if quick else 5),
        limited=rounds is None,
        quick=quick,
        data_dir=data_dir,
        offline=offline,
    )
    asked = [name.strip() for name in only.split(",") if name.strip()]
    quiet_libraries()
    reporter = ConsoleReporter(err, quiet)
    try:
        with neutral_environment(reporter):
            result = perform(settings, asked, folder, reporter)
    except KeyboardInterrupt as interrupt:
        err.print("Interrupted. Nothing was written.")
        raise typer.Exit(130) from interrupt
    finally:
        reporter.close()
    _show(result)


def _show(result: dict[str, Any]) -> None:
    from bench.machine import title
    from bench.table import printed
    from lora_drop.cli.console import out, print_table

    machine, settings = result["machine"], result["settings"]
    libraries = ", ".join(f"{name} {machine['versions'][name]}" for name in ("torch", "transformers", "peft"))
    out.print(f"{title(machine)} ({' '.join(machine['instructions'])}); {libraries}", soft_wrap=True)
    quick = "; QUICK: these numbers measure nothing" if settings["quick"] else ""
    parts = result["parts"].items()
    rounds = ", ".join(f"{name} {len(part['rounds']['load'])}" for name, part in parts if "rounds" in part)
    out.print(f"Medians (with quartiles) of rounds ({rounds}); A / B: how many times as fast A is{quick}")
    print_table(out, ["claim", "floor", "aim", "measured", ""], [printed(row) for row in result["claims"]])
    for name, part in parts:
        rounds = part.get("rounds", {"noisy_rounds": [], "load": []})
        if rounds["noisy_rounds"]:
            out.print(
                f"note: {name}: others kept cores busy in {len(rounds['noisy_rounds'])} of {len(rounds['load'])} rounds"
            )
        for variant, computed in part.get("computed", {}).items():
            slower = not computed.startswith("packed") or "not recorded" in computed
            if slower and not variant.startswith(("stock", "grouped")):
                out.print(f"note: {name}, {variant}: {computed}", soft_wrap=True)
    out.print(f"\nFile: {result['file']}", soft_wrap=True)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line of the benchmark."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(bench)
    execute(lambda given: app(args=given), sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
