"""Hostile and broken input: configurations, overrides, records, predictions, adapters, pickles, names; full disks."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torture.runs import fault, fresh, options
from torture.server import Ended, Hook, Trial, call, spawn, wait

FUZZ = "fuzz: configurations, overrides, records, predictions"
HOSTILE = "hostile: pickles, adapters, backbones, YAML, names"
DISKS = "full and read-only disks"
WRITERS = "two writers in one directory"
PIECES = (
    "~",
    "[]",
    "{}",
    "-1",
    "1e999",
    "9" * 5000,
    "[" * 2000,
    "\x00",
    "\ufeff",
    "&a [*a]",
    ".nan",
    "'",
    "a: b: c",
    "é" * 50,
)


def mutated(text: str, draw: random.Random) -> str:
    """Return a text with a few pieces cut out, doubled, or put in."""
    for _ in range(draw.randint(1, 4)):
        start, length = draw.randrange(len(text) + 1), draw.choice((1, 1, 4, 30))
        put = draw.choice(("", text[start : start + length] * 2, draw.choice(PIECES), chr(draw.randrange(32, 300))))
        text = text[:start] + put + text[start + length :]
    return text


def fuzz(case: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Give commands that compute nothing many broken texts of one kind, in one process; a traceback is a fault."""
    draw, faults = random.Random(case["seed"]), folder / "faults"
    faults.write_text("")

    def all_of_them() -> None:
        from lora_drop.cli.app import main

        for number in range(case["count"]):
            text = mutated(known[case["kind"]], draw)
            try:
                main(_command(case["kind"], text, folder))
            except SystemExit as ended:
                if ended.code in (None, 0, 2):
                    continue
                fault = f"exit {ended.code}"
            except BaseException as error:  # noqa: BLE001 - this is what is looked for
                fault = f"{type(error).__name__}: {error}"[:200]
            else:
                continue
            with faults.open("a") as file:
                file.write(json.dumps(f"seed {case['seed']}, number {number}: {fault}") + "\n")
        os._exit(0)

    ended = call([], folder / "log", all_of_them)
    found = [json.loads(line) for line in faults.read_text().splitlines()]
    if ended.code:
        found.append(ended.kind)
    yield from (Trial(FUZZ, case["kind"], fault) for fault in found)
    yield from (Trial(FUZZ, case["kind"]) for _ in range(case["count"] - len(found)))


def _command(kind: str, text: str, folder: Path) -> list[str]:
    content = text.encode(errors="surrogateescape")
    if kind == "override":
        return ["config", "-o", text.replace("\x00", "")]
    if kind == "record":
        path = folder / "results" / "x" / "y" / "a.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return ["report", "--results", str(folder / "results"), "--no-figures"]
    path = folder / ("a.yaml" if kind == "configuration" else "a.jsonl")
    path.write_bytes(content)
    if kind == "configuration":
        return ["config", "-c", str(path)]
    return ["eval", "--task", "toy-nli", "--predictions", str(path)]


