"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFiles = Annotated[
    list[str] | None, typer.Option("--config", "-c", help="YAML file, or packaged name (glue/rte); later ones win.")
]
RunDir = Annotated[Path, typer.Option("--run-dir", "-d", help="Folder of the run: artefacts, checkpoints, manifest.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-o", metavar="KEY=VALUE", help="Override one key (see: lora-drop config).")
]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the official files; else $LORA_DROP_DATA, else the Hub.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the Hub.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use N rows only, stratified; the run is marked as limited.")]
Budget = Annotated[
    float | None,
    typer.Option(help="Retain what fits this share of LoRA's parameters (0.5: half) instead of method.threshold."),
]
Bootstrap = Annotated[
    int | None,
    typer.Option(
        min=1, help="Also resample the scored examples N times: intervals, and how often each layer is retained."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Repeat stages that are already done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Json = Annotated[bool, typer.Option("--json", help="The last line is machine-readable.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
