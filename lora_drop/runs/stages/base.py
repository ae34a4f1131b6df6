"""A stage of a run, and the inputs that its outputs depend on.

Where something was computed is no input: the device, the batch size of an evaluation, the folder of the data. The
versions of torch, transformers and PEFT are none either: their numbers differ in the last bits, if at all, and a new
release must not undo a grid. `run.json` records them, and a stage that was done with others than those installed gives
a notice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lora_drop.files import file_digest
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.registry import CRITERIA

if TYPE_CHECKING:
    from lora_drop.config.schema import TrainConfig
    from lora_drop.runs.job import Job

Values = dict[str, Any]
Work = tuple[str, Values]
"""A few words about what was done, and facts for the stage's entry in `run.json`."""

HELD_OUT = "held_out"
"""The primary metric on the rows that are held out of training, among the metrics of an epoch."""
NO_INPUTS = ("save_steps", "report_to", "logging_steps")
"""Settings of a training that change none of its results."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    help: str
    version: int
    """Raised when its numbers may change: what an earlier version made is made anew."""
    outputs: tuple[str, ...]
    """Files and folders that it writes, the main one first."""
    needs: tuple[str, ...]
    """Stages whose outputs it reads."""
    settings: Callable[[Job], Values]
    """Inputs from the configuration, known without reading a row or a weight."""
    inputs: Callable[[Job], Values]
    """All other inputs: rows, weights, outputs of earlier stages."""
    work: Callable[[Job], Work]
    """Writes the outputs."""
    wanted: Callable[[Job], bool] = lambda job: True
    """True if a run has this stage."""
    rows: Callable[[Job], tuple[str, ...]] = lambda job: ("train",)
    """The rows that it reads: "train", "eval", both or none."""
    model: bool = True
    """True if its outputs depend on the backbone."""
    command: bool = True
    """True if it has a command of its own."""
    beside: tuple[str, ...] = ()
    """Stages without a command that follow it, where they are wanted."""
    draws: bool = False
    """True if it draws what others computed: no result rests on it."""
    shared: bool = False
    """True if runs of the same task and seed often have it in common: a threshold sweep needs one warm-up."""
    long: Callable[[Job], Values] | None = None
    """The settings that its longest part depends on, if not all of them do: runs that have these in common wait for the
    first of them."""


def digest_of(job: Job, artefact: str, stage: str) -> str:
    """Return the hash of what an earlier stage wrote. Raises UserError naming the stage if it is not there."""
    return file_digest(job.run.require(artefact, stage))


def weights(job: Job) -> Values:
    """Return what identifies the initial weights."""
    return {"backbone": job.backbone.identity}


def scored_inputs(job: Job, adapter: str, stage: str) -> Values:
    """Return what identifies an adapter of an earlier stage, and the sample, rows and weights that score it."""
    read = {"adapter": digest_of(job, adapter, stage), "sample": digest_of(job, "sample.json", "sample")}
    return {**read, **rows_of(job, "train"), **weights(job)}


def names(job: Job) -> Values:
    """Return the settings of every stage that computes with the model."""
    return {"task": job.config.task, "quantization": job.config.quantization, "seed": job.config.seed}


def criterion(name: str, always: bool = False) -> Values:
    """Return name and version of a criterion; nothing for the paper's first, unless `always`: it was the only one once,
    and what was made then stands."""
    if name == PAPER and CRITERIA.get(name).version == 1 and not always:
        return {}
    return {"criterion": [name, CRITERIA.get(name).version]}


def precision(job: Job) -> Values:
    """Return the precision of a pass without gradients. (fp32 is not named: earlier versions knew no other.)"""
    given = job.config.train.precision
    return {} if given == "fp32" else {"precision": given}


def rows_of(job: Job, *parts: str) -> Values:
    """Return what identifies the task and its rows."""
    own = {"reading": dict(job.task.record)} if job.task.record else {}
    return {"task_version": job.task.version, **own, **{part: job.data.parts[part].digest for part in parts}}


def training(job: Job, train: TrainConfig, *unused: str) -> Values:
    """Return settings of a training but for those `unused`, and those that change no result; an adapter that it starts
    from counts by its content, not by its name."""
    settings = {key: value for key, value in asdict(train).items() if key not in (*unused, *NO_INPUTS)}
    for key in ("held_out", "head_learning_rate"):  # configurations of earlier versions had no such keys
        if not settings.get(key):
            settings.pop(key, None)
    if train.device_batch_size:  # parts of a batch that no number divides were weighed otherwise before
        settings["accumulation"] = 2
    if train.start_from:
        settings["start_from"] = job.adapters["train.start_from"]["content"]
    return settings
