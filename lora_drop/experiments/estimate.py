"""Estimate a grid's cost from a few timed steps of each kind of run, before hours are spent.

The timed code is the code that will run: the stages' own training, scoring and evaluation, with their batches, packing,
precision and loss. The time of a training step or a scoring pass is assumed to grow with the number of real tokens, and
that of an evaluation with the number of rows.
"""

from __future__ import annotations

import heapq
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random

import torch
from datasets import Dataset
from torch import nn

from lora_drop.config.schema import TrainConfig
from lora_drop.data.batches import LengthGroups, row_lengths
from lora_drop.data.sentences import batches
from lora_drop.errors import UserError, first_line
from lora_drop.experiments.grid import Planned
from lora_drop.files import digest
from lora_drop.methods.base import Method, Parameters
from lora_drop.progress import Note, Reporter
from lora_drop.provenance import release_memory
from lora_drop.pruning import importance
from lora_drop.pruning.criteria.base import Given
from lora_drop.registry import CRITERIA, METHODS, needs_selection
from lora_drop.runs import models
from lora_drop.runs.job import Job
from lora_drop.runs.pipeline import plan
from lora_drop.runs.stages import criteria, score
from lora_drop.runs.store import Run
from lora_drop.training.warmup import warmup_settings

STEPS = 2
"""Timed training steps, after one that is not counted."""
MANY = 1000
"""Steps that a timed training is asked for; it is stopped long before."""
CPU_ROWS = 16
"""At most this many rows of a step are computed on a CPU, where a row costs the same in a larger batch."""


@dataclass(frozen=True)
class Estimate:
    """The estimate for the runs of one row on one task."""

    row: str
    task: str
    runs: int
    seconds: float | None
    """Seconds of one run; None if it could not be timed."""
    disk_mb: float | None
    """MB that one run leaves on disk."""
    peak_disk_mb: float | None
    """MB of checkpoints while one run is under way."""
    reason: str = ""
    """The reason why it could not be timed."""


def estimate(todo: Sequence[Planned], report: Reporter) -> Iterator[Estimate]:
    """Time a few steps for each row and task of the runs that are left. Only temporary files are written."""
    groups: dict[tuple[str, str], list[Planned]] = {}
    for planned in todo:
        groups.setdefault((planned.row, planned.config.task), []).append(planned)
    shared: set[str] = set()
    for number, ((row, task), group) in enumerate(groups.items()):
        report.advance(number, len(groups))
        release_memory()
        try:
            with tempfile.TemporaryDirectory() as folder:
                seconds, disk, peak = _measure(group[0], Path(folder), shared, _Clock(report))
            yield Estimate(row, task, len(group), seconds, disk, peak)
        except (UserError, RuntimeError, OSError) as error:  # such as too little memory, which a dry run should reveal
            yield Estimate(row, task, len(group), None, None, None, first_line(error))


def _measure(planned: Planned, folder: Path, shared: set[str], clock: _Clock) -> tuple[float, float, float]:
    """Return seconds, MB left and MB of checkpoints of one run; work in `shared` was done by an earlier run."""
    config = planned.config
    job = Job(Run(folder, config), clock)
    job.check()
    clock.device = job.device
    stages = [stage.name for stage in plan(job, planned.experiment.until)]
    tokens = sum(row_lengths(job.data.train.encoded))
    seconds, left, peak = 0.0, 0.0, 0.0
    if "score" in stages:
        warm_up, by_criteria, size = _time_scores(job, stages, shared, clock)
        seconds += (warm_up + by_criteria * config.sample.ratio) * tokens
        left += _megabytes(size)
        peak = 6 * _megabytes(size) if warm_up else 0.0
    if "train" in stages:
        step, model, size = _time_training(job, "train", job.method, config.train, clock)
        epochs = config.train.epochs if job.scored_each_epoch else 0
        evaluated = len(job.data.eval.rows) * (1 + epochs) + len(job.data.held_out.rows) * epochs
        seconds += step * tokens * config.train.epochs
        seconds += _time_evaluation(job, model, clock) * evaluated
        left += _megabytes(size)
        peak = max(peak, 6 * _megabytes(size))  # two checkpoints, each of the weights and the two moments of AdamW
    return seconds, left, peak


def ends_after(seconds: Sequence[float], devices: int) -> float:
    """Return the time at which the last run ends if each begins, in this order, on the first free device.

    Args:
        seconds: the seconds of each run.
        devices: the number of devices, each as fast as the timed one.
    """
    busy_until = [0.0] * devices
    for each in seconds:
        heapq.heapreplace(busy_until, busy_until[0] + each)
    return max(busy_until)


def on_several_devices(todo: Sequence[Planned], estimates: Sequence[Estimate], more: int) -> list[dict[str, float]]:
    """Return the time that the runs take on 1, 2, 4, … devices, up to one for each run, and on `more`.

    `seconds` is the time if the longest runs begin first, `in_order` the time in the order of the grid.
    """
    by_run = {(entry.row, entry.task): entry.seconds for entry in estimates}
    known = [by_run[run.row, run.config.task] for run in todo]
    seconds = [each for each in known if each is not None]
    counts = {2**power for power in range(len(seconds).bit_length())} | {len(seconds), more}
    return [
        {
            "devices": count,
            "seconds": ends_after(sorted(seconds, reverse=True), count),
            "in_order": ends_after(seconds, count),
        }
        for count in sorted(counts)
        if seconds
    ]


