"""The parts of a benchmark in their order: each a model, its rows, and what is measured of them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.commands import measure_commands
from bench.comparisons import BASE, GROUPED_16, OURS_16, SMALL, STOCK_16, measure_scoring, measure_training
from bench.figure import speeds
from bench.machine import describe, title
from bench.subject import Settings, Subject
from bench.table import CLAIMS
from lora_drop.errors import UserError, closest
from lora_drop.files import write_json
from lora_drop.models.backbones import load_model, resolve_device
from lora_drop.progress import Reporter
from lora_drop.provenance import commit
from lora_drop.pruning.picture import save_figure

FORMAT = 2
BASE_ROUNDS = 3
"""At most: a base-size model is slow on a CPU."""
DIALOGS = {"limit.train": 128, "train.batch_size": 8, "train.max_length": 1024}
SEVEN_BILLION = "shape:llama-2-7b"
PARTS = {"cpu": ("small", "base", "score", "commands"), "cuda": ("roberta", "llama", "nf4")}
"""By device, the parts that are about it."""


def perform(settings: Settings, only: Sequence[str], out: Path, report: Reporter) -> dict[str, Any]:
    """Measure the device's parts (`only` these, if given), and write the result and the figure to `out`.

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
    """Measure one part, or say why it is not measured."""
    rounds = settings.rounds

    def encoder(backbone: str, task: str, **keys: Any) -> Subject:
        if settings.quick:
            task, keys = "toy-nli", {"train.batch_size": 4}
        return Subject(settings, report, backbone, task, **keys)

    def small() -> Subject:
        return encoder("tiny:bert" if settings.quick else "packaged:minilm-l6", "rte")

    def base() -> Subject:
        return encoder(settings.base_size, "cola", **{"limit.train": 2 * settings.rows})  # whose rows are short

    def roberta() -> Subject:
        return encoder("shape:roberta-base", "rte", **{"limit.train": 8 * settings.rows})

    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "small": lambda: measure_training(small(), SMALL, rounds),
        "base": lambda: measure_training(base(), BASE, min(rounds, BASE_ROUNDS)),
        "score": lambda: measure_scoring(small(), rounds),
        "commands": lambda: measure_commands(small(), rounds),
        "roberta": lambda: measure_training(roberta(), (STOCK_16, GROUPED_16, OURS_16), rounds),
        "llama": lambda: measure_decoder(settings, report, SEVEN_BILLION, "dialogsum", **DIALOGS),
        "nf4": lambda: measure_decoder(settings, report, SEVEN_BILLION, "dialogsum", quantization="nf4", **DIALOGS),
    }
    began = time.perf_counter()
    report.start(name)
    try:
        found = measures[name]()
    except UserError as error:
        found = {"not_measured": str(error).splitlines()[0]}
    seconds = time.perf_counter() - began
    report.finish(name, seconds, "not measured" if "not_measured" in found else "")
    return {**found, "seconds_in_all": seconds}


def measure_decoder(settings: Settings, report: Reporter, backbone: str, task: str, **keys: Any) -> dict[str, Any]:
    """Train a decoder of random weights in bf16; in 4 bits from a folder that it is saved to, as quantized loading needs it."""
    variants = (GROUPED_16, OURS_16)
    if "quantization" not in keys:
        return measure_training(Subject(settings, report, backbone, task, **keys), variants, settings.rounds)
    wide = Subject(settings, report, backbone, task, **{**keys, "quantization": "none"})
    tokenizer = wide.data.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        load_model(wide.backbone, wide.task, wide.setup.seed, tokenizer, wide.device).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return measure_training(Subject(settings, report, folder, task, **keys), variants, settings.rounds)
