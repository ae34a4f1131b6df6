"""The five stages over a run directory: sample, score, select, train, evaluate.

Each stage reads artefacts of the ones before it, writes its own, and is skipped when neither its inputs nor its outputs have changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_drop import importance, sampling, stability
from lora_drop.backbones import Backbone, check_length, load_model, locate, resolve_device
from lora_drop.data import Data
from lora_drop.encoding import batches
from lora_drop.errors import UserError
from lora_drop.evaluation.base import Evaluation
from lora_drop.inputs import Inputs, warmup_rate
from lora_drop.methods import get_method
from lora_drop.methods.base import Method, Stepper
from lora_drop.progress import SILENT, Reporter
from lora_drop.quantization import check_quantization
from lora_drop.runs import Run, digest, read_json, write_folder, write_json, write_text
from lora_drop.selection import Scored, Selection, select
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source, Task
from lora_drop.training import Outcome, fit

Work = tuple[str, dict[str, Any]]
"""A few words about what was done, and facts for `run.json`."""

_OUTPUTS = {
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


class Pipeline:
    """The stages of one run."""

    def __init__(self, run: Run, report: Reporter = SILENT, force: bool = False):
        """Work on `run`; `force` repeats stages that are already done."""
        self.run, self.config, self.report, self.force = run, run.config, report, force
        self.task: Task = get_task(self.config.task)
        self.method: Method = get_method(self.config.method.name)
        source = Source.resolve(self.config.data_dir, self.config.offline)
        self.device = resolve_device(self.config.device)
        check_quantization(self.config, self.device)
        self.backbone: Backbone = locate(self.config.backbone, self.config.offline, self.config.quantization)
        self.data = Data(self.config, self.task, source, self.backbone, report)
        self.kind = self.data.kind
        self.kind.check(self.config, self.task)
        self.inputs = Inputs(run, self.task, self.method, self.data, self.device)

    # --- stages -------------------------------------------------------------------------------------------------------

    def all(self) -> None:
        """Every stage that the method and the configuration need, in order."""
        for stage in self.plan():
            self.perform(stage)

    def plan(self, until: str = "") -> list[str]:
        """Return the names of the stages that `all` performs, or those up to the stage `until`."""
        score = self.config.score
        beside = ["norms"] * bool(score.norms or score.bootstrap) + ["stability"] * bool(score.bootstrap)
        before = ["sample", "score", *beside, "select"] if self.method.needs_selection else []
        stages = [*before, "train", "eval", *["trained"] * (score.trained and self.method.needs_selection)]
        return stages[: stages.index(until) + 1] if until else stages

    def perform(self, stage: str) -> None:
        """Do one stage of the plan, whatever was done before it, unless it is done already.

        | stage | what it does |
        |---|---|
        | `sample` | stage 1 |
        | `score` | stage 2: warm-up LoRA on the sample, then the importance of every LoRA |
        | `norms` | beside it, if configured: ‖ΔW x‖² of each example |
        | `stability` | beside it, if configured: how far the importances can be trusted |
        | `select` | stage 3 |
        | `train` | stage 4: a fresh model under the selection, trained on the whole training set |
        | `eval` | stage 5 |
        | `trained` | after it, if configured: the importances of the trained adapter on the sample |
        """
        work = {
            "sample": self._sample,
            "score": self._score,
            "norms": self._keep_norms,
            "stability": self._bootstrap,
            "select": self._select,
            "train": self._train,
            "eval": self._evaluate,
            "trained": self._score_trained,
        }[stage]

        def on_device() -> Work:
            note, facts = work()
            return note, {**facts, "device": str(self.device), "threads": torch.get_num_threads()}

        self.run.perform(stage, self.inputs.of(stage), _OUTPUTS[stage], on_device, self.force, self.report)

    def adopt(self, stage: str, others: Iterable[Run]) -> bool:
        """Take a stage over from another run that has done it from the same inputs; return whether it is done now."""
        return self.run.adopt(stage, self.inputs.of(stage), _OUTPUTS[stage], others)

    def one(self, stage: str) -> None:
        """One stage alone. Raises UserError if a stage before it was not done, or was done under another configuration."""
        before = ["sample", "score", "select", "train", "eval"] if self.method.needs_selection else ["train", "eval"]
        if stage not in before:
            raise UserError(
                f"The method {self.method.name} has no stage {stage}: it needs no selection of layers. Use: lora-drop train"
            )
        for upstream in ["train"] if stage == "eval" else before[: before.index(stage)]:
            self.run.require(_OUTPUTS[upstream][0], upstream)
            if not self._stands(upstream, stage):
                raise UserError(
                    f"{self.run.file(_OUTPUTS[upstream][0])} was made under another configuration, or from other data, than this command has. "
                    f"Repeat it with: lora-drop {upstream} (or all that is needed with: lora-drop run) and the same options."
                )
        beside = [name for name in self.plan() if name in ("norms", "stability")] if stage == "score" else []
        for name in [stage, *beside]:
            self.perform(name)

    # --- what decides whether a stage still stands ----------------------------------------------------------------------

    def _stands(self, upstream: str, stage: str) -> bool:
        if upstream == "train" and stage == "eval":  # a trained adapter may be evaluated on any split and any rows
            return self.run.manifest.get("trained_from") == digest(self.inputs.trained_from())
        return self.run.stands(upstream, self.inputs.of(upstream))

    # --- what the stages do -------------------------------------------------------------------------------------------

    def _sample(self) -> Work:
        rows, ratio = self.data.train_rows, self.config.sample.ratio
        size = max(1, round(ratio * len(rows)))
        drawn = sampling.stratified_sample(self.task.strata(rows), size, self.config.seed)
        if drawn.raised:
            self.report.notice(f"too small to split, one row each was taken: {', '.join(drawn.raised)}")
        strata = {name: {"population": total, "sample": taken} for name, (total, taken) in drawn.strata.items()}
        content = {
            "task": self.task.name,
            "seed": self.config.seed,
            "ratio": ratio,
            "population": len(rows),
            "size": len(drawn.indices),
        }
        write_json(self.run.file("sample.json"), {**content, "strata": strata, "indices": list(drawn.indices)})
        facts = {"data": {"train": self.data.train_digest}}
        return f"{len(drawn.indices):,} of {len(rows):,} rows in {len(strata)} strata", facts

    def _score(self) -> Work:
        config = self.config
        encoded = self._sampled()
        model = get_method("lora").build(self._load_backbone(), config.method, config.seed, None)
        outcome = self._fit("score", model, encoded, config.warmup.epochs, warmup_rate(config), evaluator=None)
        inputs = (batch for _, batch in batches(encoded, self.data.collate, self.data.batch_size))
        scores = importance.score(
            model, inputs, progress=lambda done: self.report.advance(done, len(encoded), "scoring")
        )
        with write_folder(self.run.file("warmup")) as folder:
            get_method("lora").save(model, folder)
        write_json(self.run.file("scores.json"), self._scores_content(model, scores))
        seen = f"{scores.examples:,} examples, {scores.tokens:,} tokens"
        facts = {"warmup_steps": outcome.steps}
        return f"{len(scores.rows)} LoRAs on {seen}, after {outcome.steps:,} warm-up steps", facts

    def _keep_norms(self) -> Work:
        encoded = self._sampled()
        model = get_method("lora").load(self._load_backbone(), self.run.file("warmup")).to(self.device)
        chunks = list(batches(encoded, self.data.collate, self.data.batch_size))
        scores = importance.score(model, (batch for _, batch in chunks), per_example=True)
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
        return f"{scores.examples:,} examples of {len(modules)} LoRAs", {}

    def _bootstrap(self) -> Work:
        method, resamples = self.config.method, self.config.score.bootstrap
        scored = read_scores(self.run.file("scores.json"))
        norms = {row["name"]: row["norms"] for row in read_json(self.run.file("norms.json"))["modules"]}
        rule: dict[str, Any] = {"threshold": method.threshold, "budget": method.budget, "share": method.share}
        rule["seed"] = self.config.seed
        rows = stability.bootstrap(scored, norms, resamples, **rule)
        content = {"resamples": resamples, "confidence": stability.CONFIDENCE, **rule, "modules": rows}
        write_json(self.run.file("stability.json"), content)
        certain = sum(row["retained"] in (0, 1) for row in rows)
        return f"{resamples:,} resamples: {certain} of {len(rows)} LoRAs always on the same side", {}

    def _score_trained(self) -> Work:
        model = self.method.load(self._load_backbone(), self.run.file("adapter")).to(self.device)
        inputs = (batch for _, batch in batches(self._sampled(), self.data.collate, self.data.batch_size))
        scores = importance.score(model, inputs)
        write_json(self.run.file("scores_trained.json"), self._scores_content(model, scores))
        return f"{len(scores.rows)} LoRAs on {scores.examples:,} examples", {}

    def _select(self) -> Work:
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

    def _train(self) -> Work:
        config = self.config
        selection = (
            Selection.from_json(read_json(self.run.file("selection.json"))) if self.method.needs_selection else None
        )
        model = self.method.build(self._load_backbone(), config.method, config.seed, selection)
        if self.method.prepare is not None:
            self.method.prepare(model.to(self.device), self.data.some_batches(self.method.examples))
        parameters = self.method.count(model)
        self.run.forget("eval", _OUTPUTS["eval"])
        outcome = self._fit(
            "train",
            model,
            self.data.train_encoded,
            config.train.epochs,
            config.train.learning_rate,
            (lambda trained: self._metrics(trained).metrics) if self.inputs.scored_each_epoch else None,
            self.method.stepper,
        )
        with write_folder(self.run.file("adapter")) as folder:
            self.method.save(model, folder)
        kept = f"kept epoch {outcome.kept_epoch:g} ({config.train.select_epoch})"
        return f"{parameters.adapter:,} trainable parameters (head {parameters.head:,}); {kept}", {
            "trained_from": digest(self.inputs.trained_from()),
            "trainable_parameters": asdict(parameters),
            "train_rows": len(self.data.train_rows),
            "data": {"train": self.data.train_digest, "eval": self.data.eval_digest},
            "select_epoch": config.train.select_epoch,
            "kept_epoch": outcome.kept_epoch,
            "epochs": outcome.epochs,
        }

    def _evaluate(self) -> Work:
        model = self.method.load(self._load_backbone(), self.run.file("adapter")).to(self.device)
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
        return f"{primary} {result.metrics[primary]:.4f} on {len(self.data.eval_rows):,} rows of {split}", {}

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

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _fit(
        self,
        stage: str,
        model: nn.Module,
        encoded: Dataset,
        epochs: float,
        rate: float,
        evaluator: Callable[[nn.Module], dict[str, float]] | None,
        stepper: Callable[[nn.Module, int], Stepper] | None = None,
    ) -> Outcome:
        return fit(
            model,
            encoded,
            self.data.collate,
            self.config.train,
            self.run.checkpoints(stage),
            seed=self.config.seed,
            device=self.device,
            epochs=epochs,
            learning_rate=rate,
            evaluator=evaluator,
            primary=self.task.primary,
            loss=self.kind.loss(self.config.train.label_smoothing),
            stepper=stepper,
            report=self.report,
        )

    def _metrics(
        self, model: nn.Module, progress: Callable[[int, int], None] | None = None, journal: Path | None = None
    ) -> Evaluation:
        data = self.data
        return self.kind.evaluate(
            model, self.task, data.eval_rows, data.eval_encoded, data.tokenizer, self.config, progress, journal
        )

    def _load_backbone(self) -> PreTrainedModel:
        model = load_model(self.backbone, self.task, self.config.seed, self.data.tokenizer, self.device)
        check_length(model.config, self.config.train.max_length)
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
    layer: Any = next(iter(importance.lora_layers(model).values()))
    (adapter,) = layer.active_adapters
    return layer.r[adapter]


def load_run(path: str | Path, device: str = "auto") -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load the trained model of a run directory, tied as it was trained, and its tokenizer.

    Raises UserError if the directory is not a run or was not trained yet.
    """
    pipeline = Pipeline(Run(path))
    model = pipeline.method.load(pipeline._load_backbone(), pipeline.run.require("adapter", "train"))
    return model.to(resolve_device(device)).eval(), pipeline.data.tokenizer
