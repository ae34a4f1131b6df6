"""What the outputs of each stage depend on: by it a stage knows whether what it made still stands.

Where something was computed is no input: the device, the batch size of an evaluation, the folder of the data. The versions of torch, transformers
and PEFT are none either: their numbers differ in the last bits, if at all, and a new release must not undo a grid. `run.json` says which they
were, and a stage that stands with others than are installed now says so.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lora_drop.config import TrainConfig
from lora_drop.data import Data
from lora_drop.methods.base import Method
from lora_drop.methods.start import adapter_folder
from lora_drop.runs import Run, file_digest
from lora_drop.tasks.base import Task
from lora_drop.warmup import warmup_settings

VERSIONS = {
    "sample": 2,  # largest remainder instead of scikit-learn's splits
    "score": 2,  # the scaling of a LoRA is part of its output
    "norms": 2,
    "stability": 2,
    "select": 1,
    "train": 2,  # the parts of a head are not wrapped a second time
    "eval": 1,
    "trained": 2,
}
"""Raised when the numbers of a stage may change: what an earlier version made does not stand."""


class Inputs:
    """The inputs of every stage of one run, as JSON-like values to be digested."""

    def __init__(self, run: Run, task: Task, method: Method, data: Data):
        """Describe `run`, whose configuration names the task, the method and the rows given."""
        self.run, self.config, self.method, self.data = run, run.config, method, data
        self.task = [task.name, task.version]

    def of(self, stage: str) -> dict[str, Any]:
        """Return everything that a stage's outputs depend on. Raises UserError if an artefact of a stage before it is missing."""
        own = {
            "sample": self._sample,
            "score": self._score,
            "norms": lambda: self._rescored("warmup", "score"),
            "stability": self._stability,
            "select": self._select,
            "train": self._train,
            "eval": self._evaluate,
            "trained": lambda: self._rescored("adapter", "train"),
        }[stage]()
        return {"stage": [stage, VERSIONS[stage]], **own}

    def trained_from(self) -> dict[str, Any]:
        """Return what an adapter depends on, but for the rows: those that it was trained on need not be at hand where it is used."""
        selection = file_digest(self.run.require("selection.json", "select")) if self.method.needs_selection else None
        return {
            "stage": ["train", VERSIONS["train"]],
            "task": self.task,
            "selection": selection,
            "limit": self.config.limit.train,
            "train": self._settings(self.config.train, "save_steps"),
            "method": [asdict(self.config.method), self.method.version],
        } | self._weights

    @property
    def scored_each_epoch(self) -> bool:
        """Whether the model is evaluated between epochs, be it that one is chosen by it or that it costs little."""
        return self.data.kind.scored_each_epoch or self.config.train.select_epoch == "best"

    def _sample(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "data": self.data.train_digest,
            "ratio": self.config.sample.ratio,
            "seed": self.config.seed,
        }

    def _score(self) -> dict[str, Any]:
        method = asdict(self.config.method)
        return {
            "task": self.task,
            "sample": file_digest(self.run.require("sample.json", "sample")),
            "data": self.data.train_digest,
            "warmup": self._settings(warmup_settings(self.config), "select_epoch", "save_steps"),
            "warmup_steps": self.config.warmup.steps,
            "method": {key: method[key] for key in ("rank", "alpha", "dropout", "target_projections")},
        } | self._weights

    def _rescored(self, adapter: str, made_by: str) -> dict[str, Any]:
        """Of a look at the sample through a finished adapter."""
        return {
            "adapter": file_digest(self.run.require(adapter, made_by)),
            "sample": file_digest(self.run.require("sample.json", "sample")),
            "data": self.data.train_digest,
            "max_length": self.config.train.max_length,
        } | self._weights

    def _stability(self) -> dict[str, Any]:
        method = self.config.method
        return {
            "norms": file_digest(self.run.require("norms.json", "score")),
            "rule": [method.threshold, method.budget, method.share, self.config.score.bootstrap],
            "seed": self.config.seed,
        }

    def _select(self) -> dict[str, Any]:
        method = asdict(self.config.method)
        return {
            "scores": file_digest(self.run.require("scores.json", "score")),
            "method": {key: method[key] for key in ("threshold", "budget", "policy", "share")},
            "seed": self.config.seed,
        }

    def _train(self) -> dict[str, Any]:
        trained = {**self.trained_from(), "data": self.data.train_digest}
        if not self.scored_each_epoch:
            return trained
        return {**trained, "chosen_on": self.data.eval_digest, **self.data.kind.settings(self.config)}

    def _evaluate(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "adapter": file_digest(self.run.require("adapter", "train")),
            "data": self.data.eval_digest,
            "backbone": self.data.backbone.identity,
            "split": self.data.split,
            "max_length": self.config.train.max_length,
            **self.data.kind.settings(self.config),
        }

    @property
    def _weights(self) -> dict[str, Any]:
        return {"backbone": self.data.backbone.identity, "seed": self.config.seed}

    def _settings(self, train: TrainConfig, *unused: str) -> dict[str, Any]:
        """Return settings of a training; an adapter that it starts from counts by its content, not by its name."""
        settings = {key: value for key, value in asdict(train).items() if key not in unused}
        if train.start_from:
            settings["start_from"] = file_digest(adapter_folder(train.start_from))
        return settings
