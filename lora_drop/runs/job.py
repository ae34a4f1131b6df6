"""One run in progress: its directory, its configuration, and the objects built from them when a stage first needs one.

Importing this module imports neither torch nor transformers, so that a stage that only reads JSON starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_drop import processes
from lora_drop.config.identity import subject
from lora_drop.config.schema import Config
from lora_drop.errors import UserError
from lora_drop.methods.folder import adapter_folder, adapter_identity
from lora_drop.progress import SILENT, Reporter
from lora_drop.registry import CRITERIA, METHODS, TASKS, needs_selection
from lora_drop.runs.store import Run

if TYPE_CHECKING:
    import torch

    from lora_drop.methods.base import Method
    from lora_drop.models.backbones import Backbone
    from lora_drop.runs.rows import Data
    from lora_drop.tasks.base import Source, Task


@dataclass(frozen=True)
class Job:
    """A run, its reporter, and the option to repeat finished stages."""

    run: Run
    report: Reporter = SILENT
    force: bool = False
    others: Callable[[], Iterable[Run]] = tuple
    """Returns the other runs of the same grid; this run may reuse their work."""

    @property
    def config(self) -> Config:
        """The run's configuration."""
        return self.run.config

    @property
    def subject(self) -> str:
        """The task's name for people."""
        return subject(self.config.task, vars(self.config.data))

    @cached_property
    def task(self) -> Task:
        """The task."""
        if self.config.data.given:
            from lora_drop.tasks.own.task import OwnData

            return OwnData(self.config.data, self.source).task()
        return TASKS.get(self.config.task)

    @cached_property
    def method(self) -> Method:
        """The method."""
        return METHODS.get(self.config.method.name)

    @cached_property
    def device(self) -> torch.device:
        """The device of this process; on GPUs, each of several processes has its own."""
        from lora_drop.models.backbones import resolve_device

        return processes.own_device(resolve_device(self.config.device))

    @cached_property
    def source(self) -> Source:
        """The source of the rows."""
        from lora_drop.tasks.base import Source

        offline, revision = self.config.offline, self.config.data_revision
        return Source.resolve(
            self.config.data_dir, offline, revision=revision, known=known_sources(self.run), report=self.report
        )

    @cached_property
    def backbone(self) -> Backbone:
        """The located pretrained model."""
        from lora_drop.models.backbones import locate

        known = known_sources(self.run).get("backbone")
        self.report.doing(f"looking up {self.config.backbone}")
        return locate(
            self.config.backbone, self.config.offline, self.config.quantization, known=known, report=self.report
        )

    @cached_property
    def data(self) -> Data:
        """The rows and their tokens."""
        from lora_drop.runs.rows import Data

        return Data(self.config, self.task, self.source, self.backbone, self.report)

    def check(self) -> None:
        """Raise UserError before work starts for anything that would end it later."""
        from lora_drop.data.batches import split_batch
        from lora_drop.methods.start import check_adapter, check_start
        from lora_drop.models.quantization import check_quantization
        from lora_drop.training.trackers import check_trackers

        check_quantization(self.config, self.device)
        self.data.kind.check(self.config, self.task)
        _check_criterion(self.config)
        if self.config.train.report_to:
            check_trackers(self.config.train.report_to)
        split_batch(self.config.train.batch_size, None, processes.size())
        split_batch(self.config.warmup.batch_size or self.config.train.batch_size, None, processes.size())
        for key, name in named_adapters(self.config).items():
            if not Path(self.adapters[key]["folder"]).exists():
                continue  # gone but recorded: the stage that reads it reports it
            if key == "warmup.adapter":
                check_adapter(name, self.task.kind)
            else:
                check_start(self.method, name)

    @property
    def sources(self) -> dict[str, dict[str, str]]:
        """Origins of the backbone, the user's adapters and the rows of each split: files, or a commit of the Hub.

        Includes those recorded by an earlier process.
        """
        backbone = {"backbone": self.backbone.origin} if self.backbone.origin else {}
        return {**known_sources(self.run), **backbone, **self.adapters, **self.source.origins}

    @cached_property
    def adapters(self) -> dict[str, dict[str, str]]:
        """Folder and content hash of the user's adapters that the run starts from, by configuration key.

        For an adapter that is gone, as on another machine, these are the values recorded by the finished stages. Raises
        UserError if an adapter is missing and no stage has recorded it.
        """
        found = {}
        for key, name in named_adapters(self.config).items():
            path = Path(name).expanduser()
            told = [stage.get("sources", {}).get(key, {}) for stage in self.run.manifest["stages"].values()]
            known = [origin for origin in told if origin and Path(origin["folder"]) in (path, path / "adapter")]
            if known and not path.exists():
                found[key] = known[-1]
            else:
                folder = adapter_folder(name, key)
                found[key] = {"folder": str(folder), "content": adapter_identity(folder)}
        return found

    @cached_property
    def scored_each_epoch(self) -> bool:
        """True if the model is evaluated after each epoch: to choose an epoch, or because it costs little."""
        return self.data.kind.scored_each_epoch or self.config.train.select_epoch != "last"

    @property
    def selects(self) -> bool:
        """True if the method needs a selection of layers; known without loading the method."""
        return needs_selection(self.config.method.name)


def named_adapters(config: Config) -> dict[str, str]:
    """Return the user's adapters that a run starts from, by configuration key."""
    named = {"train.start_from": config.train.start_from, "warmup.adapter": config.warmup.adapter}
    return {key: name for key, name in named.items() if name}


def _check_criterion(config: Config) -> None:
    """Raise UserError if values of single examples are asked for and the criterion has none."""
    score = config.score
    asked = "score.bootstrap" if score.bootstrap else "score.norms" if score.norms else ""
    if asked and not CRITERIA.get(score.criterion).additive:
        having = [name for name in CRITERIA.names() if CRITERIA.get(name).additive]
        raise UserError(
            f"{asked} needs a value for each example, but score.criterion={score.criterion} has none: it is not a "
            f"mean over examples. Leave {asked} out, or choose one of {', '.join(having)}."
        )


def known_sources(run: Run) -> dict[str, dict[str, str]]:
    """Return the origins that finished stages recorded, so that repeated work uses the same revisions."""
    return {
        name: origin for stage in run.manifest["stages"].values() for name, origin in stage.get("sources", {}).items()
    }
