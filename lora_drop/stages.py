"""What each stage does: it reads artefacts of the ones before it, and writes its own into the run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from lora_drop import importance
from lora_drop.backbones import Backbone, load_model
from lora_drop.checks import check_length
from lora_drop.config import TrainConfig
from lora_drop.data import Data
from lora_drop.encoding import batches
from lora_drop.errors import UserError
from lora_drop.evaluation.base import Evaluation
from lora_drop.inputs import Inputs
from lora_drop.methods import get_method
from lora_drop.methods.base import Method
from lora_drop.methods.start import adapter_folder, start_from
from lora_drop.packing import Packing
from lora_drop.progress import Reporter
from lora_drop.projections import fused_notice
from lora_drop.runs import Run, digest, read_json, write_folder, write_json, write_text
from lora_drop.sampling import stratified_sample
from lora_drop.selection import Scored, Selection, select
from lora_drop.stability import CONFIDENCE, bootstrap
from lora_drop.tasks.base import Task
from lora_drop.training import Outcome, find_packing, fit, penalised
from lora_drop.warmup import doubts, first_and_last, warmup_settings

Work = tuple[str, dict[str, Any]]
"""A few words about what was done, and facts for the stage's entry in `run.json`."""
STOCK = "fp32"
"""Precision of a pass without gradients, whatever `train.precision` says."""

OUTPUTS = {
    "sample": ["sample.json"],
    "score": ["scores.json", "warmup"],
    "norms": ["norms.json"],
    "stability": ["stability.json"],
    "select": ["selection.json", "importance.png"],
    "train": ["adapter"],
    "eval": ["metrics.json", "predictions.jsonl"],
    "trained": ["scores_trained.json"],
}
"""What each stage writes, the main artefact first."""


