"""Checks before a long run: tasks and their files, trainable parameters, the state of this machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, replace
from typing import Any

from lora_drop.config.schema import Config
from lora_drop.errors import UserError, counted, first_line
from lora_drop.registry import METHODS, TASKS, needs_selection
from lora_drop.tasks.base import Source


def list_tasks(data_dir: str | None, offline: bool) -> list[dict[str, Any]]:
    """Return one row per task: its description, its official size, and the place its rows would be read from."""
    source = Source.resolve(data_dir, offline)
    rows = []
    for name in TASKS.names():
        task = TASKS.get(name)
        sizes = " / ".join(f"{count:,}" for count in task.official_rows.values())
        row = {"task": name, "what": task.description, "metric": task.primary, "rows": sizes}
        rows.append({**row, "read from": _origin(task, source)})
    return rows


def _origin(task: Any, source: Source) -> str:
    present = [name for name in task.files.values() if source.data_dir and (source.data_dir / name).is_file()]
    if not task.files:
        return task.hub
    if len(present) == len(task.files):
        return f"{source.data_dir}"
    missing = ", ".join(name.rsplit("/", 1)[-1] for name in task.files.values() if name not in present)
    elsewhere = f"Hub: {task.hub}"
    if source.named:
        elsewhere = f"nowhere (not in {source.data_dir})"
    elif source.offline:
        elsewhere = f"{elsewhere}, if cached (offline)"
    return f"{source.data_dir}; {missing}: {elsewhere}" if present else elsewhere


def count_methods(config: Config) -> dict[str, Any]:
    """Count the trainable parameters of every method on a backbone, on the meta device: shapes only, no weights.

    LoRA-drop's count depends on the data; the number returned assumes as many retained layers as would halve LoRA.
    """
    from lora_drop.models.backbones import load_meta_model, locate
    from lora_drop.pruning.places import find_places

    task = TASKS.get(config.task)
    backbone = locate(config.backbone, config.offline, weights=False)
    find_places(load_meta_model(backbone, task), config.method.target_projections)  # a wrong name fits no method
    counted: dict[str, Any] = {}
    for name in METHODS.names():
        method, model = METHODS.get(name), load_meta_model(backbone, task)
        settings = replace(config.method, name=name)
        try:
            selection = _half(model, config) if needs_selection(name) else None
            counted[name] = asdict(method.count(method.build(model, settings, config.seed, selection)))
        except UserError as error:  # this method does not fit the model; others may
            counted[name] = {"adapter": None, "head": None, "note": str(error)}
            continue
        if selection is not None:
            retained = ", ".join(
                f"{len(layers.retained)} of {len(layers.all)} {key}" for key, layers in selection.projections.items()
            )
            counted[name]["note"] = f"if {retained} layers are retained; the data determine how many"
    return {"backbone": config.backbone, "methods": counted}


def _half(model: Any, config: Config) -> Any:
    """Return a selection that retains just under half of the layers, the average of the paper's models."""
    from lora_drop.pruning.places import find_places
    from lora_drop.pruning.selection import Layers, Selection

    layers: dict[str, list[int]] = {}
    for place in find_places(model, config.method.target_projections):
        layers.setdefault(place.projection, []).append(place.layer)
    projections = {}
    for name, numbers in layers.items():
        kept = max(1, len(numbers) // 2 - 1)
        projections[name] = Layers(tuple(numbers[-kept:]), tuple(numbers[:-kept]), 0.0)
    return Selection("threshold", config.method.threshold, config.method.share, projections, 0)


def diagnose(data_dir: str | None, offline: bool) -> list[dict[str, Any]]:
    """Return one row per check: `check`, `state`, and a `remedy` if something is missing."""
    return [*_packages(), *_devices(), *_data(data_dir), *_cache(), *_packaged_models(), *_hub(offline)]


def _row(check: str, state: str, remedy: str = "") -> dict[str, Any]:
    return {"check": check, "state": state, "remedy": remedy}


def _packages() -> list[dict[str, Any]]:
    from lora_drop.provenance import versions

    missing = "not installed"
    return [_row(name, found, f"pip install {name}" if found == missing else "") for name, found in versions().items()]


def _devices() -> list[dict[str, Any]]:
    import torch

    rows = [_row("cpu", f"{os.cpu_count()} cores, torch uses {counted(torch.get_num_threads(), 'thread')}")]
    if torch.cuda.is_available():
        rows += [_row(f"cuda:{index}", torch.cuda.get_device_name(index)) for index in range(torch.cuda.device_count())]
    else:
        rows.append(_row("cuda", "none", "base-size models take hours on a CPU: use a GPU, or --limit-train"))
    rows.append(_row("free disk here", f"{shutil.disk_usage('.').free // 2**30} GiB"))
    return rows


def _data(data_dir: str | None) -> list[dict[str, Any]]:
    try:
        source = Source.resolve(data_dir)
    except UserError as error:
        return [_row("data folder", "missing", str(error))]
    if source.data_dir is None:
        return [_row("data folder", "none: rows come from the Hub", "official files: --data-dir or LORA_DROP_DATA")]
    tasks = [TASKS.get(name) for name in TASKS.names()]
    found = [task.name for task in tasks if task.files and (source.data_dir / task.files["train"]).is_file()]
    return [_row("data folder", f"{source.data_dir}: {', '.join(found) or 'no official file'}")]


def _cache() -> list[dict[str, Any]]:
    from lora_drop.files import cache_root

    root = cache_root()
    if root is None:
        return [_row("cache", "none: no home folder", "name a folder with LORA_DROP_CACHE")]
    rows = []
    for what, name in (("tokenised rows", "tokens"), ("rows of your files", "rows"), ("joined models", "models")):
        folder = root / name
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        large = "nothing is deleted automatically; the folder can be deleted at any time" if size > 1e9 else ""
        rows.append(_row(what, f"{folder}: {size / 1e6:.1f} MB", large))
    return rows


def _packaged_models() -> list[dict[str, Any]]:
    from lora_drop.models.backbones import PACKAGED, locate

    rows = []
    for key in PACKAGED:
        try:
            locate(f"packaged:{key}")
            rows.append(_row(f"packaged:{key}", "checksum correct"))
        except UserError as error:
            rows.append(_row(f"packaged:{key}", "not usable", str(error)))
    return rows


def _hub(offline: bool) -> list[dict[str, Any]]:
    import urllib.request
    from http.client import HTTPException

    if offline:
        return [_row("Hub", "not contacted (offline)")]
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        with urllib.request.urlopen(f"{endpoint}/api/models?limit=1", timeout=5):
            return [_row("Hub", f"{endpoint} answers")]
    except OSError as error:
        remedy = "use packaged: backbones and official files, or a machine with network access"
        return [_row("Hub", f"{endpoint}: {error}", remedy)]
    except (ValueError, HTTPException) as error:  # not an address, or not a web server
        return [
            _row(
                "Hub", f"{endpoint}: {first_line(error)}", "correct HF_ENDPOINT, for example to https://huggingface.co"
            )
        ]
