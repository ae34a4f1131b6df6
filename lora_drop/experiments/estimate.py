"""What a grid will cost, from a few timed steps of each kind of run: told before hours are spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora_drop.errors import UserError
from lora_drop.experiments.engine import run_directory
from lora_drop.experiments.grid import Planned
from lora_drop.methods import get_method
from lora_drop.methods.base import Parameters
from lora_drop.pipeline import Pipeline
from lora_drop.runs import Run, digest

ROWS, STEPS = 8, 3
"""Rows and timed steps, after one step that is not counted; cost is taken to grow with the number of rows."""


@dataclass(frozen=True)
class Estimate:
    """Of the runs of one row on one task."""

    row: str
    task: str
    runs: int
    seconds: float | None
    """Of one run; None where it could not be timed."""
    disk_mb: float | None
    """That one run leaves."""
    peak_disk_mb: float | None
    """Checkpoints while one run is under way."""
    reason: str = ""
    """Why it could not be timed."""


def estimate(todo: Sequence[Planned], runs: Path, progress: Callable[[int, int], None]) -> Iterator[Estimate]:
    """Time a few steps for each row and task of the runs that are left. Nothing is written."""
    groups: dict[tuple[str, str], list[Planned]] = {}
    for planned in todo:
        groups.setdefault((planned.row, planned.config.task), []).append(planned)
    warmed: set[str] = set()
    for number, ((row, task), group) in enumerate(groups.items()):
        progress(number, len(groups))
        try:
            seconds, disk, peak = _measure(group[0], runs, warmed)
            yield Estimate(row, task, len(group), seconds, disk, peak)
        except (UserError, RuntimeError, OSError) as error:  # too little memory, say: that is what a dry run is for
            yield Estimate(row, task, len(group), None, None, None, f"{error}".splitlines()[0])


def _measure(planned: Planned, runs: Path, warmed: set[str]) -> tuple[float, float, float]:
    """Return seconds, MB left and MB of checkpoints of one run. A warm-up that a row before it makes (`warmed`) costs nothing again."""
    config, until = planned.config, planned.experiment.until
    pipeline = Pipeline(Run(run_directory(planned, runs), config))
    data, stages = pipeline.data, pipeline.plan(until)
    batch = next(iter(data.some_batches(min(ROWS, len(data.train_rows)))))
    seconds, left, peak = 0.0, 0.0, 0.0
    warm_up = digest(
        config.task, asdict(config.sample), asdict(config.warmup), config.method.rank, config.train.learning_rate
    )
    if "score" in stages and warm_up not in warmed:
        warmed.add(warm_up)
        step, size = _time(pipeline, "lora", batch)
        seconds += step * config.sample.ratio * len(data.train_rows) * config.warmup.epochs
        left += _megabytes(size)
        peak = 6 * _megabytes(size)
    if "train" in stages:
        step, size = _time(pipeline, config.method.name, batch)
        evaluations = 1 + (config.train.epochs if pipeline.inputs.scored_each_epoch else 0)
        seconds += step * len(data.train_rows) * config.train.epochs
        seconds += _time_evaluation(pipeline) * len(data.eval_rows) * evaluations
        left += _megabytes(size)
        peak = max(peak, 6 * _megabytes(size))  # two checkpoints, each of the weights and the two moments of AdamW
    return seconds, left, peak


def _megabytes(size: Parameters) -> float:
    return 4 * (size.adapter + size.head) / 1e6


def _time(pipeline: Pipeline, method: str, batch: dict[str, torch.Tensor]) -> tuple[float, Parameters]:
    """Return seconds per row of a training step, and what is trained."""
    config, rows = pipeline.config, len(batch["input_ids"])
    # which layers would be retained is not known yet; LoRA on all of them costs the same time and at most as much disk
    built = get_method("lora" if get_method(method).needs_selection else method)
    model = built.build(pipeline.stages.load_backbone(), config.method, config.seed, None).to(pipeline.device)
    inputs = {name: tensor.to(pipeline.device) for name, tensor in batch.items()}
    optimizer = torch.optim.AdamW(parameter for parameter in model.parameters() if parameter.requires_grad)
    with _precision(pipeline):
        step = _seconds(lambda: _step(model, optimizer, inputs), pipeline.device)
    return step / rows, built.count(model)


def _time_evaluation(pipeline: Pipeline) -> float:
    """Return seconds per row of an evaluation by the untrained backbone, which writes texts as long as they may be."""
    data, model = pipeline.data, pipeline.stages.load_backbone()
    model.to(pipeline.device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to
    chosen = range(min(ROWS, len(data.eval_rows)))
    rows, encoded = data.eval_rows.select(chosen), data.eval_encoded.select(chosen)

    def work() -> None:
        data.kind.evaluate(model, pipeline.task, rows, encoded, data.tokenizer, pipeline.config, None, None)

    return _seconds(work, pipeline.device) / len(rows)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: dict[str, Any]) -> None:
    model(**inputs).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _precision(pipeline: Pipeline) -> Iterator[None]:
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(pipeline.config.train.precision)
    with torch.autocast(pipeline.device.type, dtype=kind, enabled=kind is not None):
        yield


def _seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the mean time of STEPS calls after one that is not counted."""
    work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        work()
    _wait(device)
    return (time.perf_counter() - began) / STEPS


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
