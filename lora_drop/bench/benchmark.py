"""Performs the parts of a benchmark and writes what they have measured: one JSON file, and the figure of part `scaling`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lora_drop.bench.generation_speed import measure_generation
from lora_drop.bench.goals import judge
from lora_drop.bench.machine import describe
from lora_drop.bench.scaling import measure_scaling
from lora_drop.bench.scoring_cost import measure_scoring
from lora_drop.bench.selection_share import measure_share
from lora_drop.bench.settings import Settings
from lora_drop.bench.startup import measure_startup
from lora_drop.bench.training_speed import measure_training
from lora_drop.bench.workload import LORA, Subject
from lora_drop.config import WHERE_KEYS
from lora_drop.errors import UserError
from lora_drop.progress import Reporter
from lora_drop.runs import commit, versions, write_json

FORMAT = 1


def perform(settings: Settings, out: Path, report: Reporter) -> dict[str, Any]:
    """Measure every part of `settings`, write the result to `out`, and return it with the path of its `file`.

    Raises UserError if the folder cannot be written, or a part has no rows or no backbone.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be made ({error.strerror}). Name another with --out.") from error
    code = commit()  # of the code that is loaded, whatever is committed meanwhile
    subject = Subject(settings, report)
    found: dict[str, Any] = {}
    for name in settings.parts:
        began = time.perf_counter()
        report.start(name)
        found[name] = _part(name, subject)
        report.finish(name, time.perf_counter() - began, "")
    device = subject.device.type
    asked = {key: value for key, value in asdict(settings).items() if key not in WHERE_KEYS}
    result = {
        "format": FORMAT,
        "benchmark": {**asked, "lora": {"rank": LORA.rank, "alpha": LORA.alpha}},
        "machine": describe(subject.device),
        "versions": versions(),
        "commit": code,
        "parts": found,
        "goals": [] if settings.quick else judge(found, settings, device),
    }
    name = settings.name_on(device)
    write_json(out / f"{name}.json", result)
    if "scaling" in found:
        _draw(found["scaling"], out / f"{name}.png")
    return {**result, "file": str(out / f"{name}.json")}


def _part(name: str, subject: Subject) -> Any:
    """Measure one part."""
    settings, report = subject.settings, subject.report
    both = 2 * (settings.rounds + 1)
    parts: dict[str, Callable[[], Any]] = {
        "train": lambda: measure_training(subject),
        "score": lambda: measure_scoring(subject),
        "share": lambda: measure_share(subject),
        "generation": lambda: measure_generation(subject),
        "startup": lambda: measure_startup(settings.rounds, lambda done: report.advance(done, both)),
        "scaling": lambda: measure_scaling(
            subject.device, settings.seed, settings.rounds, settings.quick, report.advance
        ),
    }
    return parts[name]()


def _draw(measured: dict[str, Any], path: Path) -> None:
    from lora_drop.bench.plots import scaling_figure
    from lora_drop.experiments.figures import save_figure

    save_figure(scaling_figure(measured), path)
