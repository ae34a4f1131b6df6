"""Try attacks of all kinds: each must execute nothing, write nothing elsewhere, and be harmless or refused."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.attacks import Attack, bombs, code, names, yaml
from torture.model_attacks import adapters, backbones
from torture.runs import Ground, Part, every, fault, fresh
from torture.server import Trial, bounded, call

HOSTILE = "hostile: code in files, adapters, backbones, tokenizers, safetensors, YAML, names, bombs"
OURS = {"run", "half", "backbone", "adapter", "mark", "log", "inside", "files"}


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return attacks of all kinds, evenly spread."""
    kinds = [list(kind(ground)) for kind in (code, yaml, adapters, backbones, names, bombs)]
    total = sum(map(len, kinds))
    chosen = [every(kind, max(1, -(-count * len(kind) // total))) for kind in kinds]
    return [{"attack": attack} for kind in chosen for attack in kind]


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def attack(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Put the files in place, run the command in a folder with foreign files, and check what it did."""
    mine: Attack = case["attack"]
    here = fresh(folder / "here")
    mark, inside = here / "mark", here / "inside"
    theirs = {"adapter/mine": "1", "checkpoints/mine": "2", "mine.txt": "3", "warmup/mine": "4"}
    sources = {
        "run": ground.finished,
        "half": ground.half,
        "backbone": ground.root / "backbone",
        "adapter": ground.finished / "adapter",
    }
    for name in mine.copies:
        shutil.copytree(sources[name], here / name)
    for name, content in {**theirs, **mine.files}.items():
        path = (inside if name in theirs else here) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content.encode() if isinstance(content, str) else content if isinstance(content, bytes) else content(mark)
        )
    before = _names_in(here) | _names_in(folder)

    def hook() -> None:
        bounded()
        os.chdir(inside)
        os.environ["HOME"] = str(inside)
        sys.path.insert(0, str(here))  # so that a module named in a file could be imported

    ended = call([part.replace("{here}", str(here)) for part in mine.command], folder / "log", hook, seconds=60)
    elsewhere = (_names_in(here) | _names_in(folder)) - before - OURS
    lost = [
        name for name, text in theirs.items() if not (inside / name).is_file() or (inside / name).read_text() != text
    ]
    if mark.exists():
        problem = "executed"
    elif elsewhere or lost:
        problem = f"wrote {elsewhere} outside, removed {lost}"
    elif ended.traceback or ended.code not in (0, 2):
        problem = ended.kind
    elif ended.code == 2:
        said = len(re.findall(r"^Error:", ended.text, re.MULTILINE))
        problem = "" if said == 1 else f"{said} sentences: {ended.text[-300:]}"
    else:
        run = here / ("half" if "half" in mine.copies else "run")
        compared = mine.command[0] == "run" and set(mine.copies) & {"run", "half"}
        problem = fault(run, ground.known[ground.first]["results"], facts=False) if compared else ""
    yield Trial(HOSTILE, f"{mine.what}: {'refused' if ended.code else 'harmless'}", problem)


PARTS = (Part(HOSTILE, 400, cases, attack),)
