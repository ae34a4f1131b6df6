"""Damage to each file of a run directory, as by power loss or a bad disk: it must be repaired or refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_drop.files import file_digest
from torture.runs import Ground, Part, every, fault, fresh, options
from torture.server import Trial, call

DAMAGE = "damage to finished and half-finished directories"
KINDS = (
    "empty",
    "half",
    "zeros",
    "zero tail",
    "bit",
    "late bit",
    "garbage",
    "null",
    "deep",
    "digits",
    "removed",
    "folder",
)
READS = {
    "select": ("scores.json", "run.json", "config.yaml", "sample.json"),
    "train": ("selection.json", "scores.json"),
    **dict.fromkeys(("runs", "report"), ("metrics.json", "scores.json", "selection.json", "run.json", "config.yaml")),
    "export": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "run.json"),
    "eval": ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/lora_drop.json", "run.json"),
}
"""Files read by commands other than `run`."""
SHOWN = ("runs", "report", "export")
"""Commands that must answer as for the undamaged directory, or refuse."""


def damaged(content: bytes, kind: str, place: int) -> bytes:
    """Return the damaged content of a file; `place` chooses the bit to flip."""
    middle, late = len(content) // 2, len(content) * 3 // 4
    at = late + place % max(1, len(content) - late) if kind == "late bit" else place % max(1, len(content))
    flipped = content[:at] + bytes([content[at] ^ (1 << place % 8)]) + content[at + 1 :] if content else b"x"
    return {
        "half": content[:middle],
        "zeros": bytes(len(content)),
        "zero tail": content[:middle] + bytes(len(content) - middle),
        "bit": flipped,
        "late bit": flipped,
        "garbage": content + b"\x00\xff\x13garbage",
        "null": b"null",
        "deep": b"[" * 100_000,
        "digits": b'{"status": ' + b"9" * 5000 + b"}",
    }.get(kind, b"")


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return damage to each file of both directories, for `run` and for the commands that read the file."""
    found = []
    for base in (ground.finished, ground.half):
        files = sorted(path for path in base.rglob("*") if path.is_file() and path.name != ".lock")
        for path in files:
            inside = str(path.relative_to(base))
            commands = [["run", *options(ground.first)], *([each] for each, names in READS.items() if inside in names)]
            for command in commands if base == ground.finished else commands[:1]:
                for kind in KINDS:
                    places = range(3) if kind in ("bit", "late bit") else range(1)
                    found += [
                        {"base": base, "file": inside, "kind": kind, "place": 7919 * place + 11, "command": command}
                        for place in places
                    ]
    return every(found, count)


def _shown(command: str, run: Path, folder: Path, ground: Ground) -> str:
    """Return the fault in the answer of a command that reads a damaged directory; empty if there is none."""
    out = {"runs": [], "report": ["--out", folder / "page.html"], "export": ["--to", "peft", "--out", folder / "out"]}
    said = []
    for base in (run, ground.finished):
        place = base if base == run else Path(shutil.copytree(base, fresh(run)))
        fresh(folder / "out")
        ended = call([command, place, *out[command]], folder / "log")
        written = {"report": folder / "page.html", "export": folder / "out"}.get(command)
        if ended.traceback or ended.code not in (0, 2):
            return ended.kind
        said.append(ended.text + file_digest(written) if written else ended.text)
        if ended.code == 2 or "note:" in ended.text or "damaged" in ended.text:
            return ""
    return "" if said[0] == said[1] else "believed"


def damage(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Damage a copy of a directory, and run a command on it."""
    run = Path(shutil.copytree(case["base"], fresh(folder / "run")))
    path = run / case["file"]
    content = path.read_bytes()
    path.unlink()
    if case["kind"] == "folder":
        path.mkdir()
    elif case["kind"] != "removed":
        path.write_bytes(damaged(content, case["kind"], case["place"]))
    first, *rest = case["command"]
    if first in SHOWN:
        yield Trial(DAMAGE, f"{case['file']}, {case['kind']}, {first}", _shown(first, run, folder, ground))
        return
    ended = call([first, "-d", run, *rest], folder / "log")
    if ended.traceback or ended.code not in (0, 2):
        problem = ended.kind
    elif ended.code == 0:
        problem = fault(run, ground.known[ground.first]["results"], facts=first == "run")
    else:
        problem = "" if "Error:" in ended.text else "no sentence"
    yield Trial(DAMAGE, f"{case['base'].name}: {case['file']}, {case['kind']}, {first}", problem)


PARTS = (Part(DAMAGE, 700, cases, damage),)
