"""The options of `reproduce` that decide where the runs of a grid are performed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_drop.errors import UserError

if TYPE_CHECKING:
    from lora_drop.experiments.engines.base import Engine
    from lora_drop.experiments.grid import Planned
    from lora_drop.progress import GridReporter

Jobs = Annotated[
    int,
    typer.Option("--jobs", "-j", min=1, help="Perform this many runs at a time: one per GPU, or sharing the CPU."),
]
Shard = Annotated[
    str | None, typer.Option(metavar="I/N", help="Perform only part I of N of the runs, as one task of a job array.")
]
Name = Annotated[
    str, typer.Option(metavar="local|ray", help="Where to perform the runs: on this machine, or on a Ray cluster.")
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address of the Ray cluster: HOST:PORT, or auto; default: $RAY_ADDRESS, else a new cluster on this machine."
    ),
]
Gpus = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs per run on Ray, possibly a fraction; default: 1 if the cluster has any."),
]


def part_of(planned: list[Planned], shard: str | None) -> list[Planned]:
    """Return every N-th run from the I-th on, for a shard `I/N`; all runs without one."""
    if shard is None:
        return planned
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard, re.ASCII)
    part, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= part <= parts:
        raise UserError(f"--shard {shard}: give a part and the number of parts, such as 1/8, 2/8, ... 8/8.")
    return planned[part - 1 :: parts]


def engine_of(
    name: str, runs: Path, jobs: int, address: str | None, gpus_per_run: float | None
) -> Callable[[GridReporter], Engine]:
    """Return a function that makes the engine asked for. Raises UserError for options of another engine."""
    if name not in ("local", "ray"):
        raise UserError(f"--engine {name}: must be local or ray.")
    if name == "ray" and jobs != 1:
        raise UserError(
            "--jobs is for --engine local. With --engine ray, the cluster determines how many runs it has room for. "
            "Leave --jobs out."
        )
    if name == "local" and (address is not None or gpus_per_run is not None):
        raise UserError("--address and --gpus-per-run are only for --engine ray. Add --engine ray, or leave them out.")

    def make(report: GridReporter) -> Engine:
        from lora_drop.cli.libraries import quiet_libraries
        from lora_drop.experiments.engines.local import InProcess, Processes

        quiet_libraries(report)
        if name == "ray":
            from lora_drop.experiments.engines.ray import RayCluster

            return RayCluster(runs, address, gpus_per_run, quiet_libraries, report)
        return InProcess(runs) if jobs == 1 else Processes(jobs, runs, quiet_libraries)

    return make