class Stages:
    """The work of every stage of one run, whatever was done before."""

    def __init__(
        self,
        run: Run,
        task: Task,
        method: Method,
        backbone: Backbone,
        data: Data,
        inputs: Inputs,
        device: torch.device,
        report: Reporter,
    ):
        """Work on `run` with what its configuration names."""
        self.run, self.config, self.task, self.method, self.backbone = run, run.config, task, method, backbone
        self.data, self.inputs, self.device, self.report = data, inputs, device, report

    def sample(self) -> Work:
        """Stage 1: the stratified sample."""
        rows, ratio = self.data.train_rows, self.config.sample.ratio
        size = max(1, round(ratio * len(rows)))
        drawn = stratified_sample(self.task.strata(rows), size, self.config.seed)
        if drawn.absent:
            some = "; ".join(drawn.absent[:3]) + ("; …" if len(drawn.absent) > 3 else "")
            self.report.notice(
                f"{len(drawn.absent)} of {len(drawn.strata)} strata are too small for a row of the sample ({some})"
            )
        strata = {name: {"population": total, "sample": taken} for name, (total, taken) in drawn.strata.items()}
        content = {
            "task": self.task.name,
            "seed": self.config.seed,
            "ratio": ratio,
            "population": len(rows),
            "size": len(drawn.indices),
        }
        write_json(self.run.file("sample.json"), {**content, "strata": strata, "indices": list(drawn.indices)})
        return f"{len(drawn.indices):,} of {len(rows):,} rows in {len(strata)} strata", {}

    def score(self) -> Work:
        """Stage 2: warm-up LoRA on the sample, then the importance of every LoRA."""
        config = self.config
        encoded = self._sampled()
        lora = get_method("lora")
        model = lora.build(self.load_backbone(), config.method, config.seed, None)
        self._start(model)
        outcome = self.fit("score", lora, model, encoded, warmup_settings(config), config.warmup.steps)
        inputs = (batch for _, batch in batches(encoded, self.data.collate, self.data.batch_size))
        scores = importance.score(
            model,
            inputs,
            progress=lambda done: self.report.advance(done, len(encoded), "scoring"),
            packing=self.packing(model, encoded),
        )
        with write_folder(self.run.file("warmup")) as folder:
            lora.save(model, folder)
            write_json(folder / "losses.json", {"losses": outcome.losses})
        write_json(self.run.file("scores.json"), self._scores_content(model, scores))
        for doubt in doubts(outcome.losses):
            self.report.notice(doubt)
        first, last = first_and_last(outcome.losses)
        seen = f"{scores.examples:,} examples, {scores.tokens:,} tokens"
        note = f"{len(scores.rows)} LoRAs on {seen}, after {outcome.steps:,} warm-up steps (loss {first:.3f} to {last:.3f})"
        losses = {"first_quarter": first, "last_quarter": last}
        facts = {"precision": config.train.precision, "warmup_steps": outcome.steps, "losses": losses}
        return note, {**facts, "computed": outcome.computed}

    def norms(self) -> Work:
        """Beside stage 2: ‖ΔW x‖² of each example."""
        encoded = self._sampled()
        model = get_method("lora").load(self.load_backbone(), self.run.file("warmup")).to(self.device)
        chunks = list(batches(encoded, self.data.collate, self.data.batch_size))
        scores = importance.score(
            model, (batch for _, batch in chunks), per_example=True, packing=self.packing(model, encoded)
        )
        order = np.argsort([row for chosen, _ in chunks for row in chosen])  # from the batches' order to the sample's
        modules = [
            {
                "name": row.name,
                "projection": row.projection,
                "layer": row.layer,
                "norms": np.array(norms)[order].tolist(),
            }
            for row, norms in zip(scores.rows, (scores.norms or {}).values(), strict=True)
        ]
        write_json(self.run.file("norms.json"), {"examples": scores.examples, "modules": modules})
        return f"{scores.examples:,} examples of {len(modules)} LoRAs", {"precision": STOCK}

    def stability(self) -> Work:
        """Beside stage 2: how far the importances can be trusted."""
        method, resamples = self.config.method, self.config.score.bootstrap
        scored = read_scores(self.run.file("scores.json"))
        norms = {row["name"]: row["norms"] for row in read_json(self.run.file("norms.json"))["modules"]}
        rule: dict[str, Any] = {"threshold": method.threshold, "budget": method.budget, "share": method.share}
        rule["seed"] = self.config.seed
        rows = bootstrap(scored, norms, resamples, **rule)
        content = {"resamples": resamples, "confidence": CONFIDENCE, **rule, "modules": rows}
        write_json(self.run.file("stability.json"), content)
        certain = sum(row["retained"] in (0, 1) for row in rows)
        return f"{resamples:,} resamples: {certain} of {len(rows)} LoRAs always on the same side", {}

    def trained(self) -> Work:
        """After stage 4: the importances of the trained adapter on the sample."""
        model = self.method.load(self.load_backbone(), self.run.file("adapter")).to(self.device)
        encoded = self._sampled()
        inputs = (batch for _, batch in batches(encoded, self.data.collate, self.data.batch_size))
        scores = importance.score(model, inputs, packing=self.packing(model, encoded))
        write_json(self.run.file("scores_trained.json"), self._scores_content(model, scores))
        return f"{len(scores.rows)} LoRAs on {scores.examples:,} examples", {"precision": STOCK}

    def select(self) -> Work:
        """Stage 3: the layers that retain a LoRA of their own."""
        from lora_drop.experiments.figures import importance_figure, save_figure

        method = self.config.method
        scored = read_scores(self.run.file("scores.json"))
        selection = select(scored, method.threshold, method.budget, method.policy, method.share, self.config.seed)
        write_json(self.run.file("selection.json"), selection.to_json())
        save_figure(
            importance_figure(scored, selection, f"{self.task.name}, {self.config.backbone}"),
            self.run.file("importance.png"),
        )
        whole = sum(row.parameters for row in scored)
        counts = ", ".join(
            f"{name} {len(layers.retained)} of {len(layers.retained + layers.shared)}"
            for name, layers in selection.projections.items()
        )
        share = selection.trainable_parameters / whole
        return f"retained {counts}; {selection.trainable_parameters:,} parameters, {share:.0%} of LoRA's", {}

    def train(self) -> Work:
        """Stage 4: a fresh model under the selection, trained on the whole training set."""
        config = self.config
        selection = (
            Selection.from_json(read_json(self.run.file("selection.json"))) if self.method.needs_selection else None
        )
        model = self.method.build(self.load_backbone(), config.method, config.seed, selection)
        self._start(model)
        if self.method.prepare is not None:
            self.method.prepare(model.to(self.device), self.data.some_batches(self.method.examples))
        parameters = self.method.count(model)
        self.run.forget("eval", OUTPUTS["eval"])
        outcome = self.fit(
            "train",
            self.method,
            model,
            self.data.train_encoded,
            config.train,
            evaluator=(lambda trained: self._metrics(trained).metrics) if self.inputs.scored_each_epoch else None,
        )
        with write_folder(self.run.file("adapter")) as folder:
            self.method.save(model, folder)
        kept = f"kept epoch {outcome.kept_epoch:g} ({config.train.select_epoch})"
        return f"{parameters.adapter:,} trainable parameters (head {parameters.head:,}); {kept}", {
            "trained_from": digest(self.inputs.trained_from()),
            "trainable_parameters": asdict(parameters),
            "train_rows": len(self.data.train_rows),
            "precision": config.train.precision,
            "computed": outcome.computed,
            "select_epoch": config.train.select_epoch,
            "kept_epoch": outcome.kept_epoch,
            "epochs": outcome.epochs,
        }

    def evaluate(self) -> Work:
        """Stage 5: the metrics of the trained adapter."""
        model = self.method.load(self.load_backbone(), self.run.file("adapter")).to(self.device)
        result = self._metrics(model, self.report.advance, self.run.checkpoints("eval") / "predictions.jsonl")
        split, primary = self.data.split, self.task.primary
        content = {
            "task": self.task.name,
            "split": split,
            "examples": len(self.data.eval_rows),
            "metrics": result.metrics,
            "primary": primary,
            **result.details,
        }
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in result.predictions]
        write_text(self.run.file("predictions.jsonl"), "".join(lines))
        write_json(self.run.file("metrics.json"), content)
        note = f"{primary} {result.metrics[primary]:.4f} on {len(self.data.eval_rows):,} rows of {split}"
        return note, {"precision": STOCK}

    def packing(self, model: nn.Module, encoded: Dataset) -> Packing | None:
        """Return the way to compute a pass over tokenised rows without padding, if there is one for this model."""
        loss = self.data.kind.loss(0.0)
        return find_packing(model, encoded, self.data.collate, self.config.train, loss)[0]

    def fit(
        self,
        stage: str,
        method: Method,
        model: nn.Module,
        encoded: Dataset,
        settings: TrainConfig,
        steps: int | None = None,
        evaluator: Callable[[nn.Module], dict[str, float]] | None = None,
    ) -> Outcome:
        """Train a model on tokenised rows as the stage `score` or `train` does."""
        loss = self.data.kind.loss(settings.label_smoothing)
        if loss is not None and method.penalty is not None:
            loss = penalised(loss, partial(method.penalty, model), settings)
        return fit(
            model,
            encoded,
            self.data.collate,
            settings,
            self.run.checkpoints(stage),
            seed=self.config.seed,
            device=self.device,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            steps=steps,
            log_each_step=stage == "score",
            evaluator=evaluator,
            primary=self.task.primary,
            loss=loss,
            stepper=method.stepper,
            report=self.report,
        )

    def _sampled(self) -> Dataset:
        return self.data.train_encoded.select(read_json(self.run.file("sample.json"))["indices"])

    def _scores_content(self, model: nn.Module, scores: importance.Scores) -> dict[str, Any]:
        return {
            "backbone": self.config.backbone,
            "task": self.task.name,
            "rank": _rank(model),
            "examples": scores.examples,
            "tokens": scores.tokens,
            "modules": [asdict(row) for row in scores.rows],
        }

    def _metrics(
        self, model: nn.Module, progress: Callable[[int, int], None] | None = None, journal: Path | None = None
    ) -> Evaluation:
        data = self.data
        return self.data.kind.evaluate(
            model, self.task, data.eval_rows, data.eval_encoded, data.tokenizer, self.config, progress, journal
        )

    def _start(self, model: nn.Module) -> None:
        """Give the model the values of the adapter that training is to start from, if there is one."""
        if self.config.train.start_from:
            self.report.notice(start_from(model, adapter_folder(self.config.train.start_from)))

    def load_backbone(self) -> PreTrainedModel:
        """Return a fresh copy of the pretrained model. Raises UserError if it has fewer positions than `train.max_length`."""
        model = load_model(
            self.backbone, self.task, self.config.seed, self.data.tokenizer, self.device, self.report.notice
        )
        check_length(model, self.config.train.max_length)
        fused = fused_notice(model, self.config.method.target_projections)
        if fused:
            self.report.notice(fused)
        return model


def read_scores(path: Path) -> list[Scored]:
    """Read the rows of a `scores.json`."""
    try:
        return [Scored(**row) for row in read_json(path)["modules"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold scores ({error}). Make it again with: lora-drop score --force"
        ) from error


def _rank(model: nn.Module) -> int:
    return next(iter(importance.numbered(model).values())).rank
