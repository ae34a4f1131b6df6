"""The runs under test: small, of every method, both kinds of task and both precisions."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_drop.files import file_digest, read_json
from torture.server import Trial, call, spawn, wait

COMMON = [
    *("train.epochs=2", "train.save_steps=2", "train.batch_size=16", "train.learning_rate=2e-3"),
    *("warmup.epochs=2", "sample.ratio=0.4", "train.max_length=48", "limit.train=48", "limit.eval=12"),
]
BERT = ["backbone=tiny:bert", "task=toy-nli", *COMMON]
LLAMA = [
    *("backbone=tiny:llama", "task=toy-nlg", *COMMON, "train.max_length=100"),
    *("generation.max_new_tokens=6", "eval.batch_size=4", "limit.eval=12"),
]
RUNS = {
    "lora_drop": [*BERT, "method.threshold=0.6", "method.dropout=0.1", "score.trained=true"],
    "generation": [*LLAMA, "method.threshold=0.6"],
    "lora-bf16": [*BERT, "method.name=lora", "train.precision=bf16"],
    "adalora": [*BERT, "method.name=adalora"],
    "sparse": [*BERT, "method.name=sparse_adapter"],
    "full": [*BERT, "method.name=full", "train.device_batch_size=4"],
    "tied": [*BERT, "method.name=tied_lora", "method.rank=4", "train.scheduler=cosine"],
    "vera": [*BERT, "method.name=vera", "method.rank=8", "train.select_epoch=last"],
}
OUTPUTS = ("sample.json", "warmup", "scores.json", "selection.json", "adapter", "metrics.json", "predictions.jsonl")
FACTS = ("kept_epoch", "select_epoch", "trainable_parameters", "warmup_steps", "limited", "train_rows")


def options(name: str) -> list[str]:
    """Return a run as options of the command line."""
    return [part for setting in RUNS[name] for part in ("-o", setting)]


def fresh(folder: Path) -> Path:
    """Remove a folder and return its path."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def results(run: Path) -> dict[str, object]:
    """Return the results of a run: digests of its outputs, and the facts in its manifest that no kill may change."""
    stages = read_json(run / "run.json")["stages"]
    facts = {name: {key: entry[key] for key in FACTS if key in entry} for name, entry in sorted(stages.items())}
    return {**{name: file_digest(run / name) for name in OUTPUTS}, "facts": facts}


def left_over(run: Path) -> list[str]:
    """Return the names of files that should not exist once a run is done."""
    return sorted(path.name for path in run.rglob("*") if path.suffix == ".tmp" or "checkpoints" in path.parts[:-1])


def undisturbed(name: str, root: Path) -> Path:
    """Perform a run undisturbed, and return its directory."""
    run = fresh(root / f"undisturbed-{name}")
    ended = call(["run", "-d", run, *options(name)], root / f"{name}.log")
    if ended.code:
        raise SystemExit(f"The run {name} fails undisturbed: {ended.text}")
    return run


def half_finished(name: str, root: Path) -> Path:
    """Return a run that was killed in the training after two checkpoints."""
    run, log = fresh(root / "half"), root / "half.log"
    process = spawn(["run", "-d", run, *options(name)], log)
    while len(list(run.glob("checkpoints/train/checkpoint-*/manifest.json"))) < 2:
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    wait(process, log)
    return run


@dataclass(frozen=True)
class Ground:
    """The common starting point of all trials."""

    root: Path
    known: dict[str, dict[str, Any]]
    """By name of a run: results, seconds, directory, number of file changes, number of lines of checkpoint code."""
    first: str
    """Name of the run that is damaged and attacked."""
    finished: Path
    """Directory of that run."""
    half: Path
    """Directory of the same run, killed in its training."""


@dataclass(frozen=True)
class Part:
    """One kind of trial: a line of the table."""

    test: str
    goal: int
    cases: Callable[[Ground, int], list[dict[str, Any]]]
    """`cases(ground, count)` returns about `count` cases."""
    work: Callable[[dict[str, Any], Path, Ground], Iterable[Trial]]
    """`work(case, folder, ground)` tries a case in a folder."""


def fault(run: Path, expected: dict[str, object], facts: bool = True) -> str:
    """Return how a finished run differs from an undisturbed one, with or without the facts in its manifest."""
    got = results(run)
    names = [name for name in expected if got[name] != expected[name] and (facts or name != "facts")]
    left = left_over(run)
    return f"other results: {', '.join(names)}" if names else f"left over: {', '.join(left)}" if left else ""


def every(items: list[Any], count: int) -> list[Any]:
    """Return `count` of the items, evenly spread, or all if there are fewer."""
    return items if len(items) <= count else [items[number * len(items) // count] for number in range(count)]
