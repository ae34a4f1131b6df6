"""The rows of a run and their tokens: loaded, limited and encoded when a stage first needs them."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lora_drop import processes
from lora_drop.config.schema import Config
from lora_drop.data.batches import split_batch
from lora_drop.data.content import content_digest
from lora_drop.data.sentences import Collate, Encoded, batches
from lora_drop.data.token_cache import cache_folder, entry_key, kept_or_made
from lora_drop.errors import UserError
from lora_drop.evaluation.kinds import Kind, get_kind
from lora_drop.models.backbones import Backbone, load_config, load_tokenizer
from lora_drop.progress import Reporter
from lora_drop.pruning.sampling import stratified_sample
from lora_drop.tasks.base import Source, Task


class Part:
    """One part of the rows, as text and as tokens, each made when first needed."""

    def __init__(self, name: str, read: Callable[[], Dataset], encode: Callable[[Part], Encoded]):
        """Store `read`, which returns the rows, `encode`, which returns their tokens and notices, and their `name`."""
        self.name, self._read, self._encode = name, read, encode
        self.notices: list[str] = []
        """Notices about what was cut or left out in tokenisation."""

    @cached_property
    def rows(self) -> Dataset:
        """The rows, limited if the configuration says so."""
        return self._read()

    @cached_property
    def digest(self) -> str:
        """Hash of the rows' content."""
        return content_digest(self.rows)

    @cached_property
    def encoded(self) -> Dataset:
        """The tokenised rows."""
        encoded, self.notices = self._encode(self)
        return encoded


class Data:
    """Training and evaluation rows of one configuration, as text and as tokens."""

    def __init__(self, config: Config, task: Task, source: Source, backbone: Backbone, report: Reporter):
        """Read `task` from `source` and encode it for `backbone`; `report` receives notices of rows left out or cut."""
        self.config, self.task, self.source, self.backbone, self.report = config, task, source, backbone, report
        self.kind: Kind = get_kind(task)
        self.population: dict[str, int] = {}
        """Number of rows of each split read so far, before any limit."""
        self.split = task.check_split(config.eval.split or task.splits[0])
        self.train = Part("training", lambda: self._training[0], self._encoded)
        """Rows to train on."""
        self.held_out = Part("held-out", lambda: self._training[1], self._encoded)
        """Rows of the training split that are held out of training (`train.held_out`)."""
        self.eval = Part("evaluation", lambda: self._rows(self.split, config.limit.eval), self._encoded)
        """Rows to evaluate on."""
        self.parts = {"train": self.train, "held_out": self.held_out, "eval": self.eval}

    def check(self, parts: Collection[str]) -> None:
        """Read the rows of parts ("train", "eval"). Raises UserError if it fails or the backbone cannot do the task."""
        load_config(self.backbone, self.task)
        for name, part in self.parts.items():
            if name in parts:
                _ = part.rows

    @cached_property
    def _training(self) -> tuple[Dataset, Dataset]:
        """Rows to train on, and rows held out. Raises UserError if none is left to train on."""
        rows, share = self._rows("train", self.config.limit.train), self.config.train.held_out
        if not share:
            return rows, rows.select([])
        size = max(1, round(share * len(rows)))
        if size >= len(rows):
            raise UserError(
                f"train.held_out={share:g} of {len(rows):,} training rows leaves none to train on. Lower it, or use more rows."
            )
        drawn = stratified_sample(self.task.strata(rows), size, self.config.seed).indices
        rest = sorted(set(range(len(rows))) - set(drawn))
        return rows.select(rest), rows.select(drawn)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer. A backbone that cannot do the task is refused before anything is tokenised."""
        self.report.doing("loading the tokenizer")
        load_config(self.backbone, self.task)
        return load_tokenizer(self.backbone, self.kind.causal, self.report.notice)

    @cached_property
    def collate(self) -> Collate:
        """The function that pads training rows to a batch."""
        return self.kind.collate(self.tokenizer)

    @property
    def batch_size(self) -> int:
        """Examples that a device computes at a time in training, and so in every pass over training rows."""
        return split_batch(self.config.train.batch_size, self.config.train.device_batch_size, processes.size())[0]

    def used(self, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the entries of `run.json` about the rows that a stage has read.

        Args:
            parts: "train", "eval", or both.

        Returns:
            `data`, the hash of each part's rows; `limited`, the number of rows of each part that is not used in full;
            and `cut`, the notices of each part from which tokenisation cut or left out something.
        """
        rows = {part: sum(map(len, self._training)) if part == "train" else len(self.eval.rows) for part in parts}
        whole = {part: self.population["train" if part == "train" else self.split] for part in parts}
        return {
            "data": {part: self.parts[part].digest for part in parts},
            "limited": {part: rows[part] for part in parts if rows[part] != whole[part]},
            "cut": {part: self.parts[part].notices for part in parts if self.parts[part].notices},
        }

    def some_batches(self, examples: int) -> Iterator[dict[str, torch.Tensor]]:
        """Return batches of at most `examples` training rows, drawn by the seed."""
        rows = self.train.encoded
        drawn = random.Random(self.config.seed).sample(range(len(rows)), min(examples, len(rows)))
        return (batch for _, batch in batches(rows.select(drawn), self.collate, self.batch_size))

    def _rows(self, split: str, limit: int | None) -> Dataset:
        self.report.doing(f"reading the {split} rows")
        rows = self.task.load(self.source, split)
        self.population[split] = len(rows)
        if limit is None or limit >= len(rows):
            return rows
        drawn = stratified_sample(self.task.strata(rows), limit, self.config.seed)
        self.report.notice(f"limited to {len(drawn.indices):,} of {len(rows):,} {split} rows")
        return rows.select(drawn.indices)

    def _encoded(self, part: Part) -> Encoded:
        """Return the tokens of a part's rows, from the cache if possible, and report the notices about them."""
        rows, name = part.rows, part.name
        self.report.doing(f"tokenising {len(rows):,} {name} rows")
        encode = self.kind.encode_training if part is self.train else self.kind.encode_evaluation
        key = entry_key(part.digest, name, self.kind.causal, self.tokenizer, self.backbone.identity, self.config)
        made = partial(encode, rows, self.tokenizer, self.config, name)
        encoded, notices = kept_or_made(cache_folder(), key, rows, made, self.report)
        for notice in notices:
            self.report.notice(notice)
        return encoded, notices
