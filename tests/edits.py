"""Run directories as somebody else could have left them: edited, and sealed again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lora_drop.config.files import SEAL, sealed
from lora_drop.runs.store import Run


def edit_config(directory: Path, change: Callable[[str], str]) -> None:
    """Change the text of a run's configuration."""
    path = directory / "config.yaml"
    path.write_text(sealed(change(path.read_text(encoding="utf-8").rpartition(SEAL)[0])), encoding="utf-8")


def edit_stages(directory: Path, change: Callable[[str, dict[str, Any]], None]) -> None:
    """Change what the manifest says of each stage."""
    run = Run(directory)
    for name, entry in list(run.manifest["stages"].items()):
        change(name, entry)
        run.enter(name, entry)


def accept_outputs(directory: Path, stage: str, *outputs: str) -> None:
    """Let a stage's outputs be what lies in the directory now."""
    run = Run(directory)
    entry = run.manifest["stages"][stage]
    entry["outputs"] |= run.digests(outputs)
    run.enter(stage, entry)