class Bomb:
    """What a pickle would do to the machine that loads it: leave a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def attacks(finished: Path, half: Path, name: str) -> list[dict[str, Any]]:
    """Return what is put where, and the command that then runs."""
    pickles = (
        "adapter_model.bin",
        "adapter_model.safetensors",
        "pytorch_model.bin",
        "adapter_config.json",
        "lora_drop.json",
    )
    states = (
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "state.safetensors",
        "trainable.safetensors",
        "random.safetensors",
    )
    checkpoint = max(half.glob("checkpoints/train/checkpoint-*")).relative_to(half)
    found = [{"base": finished, "file": f"{place}/{each}", "command": [command]} for each in pickles
             for place, command in (("adapter", "eval"), ("adapter", "run"), ("warmup", "run"))]  # fmt: skip
    found += [{"base": half, "file": f"{checkpoint}/{each}", "command": ["run", *options(name)]} for each in states]
    for path in ("model.safetensors", "pytorch_model.bin", "config.json", "tokenizer.json", "tokenizer_config.json"):
        found.append({"base": None, "file": path, "command": ["run", *options(name)]})
    tags = ("os.system", "os.mkdir", "subprocess.check_output")
    found += [{"base": None, "yaml": f"task: !!python/object/apply:{tag} ['{{mark}}']"} for tag in tags]
    found += [{"base": None, "name": each} for each in ("../outside", "/outside", "a/b", "..", "", "x\n", "~")]
    return found


def attack(case: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Put a pickle, a tag or a name where it is not expected; nothing may be executed or written elsewhere."""
    mark, run, log = fresh(folder / "mark"), fresh(folder / "run"), folder / "log"
    if case["base"] is not None:
        shutil.copytree(case["base"], run)
        (run / case["file"]).unlink(missing_ok=True)
        (run / case["file"]).write_bytes(pickle.dumps(Bomb(mark)))
        first, *rest = case["command"]
        ended = call([first, "-d", run, *rest], log)
    elif "yaml" in case:
        (folder / "a.yaml").write_text(case["yaml"].format(mark=mark))
        ended = call(["run", "-d", run, "-c", folder / "a.yaml"], log)
    elif "name" in case:
        experiment = {"name": case["name"], "rows": {"a": {}}, "tasks": ["toy-nli"], "seeds": [0], "title": "x"}
        (folder / "e.yaml").write_text(json.dumps(experiment))
        ended = call(["reproduce", folder / "e.yaml", "--dry-run", "--results", folder / "results"], log)
        if ended.code == 0:
            ended = Ended(70, "the name was taken")
    else:
        backbone = fresh(folder / "backbone")
        backbone.mkdir()
        (backbone / "config.json").write_text('{"model_type": "bert"}')
        (backbone / case["file"]).write_bytes(pickle.dumps(Bomb(mark)))
        ended = call(["run", "-d", run, *case["command"][1:], "-o", f"backbone={backbone}"], log)
    problem = "executed" if mark.exists() else "" if ended.code in (0, 2) and not ended.traceback else ended.kind
    yield Trial(HOSTILE, str(case.get("file") or case.get("yaml") or repr(case.get("name"))), problem)


def failing(number: int, run: Path, code: int) -> Hook:
    """Let the `number`th opening of a file for writing in the run directory fail, and all after it."""

    def hook() -> None:
        count = [0]

        def audit(event: str, given: tuple[Any, ...]) -> None:
            if event != "open" or not str(given[0]).startswith(str(run)):
                return
            if isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR):
                count[0] += 1
                if count[0] >= number:
                    raise OSError(code, os.strerror(code), str(given[0]))

        sys.addaudithook(audit)

    return hook


def disk(case: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Let the disk be full, or become read-only, at some file; then go on where there is room."""
    run, log = fresh(folder / "run"), folder / "log"
    command = ["run", "-d", run, *options(case["run"])]
    ended = call(command, log, failing(case["number"], run, case["code"]))
    right = ended.code in (0, 2) and not ended.traceback
    problem = "" if right else ended.kind
    if not problem:
        again = call(command, log)
        problem = f"continued: {again.kind}" if again.code else fault(run, known[case["run"]]["results"])
    yield Trial(DISKS, f"{errno.errorcode[case['code']]} at file {case['number']}", problem)


def writers(case: dict[str, Any], folder: Path, known: dict[str, Any]) -> Iterator[Trial]:
    """Start a run twice in one directory: one of them works, the other says so, and the results are right."""
    run, logs = fresh(folder / "run"), [folder / "one", folder / "two"]
    command = ["run", "-d", run, *options(case["run"])]
    processes = [spawn(command, log) for log in logs]
    ended = [wait(process, log) for process, log in zip(processes, logs, strict=True)]
    codes = sorted(each.code for each in ended)
    if codes not in ([0, 2], [0, 0]) or any(each.traceback for each in ended):
        problem = " and ".join(each.kind for each in ended)
    else:
        problem = fault(run, known[case["run"]]["results"])
    yield Trial(WRITERS, case["run"], problem)
