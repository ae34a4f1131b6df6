"""A stage of a run, and the inputs that its outputs depend on.

The place of a computation is not an input: the device, the batch size of an evaluation, the folder of the data. Nor
are the versions of torch, transformers and PEFT: their numbers differ in the last bits, if at all, and a new release
must not invalidate a grid. `run.json` records the versions, and a stage that was done with other versions than the
installed ones gives a notice.
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
"""A short note on what was done, and facts for the stage's entry in `run.json`."""

HELD_OUT = "held_out"
"""Key, among the metrics of an epoch, of the primary metric on the rows held out of training."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    help: str
    version: int
    """Increased when its numbers may change; outputs of an earlier version are then made again."""
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
    """Stages without a command of their own that follow it if the run has them."""
    draws: bool = False
    """True if it only draws what other stages computed: no result depends on it."""
    shared: bool = False
    """True if runs of the same task and seed can often share it: a threshold sweep needs one warm-up."""
    long: Callable[[Job], Values] | None = None
    """Settings that its longest part depends on; None if all of them. Runs with the same values wait for the first."""


def digest_of(job: Job, artefact: str, stage: str) -> str:
    """Return the hash of an earlier stage's artefact. Raises UserError naming the stage if it is missing."""
    return file_digest(job.run.require(artefact, stage))


def weights(job: Job) -> Values:
    """Return the identity of the initial weights."""
    return {"backbone": job.backbone.identity}


def scored_inputs(job: Job, adapter: str, stage: str) -> Values:
    """Return the identities of an earlier stage's adapter, and of the sample, rows and weights used to score it."""
    read = {"adapter": digest_of(job, adapter, stage), "sample": digest_of(job, "sample.json", "sample")}
    return {**read, **rows_of(job, "train"), **weights(job)}


def common_settings(job: Job) -> Values:
    """Return the settings common to all stages that compute with the model."""
    return {"task": job.config.task, "quantization": job.config.quantization, "seed": job.config.seed}


def criterion(name: str, always: bool = False) -> Values:
    """Return the name and version of a criterion; nothing for version 1 of the paper's, unless `always`.

    It was once the only criterion, and outputs made then remain valid.
    """
    if name == PAPER and CRITERIA.get(name).version == 1 and not always:
        return {}
    return {"criterion": [name, CRITERIA.get(name).version]}


def precision(job: Job) -> Values:
    """Return the precision of a pass without gradients; nothing for fp32, the only one of earlier versions."""
    given = job.config.train.precision
    return {} if given == "fp32" else {"precision": given}


def rows_of(job: Job, *parts: str) -> Values:
    """Return the identities of the task and its rows."""
    own = {"reading": dict(job.task.record)} if job.task.record else {}
    return {"task_version": job.task.version, **own, **{part: job.data.parts[part].digest for part in parts}}


def training(job: Job, train: TrainConfig, *unused: str) -> Values:
    """Return the settings of a training, without those in `unused` and those that change no result.

    An adapter that it starts from is identified by its content, not by its name.
    """
    from lora_drop.config.identity import WHERE_KEYS

    without_effect = [key.removeprefix("train.") for key in WHERE_KEYS]
    settings = {key: value for key, value in asdict(train).items() if key not in (*unused, *without_effect)}
    for key in ("held_out", "head_learning_rate"):  # earlier versions did not have these keys
        if not settings.get(key):
            settings.pop(key, None)
    if train.device_batch_size:  # unequal parts of a batch were weighted differently before
        settings["accumulation"] = 2
    if train.start_from:
        settings["start_from"] = job.adapters["train.start_from"]["content"]
    return settings
