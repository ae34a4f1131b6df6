"""The run to export, and the public name of its backbone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lora_drop.errors import UserError
from lora_drop.files import read_json
from lora_drop.models.base import public_name
from lora_drop.runs.facts import Facts, read_facts
from lora_drop.runs.job import known_sources
from lora_drop.runs.store import Run

if TYPE_CHECKING:
    from lora_drop.tasks.base import Task


WITHOUT_HEAD = ("Model", "ForMaskedLM", "ForCausalLM", "ForPreTraining", "ForConditionalGeneration")
"""Ends of the names of transformers' classes that are saved without a classifier."""


@dataclass(frozen=True)
class ExportedRun:
    """A run directory to export."""

    run: Run
    facts: Facts
    given: str | None = None
    """Name of the backbone as given by the user."""

    @classmethod
    def open(cls, path: str | Path, base: str | None = None) -> ExportedRun:
        """Open a run directory. Raises UserError if it is not one."""
        facts = read_facts(path)
        return cls(Run(path), facts, base)

    @cached_property
    def origin(self) -> dict[str, str]:
        """Repository and commit of a backbone from the Hub; empty for others."""
        return known_sources(self.run).get("backbone", {})

    @cached_property
    def known(self) -> str | None:
        """Name of the backbone that is valid on other machines; None for a local folder."""
        return self.given or public_name(self.run.config.backbone, self.origin)

    @property
    def base(self) -> str:
        """The same as `known`. Raises UserError if it is None."""
        name = self.known
        if name is None:
            raise UserError(
                f"The backbone of {self.run.path} is the folder {self.run.config.backbone}, which other machines do "
                "not have. Name the model in it with --base organisation/name (or name the same folder, if the "
                "export is for this machine)."
            )
        return name

    @property
    def revision(self) -> str | None:
        """Commit of the backbone's repository, if known."""
        return None if self.given else self.origin.get("commit")

    @property
    def replaces_head(self) -> bool:
        """False if the backbone is known to have no classifier of another size than the adapter's.

        Its configuration tells. If that is not on this machine, nothing is known.
        """
        from lora_drop.models.backbones import kind_of, locate

        config = self.run.config
        if kind_of(config.backbone).models is not None:  # packaged, or random: without a head
            return False
        try:
            located = locate(config.backbone, offline=True, weights=False, known=self.origin or None)
            found = read_json(Path(located.path) / "config.json")
        except UserError:
            return True
        saved_as, labels = found.get("architectures") or [""], found.get("id2label")
        size = len(labels) if labels else 2  # transformers leaves the default out
        return size != self.task.outputs and not all(str(name).endswith(WITHOUT_HEAD) for name in saved_as)

    @property
    def task(self) -> Task:
        """The task; for own data, from the record that the adapter keeps."""
        from lora_drop.runs.load import trained_task

        return trained_task(self.run)

    @property
    def adapter(self) -> Path:
        """Folder of the trained adapter. Raises UserError if it is missing or was changed after training."""
        self.run.require("adapter", "train")
        return self.facts.whole("adapter")
