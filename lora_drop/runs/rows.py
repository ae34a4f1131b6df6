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
from lora_drop.evaluation.kinds import Kind, get_kind
from lora_drop.models.backbones import Backbone, load_config, load_tokenizer
from lora_drop.progress import Reporter
from lora_drop.pruning.sampling import stratified_sample
from lora_drop.tasks.base import Source, Task


class Data:
    """Training and evaluation rows of one configuration, as text and as tokens."""

    def __init__(self, config: Config, task: Task, source: Source, backbone: Backbone, report: Reporter):
        """Read `task` from `source` and encode it for `backbone`; `report` gets a notice of rows left out or cut."""
        self.config, self.task, self.source, self.backbone, self.report = config, task, source, backbone, report
        self.kind: Kind = get_kind(task)
        self.population: dict[str, int] = {}
        """Rows of each split that was read, before a limit."""
        self.told: dict[str, list[str]] = {}
        """What was cut or left out of the rows of each part ("train", "held_out", "eval") that was tokenised."""
        self.split = task.check_split(config.eval.split or task.splits[0])

    def check(self, parts: Collection[str]) -> None:
        """Read the rows of parts ("train", "eval"), and ask the backbone if it can do the task. Raises UserError."""
        load_config(self.backbone, self.task)
        if "train" in parts:
            _ = self._training
        if "eval" in parts:
            _ = self.eval_rows

    @cached_property
    def train_rows(self) -> Dataset:
        """The training rows, limited if so configured, without those that are held out."""
        return self._training[0]

    @cached_property
    def held_out_rows(self) -> Dataset:
        """The rows of the training split that nothing is trained on (`train.held_out`)."""
        return self._training[1]

    @cached_property
    def _training(self) -> tuple[Dataset, Dataset]:
        """What is trained on, and what is held out."""
        rows, share = self._rows("train", self.config.limit.train), self.config.train.held_out
        if not share:
            return rows, rows.select([])
        drawn = stratified_sample(self.task.strata(rows), max(1, round(share * len(rows))), self.config.seed).indices
        rest = sorted(set(range(len(rows))) - set(drawn))
        return rows.select(rest), rows.select(drawn)

    @cached_property
    def eval_rows(self) -> Dataset:
        """The evaluation rows, limited if so configured."""
        return self._rows(self.split, self.config.limit.eval)

    @cached_property
    def train_digest(self) -> str:
        """Identifies the content of the training rows."""
        return content_digest(self.train_rows)

    @cached_property
    def held_out_digest(self) -> str:
        """Identifies the content of the rows that are held out."""
        return content_digest(self.held_out_rows)

    @cached_property
    def eval_digest(self) -> str:
        """Identifies the content of the evaluation rows."""
        return content_digest(self.eval_rows)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer. A backbone that cannot do the task is refused before anything is tokenised."""
        self.report.doing("loading the tokenizer")
        load_config(self.backbone, self.task)
        return load_tokenizer(self.backbone, self.kind.causal, self.report.notice)

    @cached_property
    def collate(self) -> Collate:
        """Pads training rows to a batch."""
        return self.kind.collate(self.tokenizer)

    @property
    def batch_size(self) -> int:
        """Examples at a time in training, and so in every pass over training rows."""
        return split_batch(self.config.train.batch_size, self.config.train.device_batch_size, processes.size())[0]

    @cached_property
    def train_encoded(self) -> Dataset:
        """The tokenised training rows."""
        return self._encoded("train", "training", self.train_rows, self.train_digest, self.kind.encode_training)

    @cached_property
    def held_out_encoded(self) -> Dataset:
        """The tokenised rows that are held out."""
        encode = self.kind.encode_evaluation
        return self._encoded("held_out", "held-out", self.held_out_rows, self.held_out_digest, encode)

    @cached_property
    def eval_encoded(self) -> Dataset:
        """The tokenised evaluation rows."""
        return self._encoded("eval", "evaluation", self.eval_rows, self.eval_digest, self.kind.encode_evaluation)

    def used(self, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return what `run.json` says of the rows that a stage has read.

        Args:
            parts: "train", "eval", or both.

        Returns:
            `data`, the hash of the rows of each part; `limited`, the number of rows of each part of which not all are
            used; and `cut`, where something was cut or left out of them when they were tokenised.
        """
        rows = {part: sum(map(len, self._training)) if part == "train" else len(self.eval_rows) for part in parts}
        whole = {part: self.population["train" if part == "train" else self.split] for part in parts}
        return {
            "data": {part: self.train_digest if part == "train" else self.eval_digest for part in parts},
            "limited": {part: rows[part] for part in parts if rows[part] != whole[part]},
            "cut": {part: self.told[part] for part in parts if self.told.get(part)},
        }

    def some_batches(self, examples: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of at most `examples` training rows, drawn by the seed."""
        rows = self.train_encoded
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

    def _encoded(self, part: str, what: str, rows: Dataset, content: str, encode: Callable[..., Encoded]) -> Dataset:
        """Return the tokens of rows, from the cache if they were made before, and tell what is to be said of them."""
        self.report.doing(f"tokenising {len(rows):,} {what} rows")
        key = entry_key(content, what, self.kind.causal, self.tokenizer, self.backbone.identity, self.config)
        made = partial(encode, rows, self.tokenizer, self.config, what)
        encoded, notices = kept_or_made(cache_folder(), key, rows, made, self.report)
        self.told[part] = notices
        for notice in notices:
            self.report.notice(notice)
        return encoded
