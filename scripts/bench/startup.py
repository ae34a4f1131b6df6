"""Part `startup`: how long the command line takes to say what it can do, against what its own foundations take to be imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from bench.rounds import interleave, timed
from bench.statistics import ratios, spread

COMMANDS = {
    "imports": ("-c", "import typer, rich, yaml"),
    "help": ("-m", "lora_drop.cli.app", "--help"),
}


def measure_startup(rounds: int, tell: Callable[[int], None]) -> dict[str, Any]:
    """Measure both as processes of their own."""
    measured = interleave(
        {name: timed(_process(arguments), torch.device("cpu")) for name, arguments in COMMANDS.items()}, rounds, tell
    )
    return {
        "help_seconds": asdict(spread(measured.seconds("help"))),
        "ratio": asdict(ratios(measured.seconds("help"), measured.seconds("imports"))),
        "rounds": measured.to_json(),
    }


def _process(arguments: Sequence[str]) -> Callable[[], Callable[[], object]]:
    command = [sys.executable, *arguments]
    return lambda: lambda: subprocess.run(command, capture_output=True, check=True)
