"""DART 1.1.1 (Nan et al. 2021): generate a sentence from a set of (subject, relation, object) triples.

Every annotation of an item is a separate training row (62,659 from 30,526 items). An evaluation row is an item with all
its annotations as references. One official test reference is the empty string; it is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset

from lora_drop.errors import UserError
from lora_drop.tasks.base import Source, Task, stratum_column, text_rows
from lora_drop.tasks.files import official_file, read_json_list, some, text_in
from lora_drop.tasks.hub_rows import PARQUET, HubRows

PROMPT = "{triples}\n\nThese facts in words:\n"
"""The prompt; the annotation follows."""

FILES = {
    "train": "dart/dart-v1.1.1-full-train.json",
    "validation": "dart/dart-v1.1.1-full-dev.json",
    "test": "dart/dart-v1.1.1-full-test.json",
}
HUB = HubRows("GEM/dart", revision=PARQUET)

Annotations = list[tuple[str, str]]
"""(source, text) of each annotation of an item."""


def load(source: Source, split: str) -> Dataset:
    """Load "train" (`id, prompt, completion, stratum`), "test" or "validation" (`id, prompt, references`)."""
    items = [(PROMPT.format(triples=linearise(triples)), given) for triples, given in _items(source, split)]
    if split != "train":
        references = [[text for _, text in annotations] for _, annotations in items]
        return text_rows(split, [prompt for prompt, _ in items], references=references)
    pairs = [(prompt, origin, text) for prompt, annotations in items for origin, text in annotations]
    return text_rows(
        split,
        [prompt for prompt, _, _ in pairs],
        completion=[text for _, _, text in pairs],
        stratum=[origin for _, origin, _ in pairs],
    )


def linearise(triples: Sequence[Sequence[str]]) -> str:
    """Return the triples as one line: `subject : relation : object | subject : relation : object`."""
    return " | ".join(" : ".join(triple) for triple in triples)


def _items(source: Source, split: str) -> Iterator[tuple[list[list[str]], Annotations]]:
    path = official_file(source, FILES[split], split, str(HUB))
    if path is None:
        yield from _hub_items(source, split)
        return
    for line, item in some(path, read_json_list(path)):
        yield _triples(path, line, item), _annotations(path, line, item)


def _triples(path: Path, line: int, item: Any) -> list[list[str]]:
    triples = item.get("tripleset") if isinstance(item, dict) else None
    if not isinstance(triples, list) or not all(_is_triple(triple) for triple in triples):
        raise UserError(f"{path}, line {line}: 'tripleset' is not a list of [subject, relation, object] of texts")
    return triples


def _is_triple(triple: Any) -> bool:
    return isinstance(triple, list) and [type(part) for part in triple] == [str, str, str]


def _annotations(path: Path, line: int, item: Any) -> Annotations:
    annotations = item.get("annotations")
    if not isinstance(annotations, list) or not annotations:
        raise UserError(f"{path}, line {line}: 'annotations' is not a list with at least one annotation")
    return [
        (text_in(path, line, annotation, "source"), text_in(path, line, annotation, "text"))
        for annotation in annotations
    ]


def _hub_items(source: Source, split: str) -> Iterator[tuple[list[list[str]], Annotations]]:
    """Yield the items of GEM's copy. It has the official rows, but its training rows are already single annotations."""
    for row in HUB.load(source, split, FILES[split], ("tripleset", "target", "target_sources", "references")):
        texts = list(row["references"]) if split != "train" and row["references"] else [row["target"]]
        origins = list(row["target_sources"]) or ["unknown"]
        yield row["tripleset"], [(origins[min(number, len(origins) - 1)], text) for number, text in enumerate(texts)]


TASK = Task(
    name="dart",
    version=1,
    kind="generation",
    description="triples to a sentence",
    load=load,
    strata=stratum_column,
    metrics=("sacrebleu", "rouge_l", "rouge_l_mean", "dart_bleu", "char_bleu4", "rouge_chinese_l"),
    primary="sacrebleu",
    title="DART",
    splits=("test", "validation"),
    files=FILES,
    hub=f"{HUB.name} ({PARQUET})",
    official_rows={"train": 62659, "validation": 2768, "test": 5097},
)
