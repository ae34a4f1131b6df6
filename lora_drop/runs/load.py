"""Load the model of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.models.backbones import load_model, load_tokenizer, locate, resolve_device
from lora_drop.models.base import Backbone
from lora_drop.randomness import random_state_kept
from lora_drop.registry import METHODS, TASKS
from lora_drop.runs.job import Job, known_sources
from lora_drop.runs.store import Run
from lora_drop.tasks.base import Task
from lora_drop.tasks.own.task import stored_task
from lora_drop.tasks.own.values import same_class

TASK_FILE = "task.json"
"""File in an adapter's folder that says how rows of own data are read, and names the labels."""


def load_run(path: str | Path, device: str = "auto") -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load the trained model of a run directory, with LoRAs shared as in training, and its tokenizer.

    Args:
        path: a run directory. Neither its data nor the device it was trained on is needed.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: if the directory is not a run, is not trained yet or was altered, or if its backbone is missing or
            has changed.
    """
    run = Run(path)
    config, adapter, chosen = run.config, run.require("adapter", "train"), resolve_device(device)
    if not run.entry("train"):
        raise UserError(
            f"{run.path / 'run.json'} has no record of a training. Restore it, or train again with: lora-drop train"
        )
    if not run.whole("train", ("adapter",)):
        raise UserError(f"{adapter} has changed since the stage train wrote it. Train it again with: lora-drop train")
    task = trained_task(run)
    known = known_sources(run).get("backbone")
    backbone = locate(config.backbone, config.offline, config.quantization, known=known)
    check_weights(run, backbone)
    tokenizer = load_tokenizer(backbone, causal=task.kind == "generation")
    with random_state_kept():
        with _without_advice():
            plain = load_model(backbone, task, config.seed, tokenizer, chosen)
        model = METHODS.get(config.method.name).load(plain, adapter).to(chosen)
    return model.eval(), tokenizer


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep transformers from warning that the head is untrained: it is loaded with the adapter."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def check_weights(run: Run, backbone: Backbone) -> None:
    """Raise UserError if a run's adapter was trained on another model than this backbone of the same name."""
    trained_on = run.entry("train").get("weights", backbone.identity)
    if trained_on not in (backbone.identity, f"{backbone.identity}/{run.config.quantization}"):
        raise UserError(
            f"{run.file('adapter')} was trained on another {backbone.name}: its weights, configuration or tokenizer have changed "
            f"({trained_on[:12]}, now {backbone.identity[:12]}). Put the old one back, or train again with: lora-drop run"
        )


def check_trained(job: Job) -> None:
    """Raise UserError unless a run's adapter fits the run's present model and labels.

    Also raise it if the adapter was trained on rows that are to be evaluated.
    """
    check_weights(job.run, job.backbone)
    if not job.config.data.given:
        return
    then, now = trained_task(job.run), job.task
    named = tuple(same_class(name, now.labels) for name in then.labels)  # earlier versions may say 1.0 for the class 1
    if (then.kind, named) != (now.kind, now.labels):
        others = sorted({*then.labels} ^ {*now.labels})[:3]
        which = f" (only one of them has {', '.join(others)})" if others else ""
        raise UserError(
            f"{job.run.file('adapter')} was trained for {then.kind} with {len(then.labels)} labels, but the data now "
            f"make it {now.kind} with {len(now.labels)}{which}. Train it again with: lora-drop run"
        )
    if (then.center, then.spread) != (now.center, now.spread):
        raise UserError(
            f"{job.run.file('adapter')} was trained on numbers around {then.center:g} ± {then.spread:g}, but the "
            f"training rows have changed and now have {now.center:g} ± {now.spread:g}. Put them back, or train again "
            "with: lora-drop run"
        )
    trained_on, there = job.run.entry("train").get("data", {}).get("train"), job.data.train.digest
    origins = job.source.origins  # known once the rows are read
    if trained_on not in (None, there) and origins.get("train") == origins.get("validation"):
        raise UserError(
            "The rows to evaluate on are held out of the training rows, which have changed since "
            f"{job.run.file('adapter')} was trained: some of the rows to evaluate were trained on. Put the data (and "
            "data.validation) back, name other rows with --validation FILE, or train again with: lora-drop run"
        )


def trained_task(run: Run) -> Task:
    """Return the task that a run was trained on; for own data, as stored with the adapter."""
    config = run.config
    if not config.data.given:
        return TASKS.get(config.task)
    path = run.require("adapter", "train") / TASK_FILE
    if not path.is_file():
        raise UserError(
            f"{path}, which says how rows are read, is missing. Restore it, or train again with: lora-drop train"
        )
    return stored_task(read_json(path), config.data.metric)
