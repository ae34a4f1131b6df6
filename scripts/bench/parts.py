"""The parts of a benchmark in order: each has a model, its rows, and a measurement."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.commands import measure_commands
from bench.comparisons import BASE, GROUPED_16, OURS_16, SMALL, STOCK_16, measure_scoring, measure_training
from bench.figure import speeds
from bench.machine import describe, title
from bench.subject import Settings, Subject
from bench.table import CLAIMS
from bench.training import Variant
from lora_drop.errors import UserError, closest
from lora_drop.files import write_json
from lora_drop.models.backbones import load_model, resolve_device
from lora_drop.models.quantization import check_quantization
from lora_drop.progress import Reporter
from lora_drop.provenance import commit
from lora_drop.pruning.picture import save_figure

FORMAT = 2
BASE_ROUNDS = 3
"""Most rounds of a base-size model, which is slow on a CPU."""
LIMITS = {"small": 360.0, "base": 330.0, "score": 100.0}
"""Most seconds of a part's rounds: on a slow machine, too, all CPU claims then take a quarter of an hour."""
DIALOGS = {"limit.train": 128, "train.batch_size": 8, "train.max_length": 1024}
Measure = Callable[[Subject], dict[str, Any]]
PARTS = {"cpu": ("small", "base", "score", "commands"), "cuda": ("roberta", "llama", "nf4")}
"""The parts of each device."""
GPU_EPOCHS = 2
"""Epochs of a training on a GPU. The last is measured: the work done once per training would take much of the first."""


def perform(settings: Settings, only: Sequence[str], out: Path, report: Reporter) -> dict[str, Any]:
    """Measure the device's parts (only those in `only`, if given), and write the result and the figure to `out`.

    A part whose model, rows or packages are missing is marked as not measured, with the reason.

    Returns:
        The content of the JSON file, and its path as `file`.

    Raises:
        UserError: if no part can be measured, a part is unknown, or the folder cannot be written.
        UnfairComparison: if the sides of a comparison did not do the same work.
    """
    known = [name for names in PARTS.values() for name in names]
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such part.{closest(name, known)} Parts: {', '.join(known)}")
    device, code = resolve_device(settings.device), commit()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {out} cannot be made ({error.strerror}). Name another with --out.") from error
    here = [name for name in PARTS[device.type] if not only or name in only]
    elsewhere = {name: {"not_measured": f"needs --device {kind}"} for kind in PARTS for name in PARTS[kind]}
    found = {**elsewhere, **{name: {"not_measured": "not asked for"} for name in PARTS[device.type]}}
    found |= {name: _part(name, settings, report) for name in here}
    failed = [reason for name in here if (reason := found[name].get("not_measured"))]
    if len(failed) == len(here):
        raise UserError("\n".join(failed) or f"The parts {', '.join(only)} are not for --device {device.type}.")
    machine = describe(device)
    words = "".join(sign if sign.isalnum() else " " for sign in title(machine).lower()).split()
    file = out / f"{'-'.join([*words, *['quick'] * settings.quick])}.json"
    result = {
        "format": FORMAT,
        "settings": {key: value for key, value in asdict(settings).items() if key != "data_dir"},
        "machine": machine,
        "commit": code,
        "claims": [claim.row(found, judged=not settings.quick) for claim in CLAIMS],
        "parts": found,
    }
    write_json(file, result)
    if figure := speeds(found, title(machine)):
        save_figure(figure, file.with_suffix(".png"))
    return {**result, "file": str(file)}


def _part(name: str, settings: Settings, report: Reporter) -> dict[str, Any]:
    """Measure one part, or return the reason why its model or rows are missing."""
    epochs = GPU_EPOCHS if name in PARTS["cuda"] else 1
    rounds, limit = settings.rounds, LIMITS.get(name, math.inf) if settings.limited else math.inf

    def encoder(backbone: str, task: str, times: int) -> Subject:
        """Return an encoder on `times` the usual rows."""
        if settings.quick:
            return Subject(settings, report, backbone, "toy-nli", **{"train.batch_size": 4})
        return Subject(settings, report, backbone, task, **{"limit.train": times * settings.rows})

    def small() -> Subject:
        return encoder("tiny:bert" if settings.quick else "packaged:minilm-l6", "rte", 1)

    def decoder() -> Subject:
        return Subject(settings, report, "shape:llama-2-7b", "dialogsum", **DIALOGS)

    def training(*variants: Variant, rounds: int = rounds) -> Measure:
        return lambda subject: measure_training(subject, variants, rounds, limit, epochs)

    plans: dict[str, tuple[Callable[[], Subject], Measure]] = {
        "small": (small, training(*SMALL)),
        "base": (lambda: encoder(settings.base_size, "cola", 4), training(*BASE, rounds=min(rounds, BASE_ROUNDS))),
        "score": (small, lambda subject: measure_scoring(subject, rounds, limit)),
        "commands": (small, lambda subject: measure_commands(subject, rounds)),
        "roberta": (lambda: encoder("shape:roberta-base", "rte", 4), training(STOCK_16, GROUPED_16, OURS_16)),
        "llama": (decoder, training(GROUPED_16, OURS_16)),
        "nf4": (lambda: quantizable(decoder()), lambda subject: measure_nf4(subject, training(GROUPED_16, OURS_16))),
    }
    began = time.perf_counter()
    report.start(name)
    prepare, measure = plans[name]
    try:
        subject = prepare()
    except UserError as error:
        report.finish(name, time.perf_counter() - began, "not measured")
        return {"not_measured": str(error).splitlines()[0]}
    found = measure(subject)
    report.finish(name, time.perf_counter() - began, "")
    return {**found, "seconds_in_all": time.perf_counter() - began}


def quantizable(subject: Subject) -> Subject:
    """Return the subject. Raises UserError if its weights cannot be quantized to 4 bits for training here."""
    check_quantization(replace(subject.setup, quantization="nf4", backbone="a folder"), subject.device)
    return subject


def measure_nf4(wide: Subject, measure: Measure) -> dict[str, Any]:
    """Measure a subject's random weights in 4 bits, after saving them to a folder, which quantized loading needs."""
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(wide.backbone, wide.task, wide.setup.seed, wide.data.tokenizer, wide.device)
        model.save_pretrained(folder)
        wide.data.tokenizer.save_pretrained(folder)
        del model
        keys = {**wide.keys, "backbone": folder, "quantization": "nf4"}
        found = measure(Subject(wide.settings, wide.report, **keys))
    found["subject"]["backbone"] = f"{wide.backbone.name}, nf4"
    return found