def _time_scores(job: Job, stages: Sequence[str], shared: set[str], clock: _Clock) -> tuple[float, float, Parameters]:
    """Return seconds of the warm-up per training token, of all scoring per token of the sample, and parameter counts.

    Runs with the same warm-up train it once, and those with the same criterion, too, score it once. Each run does
    everything else by itself.
    """
    config, lora, settings = job.config, METHODS.get("lora"), warmup_settings(job.config)
    warm_up, key = 0.0, digest(asdict(config.sample), score.warmup_settings(job))
    if config.warmup.adapter or key in shared:
        model: nn.Module = lora.build(models.load_backbone(job), config.method, config.seed, None)
        size = lora.count(model)
    else:
        step, model, size = _time_training(job, "score", lora, settings, clock)
        warm_up = step * _warm_up_passes(config.warmup.steps, settings, job)
    once = f"{key} {config.score.criterion}"
    looks = sum(stage in stages for stage in ("score", "norms") if once not in shared) + ("trained" in stages)
    passes = [config.score.criterion] * looks + (criteria.others(job) if "criteria" in stages else [])
    shared |= {key, once}
    return warm_up, sum(_time_scoring(job, model, name, clock) for name in passes), size


def _warm_up_passes(steps: int | None, settings: TrainConfig, job: Job) -> float:
    """Return the number of rows that the warm-up computes, as a multiple of the rows of the training set."""
    if steps is not None:
        return steps * settings.batch_size / len(job.data.train.rows)
    return job.config.sample.ratio * settings.epochs


def _megabytes(size: Parameters) -> float:
    return 4 * (size.adapter + size.head) / 1e6


class _Enough(Exception):
    """Ends a training in the middle, before it writes a checkpoint."""


class _Clock(Reporter):
    """Records the time at which each training step ends, and stops the training after STEPS counted ones."""

    def __init__(self, report: Reporter) -> None:
        self.report = report
        self.times: list[float] = []
        self.device = torch.device("cpu")

    def notice(self, text: str) -> None:
        """Pass a notice on."""
        self.report.notice(text)

    def now(self) -> float:
        """Return the time once all pending work of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def advance(self, done: int, total: int, note: Note = "") -> None:
        """Record the end of a step. The first does not count: it is slower, and its batch is the longest."""
        self.times.append(self.now())
        if len(self.times) > STEPS:
            raise _Enough

    def seconds(self, work: Callable[[], object]) -> float:
        """Return the seconds that `work` takes."""
        began = self.now()
        work()
        return self.now() - began


def _time_training(
    job: Job, stage: str, method: Method, settings: TrainConfig, clock: _Clock
) -> tuple[float, nn.Module, Parameters]:
    """Return seconds per token of a stage's training, the model it has begun to train, and the parameter counts."""
    size = settings.batch_size if job.device.type == "cuda" else min(settings.batch_size, CPU_ROWS)
    rows = _some_rows(job.data.train.encoded, (STEPS + 1) * size, job.config.seed)
    # the retained layers are not known yet; LoRA on all layers takes the same time and at least as much disk
    built = METHODS.get("lora") if needs_selection(method.name) else method
    model = built.build(models.load_backbone(job), job.config.method, job.config.seed, None)
    parameters = built.count(model)
    clock.times = []
    with suppress(_Enough):
        models.fit(
            job,
            stage,
            built,
            model,
            rows,
            replace(settings, batch_size=size, save_steps=None, report_to=None),
            steps=MANY,
        )
    lengths = row_lengths(rows)
    longest = list(LengthGroups(lengths, size, job.config.seed))[:size]
    counted = sum(lengths) - sum(lengths[row] for row in longest)
    return (clock.times[STEPS] - clock.times[0]) / counted, model, parameters


def _time_scoring(job: Job, model: nn.Module, criterion: str, clock: _Clock) -> float:
    """Return seconds per token of scoring a LoRA by a criterion."""
    data = job.data
    at_a_time = data.batch_size if job.device.type == "cuda" else min(data.batch_size, CPU_ROWS)
    rows = _some_rows(data.train.encoded, at_a_time, job.config.seed)
    way = models.find_way_for(job, model, rows)
    inputs = [batch for _, batch in batches(rows, data.collate, at_a_time)]
    given = Given(model, importance.numbered(model), inputs, job.config.seed, packing=way)
    return clock.seconds(lambda: CRITERIA.get(criterion).measure(given)) / sum(row_lengths(rows))


def _time_evaluation(job: Job, model: nn.Module, clock: _Clock) -> float:
    """Return seconds per row of an evaluation; a model that is hardly trained writes texts of full length."""
    data, config = job.data, job.config
    count = config.eval.batch_size if job.device.type == "cuda" else min(config.eval.batch_size, CPU_ROWS)

    way = models.find_way_for_evaluation(job, model)

    def evaluate(count: int) -> None:
        chosen = Random(config.seed).choices(range(len(data.eval.rows)), k=count)
        rows, encoded = data.eval.rows.select(chosen), data.eval.encoded.select(chosen)
        data.kind.evaluate(model, job.task, rows, encoded, data.tokenizer, config, way, None, None)

    evaluate(1)  # imports the metrics
    return clock.seconds(lambda: evaluate(count)) / count


def _some_rows(rows: Dataset, count: int, seed: int) -> Dataset:
    """Return `count` rows drawn at random, repeating rows if there are fewer."""
    order = Random(seed).sample(range(len(rows)), len(rows))
    return rows.select([order[number % len(rows)] for number in range(count)])
