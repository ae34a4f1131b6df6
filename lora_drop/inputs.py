"""What the outputs of each stage depend on: by it a stage knows whether what it made still stands."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from lora_drop import sampling
from lora_drop.data import Data
from lora_drop.methods.base import Method
from lora_drop.runs import Run, file_digest
from lora_drop.tasks.base import Task
from lora_drop.warmup import warmup_settings


class Inputs:
    """The inputs of every stage of one run, as JSON-like values to be digested."""

    def __init__(self, run: Run, task: Task, method: Method, data: Data, device: torch.device):
        """Describe `run`, whose configuration names the task, the method and the rows given."""
        self.run, self.config, self.method, self.data, self.device = run, run.config, method, data, device
        self.task = [task.name, task.version]

    def of(self, stage: str) -> dict[str, Any]:
        """Return everything that a stage's outputs depend on. Raises UserError if an artefact of a stage before it is missing."""
        return {
            "sample": self._sample,
            "score": self._score,
            "norms": lambda: self._rescored("warmup", "score"),
            "stability": self._stability,
            "select": self._select,
            "train": self._train,
            "eval": self._evaluate,
            "trained": lambda: self._rescored("adapter", "train"),
        }[stage]()

    def trained_from(self) -> dict[str, Any]:
        """Return what an adapter depends on, but for the rows on which its epoch was chosen."""
        selection = file_digest(self.run.require("selection.json", "select")) if self.method.needs_selection else None
        training = {key: value for key, value in asdict(self.config.train).items() if key != "save_steps"}
        return {
            "task": self.task,
            "selection": selection,
            "data": self.data.train_digest,
            "train": training,
            "method": asdict(self.config.method),
        } | self._machine

    @property
    def scored_each_epoch(self) -> bool:
        """Whether the model is evaluated between epochs, be it that one is chosen by it or that it costs little."""
        return self.data.kind.scored_each_epoch or self.config.train.select_epoch == "best"

    def _sample(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "sampler": sampling.VERSION,
            "data": self.data.train_digest,
            "ratio": self.config.sample.ratio,
            "seed": self.config.seed,
        }

    def _score(self) -> dict[str, Any]:
        unused = ("select_epoch", "save_steps")
        warmup, method = asdict(warmup_settings(self.config)), asdict(self.config.method)
        return {
            "task": self.task,
            "sample": file_digest(self.run.require("sample.json", "sample")),
            "data": self.data.train_digest,
            "warmup": {key: value for key, value in warmup.items() if key not in unused},
            "warmup_steps": self.config.warmup.steps,
            "scored_at_a_time": self.data.batch_size,
            "method": {key: method[key] for key in ("rank", "alpha", "dropout", "target_projections")},
        } | self._machine

    def _rescored(self, adapter: str, made_by: str) -> dict[str, Any]:
        """Of a look at the sample through a finished adapter."""
        return {
            "adapter": file_digest(self.run.require(adapter, made_by)),
            "sample": file_digest(self.run.require("sample.json", "sample")),
            "data": self.data.train_digest,
            "max_length": self.config.train.max_length,
        } | self._machine

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
        if not self.scored_each_epoch:
            return self.trained_from()
        chosen = {"chosen_on": self.data.eval_digest, "eval_batch": self.config.eval.batch_size}
        return {**self.trained_from(), **chosen, **self.data.kind.settings(self.config)}

    def _evaluate(self) -> dict[str, Any]:
        asked = [asdict(replace(self.config.eval, split=self.data.split)), self.config.train.max_length]
        return {
            "task": self.task,
            "adapter": file_digest(self.run.require("adapter", "train")),
            "data": self.data.eval_digest,
            "backbone": self.data.backbone.identity,
            "eval": asked,
            **self.data.kind.settings(self.config),
        }

    @property
    def _machine(self) -> dict[str, Any]:
        return {
            "backbone": self.data.backbone.identity,
            "seed": self.config.seed,
            "device": self.device.type,
        }
