"""The order of the stages of a run, and which need not be done again: those whose inputs and outputs have not changed since."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from lora_drop.backbones import Backbone, load_model, load_tokenizer, locate, resolve_device
from lora_drop.data import Data
from lora_drop.errors import UserError
from lora_drop.inputs import Inputs
from lora_drop.methods import get_method
from lora_drop.methods.base import Method
from lora_drop.methods.start import check_start
from lora_drop.progress import SILENT, Reporter
from lora_drop.quantization import check_quantization
from lora_drop.runs import Run, digest
from lora_drop.stages import OUTPUTS, Stages, Work
from lora_drop.tasks import get_task
from lora_drop.tasks.base import Source, Task


class Pipeline:
    """The stages of one run."""

    def __init__(self, run: Run, report: Reporter = SILENT, force: bool = False):
        """Work on `run`; `force` repeats stages that are already done."""
        self.run, self.config, self.report, self.force = run, run.config, report, force
        self.task: Task = get_task(self.config.task)
        self.method: Method = get_method(self.config.method.name)
        known = known_sources(run)
        offline, revision = self.config.offline, self.config.data_revision
        source = Source.resolve(self.config.data_dir, offline, revision=revision, known=known, report=report)
        self.device = resolve_device(self.config.device)
        check_quantization(self.config, self.device)
        name, quantization = self.config.backbone, self.config.quantization
        self.backbone: Backbone = locate(name, offline, quantization, known=known.get("backbone"), report=report)
        self.data = Data(self.config, self.task, source, self.backbone, report)
        self.data.kind.check(self.config, self.task)
        if self.config.train.start_from:
            check_start(self.method, self.config.train.start_from)
        self.inputs = Inputs(run, self.task, self.method, self.data)
        self.stages = Stages(run, self.task, self.method, self.backbone, self.data, self.inputs, self.device, report)

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
        if until and until not in stages:
            raise UserError(f"The method {self.method.name} has no stage {until}: it needs no selection of layers.")
        return stages[: stages.index(until) + 1] if until else stages

    def perform(self, stage: str) -> None:
        """Do one stage of the plan, whatever was done before it, unless it is done already."""
        stages = self.stages
        work = {
            "sample": stages.sample,
            "score": stages.score,
            "norms": stages.norms,
            "stability": stages.stability,
            "select": stages.select,
            "train": stages.train,
            "eval": stages.evaluate,
            "trained": stages.trained,
        }[stage]

        def on_device() -> Work:
            note, facts = work()
            where = {"device": str(self.device), "threads": torch.get_num_threads(), "weights": self.backbone.identity}
            return note, {**where, **self.data.used(self._rows_of(stage)), **facts, "sources": self.sources}

        self.run.perform(stage, self.inputs.of(stage), OUTPUTS[stage], on_device, self.force, self.report)

    def _rows_of(self, stage: str) -> list[str]:
        """Return whose rows a stage reads: "train", "eval", both, or none where it reads only what another stage has written."""
        between_epochs = ["eval"] * self.inputs.scored_each_epoch
        return {"select": [], "stability": [], "train": ["train", *between_epochs], "eval": ["eval"]}.get(
            stage, ["train"]
        )

    @property
    def sources(self) -> dict[str, dict[str, str]]:
        """Where the backbone and the rows of each split came from, now or in an earlier process: files, or a commit of the Hub."""
        backbone = {"backbone": self.backbone.origin} if self.backbone.origin else {}
        return {**known_sources(self.run), **backbone, **self.data.source.origins}

    def adopt(self, stage: str, others: Iterable[Run]) -> bool:
        """Take a stage over from another run that has done it from the same inputs; return whether it is done now."""
        return self.run.adopt(stage, self.inputs.of(stage), OUTPUTS[stage], others)

    def one(self, stage: str) -> None:
        """One stage alone. Raises UserError if a stage before it was not done, or was done under another configuration."""
        before = ["sample", "score", "select", "train", "eval"] if self.method.needs_selection else ["train", "eval"]
        if stage not in before:
            raise UserError(
                f"The method {self.method.name} has no stage {stage}: it needs no selection of layers. Use: lora-drop train"
            )
        for upstream in ["train"] if stage == "eval" else before[: before.index(stage)]:
            self.run.require(OUTPUTS[upstream][0], upstream)
            if not self._stands(upstream, stage):
                raise UserError(
                    f"{self.run.file(OUTPUTS[upstream][0])} was made under another configuration, or from other data, than this command has. "
                    f"Repeat it with: lora-drop {upstream} (or all that is needed with: lora-drop run) and the same options."
                )
        beside = [name for name in self.plan() if name in ("norms", "stability")] if stage == "score" else []
        for name in [stage, *beside]:
            self.perform(name)

    def _stands(self, upstream: str, stage: str) -> bool:
        if upstream == "train" and stage == "eval":  # a trained adapter may be evaluated on any split and any rows
            return self.run.manifest["stages"].get("train", {}).get("trained_from") == digest(
                self.inputs.trained_from()
            )
        return self.run.stands(upstream, self.inputs.of(upstream))


def known_sources(run: Run) -> dict[str, dict[str, str]]:
    """Return where the stages of a run that are done have their backbone and rows from: what is repeated takes the same revisions."""
    return {
        name: origin for stage in run.manifest["stages"].values() for name, origin in stage.get("sources", {}).items()
    }


def load_run(path: str | Path, device: str = "auto") -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Load the trained model of a run directory, tied as it was trained, and its tokenizer.

    Args:
        path: a run directory. Its data are not needed, nor the device that it was trained on.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: if the directory is not a run or was not trained yet, or its backbone is not at hand.
    """
    run = Run(path)
    config, task = run.config, get_task(run.config.task)
    adapter, chosen = run.require("adapter", "train"), resolve_device(device)
    known = known_sources(run).get("backbone")
    backbone = locate(config.backbone, config.offline, config.quantization, known=known)
    tokenizer = load_tokenizer(backbone, causal=task.kind == "generation")
    model = get_method(config.method.name).load(load_model(backbone, task, config.seed, tokenizer, chosen), adapter)
    return model.to(chosen).eval(), tokenizer
