"""A look at the user's own data before a long run: what is detected, what will be cut, what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from statistics import mean
from typing import Any

from datasets import Dataset

from lora_drop.config.identity import as_yaml
from lora_drop.config.schema import Config, DataConfig
from lora_drop.errors import first_three
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.task import OwnData

PERCENTS = (50, 90, 99, 100)
AT_A_TIME = 1000
UNLIMITED = 2**30


def inspect(config: Config, source: Source, backbone: bool) -> dict[str, Any]:
    """Return what is found in the data of a configuration, as JSON-like values.

    Args:
        config: a configuration with `data`.
        source: says if the Hub may be asked.
        backbone: True to measure lengths in tokens of `config.backbone`, False to measure them in words.

    Raises:
        UserError: for anything that a run would refuse, too.
    """
    data = OwnData(config.data, source)
    rows = {split: data.load(source, split) for split in data.members}
    train = data.texts["train"]
    return {
        "data": data.splits.train.name,
        "kind": data.reading.kind,
        "text": data.reading.template or data.reading.columns,
        "label": data.reading.label,
        "rows": {split: len(part) for split, part in rows.items()},
        "labels": _labels(data, rows),
        "lengths": _lengths(config, rows["train"], data, backbone),
        "repeated": {"within train": len(train) - len(set(train)), "of validation in train": data.known},
        "empty": [place for found in data.surveys.values() for place in found.empty],
        "doubt": data.doubt,
        "unlabelled": [place for found in data.surveys.values() for place in found.unlabelled],
        "yaml": yaml_to_paste(config, data),
    }


def yaml_to_paste(config: Config, data: OwnData) -> str:
    """Return a configuration, as YAML, that states what was detected."""
    reading, given = data.reading, config.data
    found: dict[str, Any] = {
        key: value
        for key, value in vars(given).items()
        if key in ("path", "dataset_info", "name", "split", "validation") and value != getattr(DataConfig(), key)
    }
    found["kind"] = reading.kind
    if reading.template:
        found["template"] = reading.template
    elif reading.texts:
        found["text"] = reading.texts[0] if len(reading.texts) == 1 else list(reading.texts)
    if reading.label:
        found["label"] = reading.label
    found["metric"] = list(data.task().metrics)
    return as_yaml({"data": found})


def _texts(rows: Dataset) -> Iterator[tuple[str, ...]]:
    columns = [name for name in ("text", "text_pair", "prompt", "asked") if name in rows.column_names]
    for batch in rows.iter(AT_A_TIME):
        yield from zip(*(batch[name] for name in columns), strict=True)


def _labels(data: OwnData, rows: dict[str, Dataset]) -> dict[str, Any]:
    """Return the number of rows of each label, by split; for numbers, their least, mean and greatest value."""
    names, number = data.reading.labels, data.task().number
    if data.reading.kind == "generation":
        return {}
    if not names:
        return {
            split: {name: number(of(part["label"])) for name, of in (("least", min), ("mean", mean), ("most", max))}
            for split, part in rows.items()
        }
    counts: dict[str, Any] = {}
    for split, part in rows.items():
        held = part["label"]
        several = data.reading.kind == "multilabel"
        total = Counter(index for row in held for index, on in enumerate(row) if on) if several else Counter(held)
        counts[split] = {name: total[index] for index, name in enumerate(names)}
    return counts


def _lengths(config: Config, rows: Dataset, data: OwnData, backbone: bool) -> dict[str, Any]:
    """Return percentiles of the lengths of training rows and, if in tokens, the number of rows that will be cut."""
    if not backbone:
        return {"unit": "words", **_percentiles([sum(len(text.split()) for text in texts) for texts in _texts(rows)])}
    from lora_drop.data.batches import row_lengths
    from lora_drop.evaluation.kinds import get_kind
    from lora_drop.models.backbones import load_tokenizer, locate

    kind = get_kind(data.task())
    tokenizer = load_tokenizer(locate(config.backbone, config.offline, weights=False), kind.causal)
    limit, whole = config.train.max_length, replace(config, train=replace(config.train, max_length=UNLIMITED))
    lengths: list[int] = []
    for start in range(0, len(rows), AT_A_TIME):
        part = rows.select(range(start, min(start + AT_A_TIME, len(rows))))
        lengths += row_lengths(kind.encode_training(part, tokenizer, whole, "training")[0])
    cut = sum(length > limit for length in lengths)
    return {"unit": "tokens", **_percentiles(lengths), "max_length": limit, "cut": cut}


def _percentiles(lengths: list[int]) -> dict[str, int]:
    """Return, for each of PERCENTS, the length that this share of all texts does not exceed."""
    ordered = sorted(lengths)
    return {f"{percent} %": ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for percent in PERCENTS}


def as_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was found as a table of two columns."""
    lengths = {key: value for key, value in found["lengths"].items() if key not in ("unit", "max_length", "cut")}
    rows = [
        ("data", found["data"]),
        ("kind", found["kind"]),
        ("text", found["text"] if isinstance(found["text"], str) else " and ".join(found["text"])),
        ("label", found["label"] or "(the answers)"),
        ("rows", _counted(found["rows"])),
        *((f"labels, {split}", _counted(counts)) for split, counts in found["labels"].items()),
        (f"{found['lengths']['unit']} a row", ", ".join(f"{name}: {value:,}" for name, value in lengths.items())),
    ]
    if "cut" in found["lengths"]:
        cut, limit = found["lengths"]["cut"], found["lengths"]["max_length"]
        rows.append(("cut", f"{cut:,} rows are longer than train.max_length={limit}"))
    rows.append(("repeated texts", _counted(found["repeated"])))
    for key, name in (("empty", "rows without text"), ("unlabelled", "rows without label")):
        places = found[key]
        rows.append((name, f"{len(places):,}" + (f" ({first_three(places)})" if places else "")))
    if found["doubt"]:
        rows.append(("check", found["doubt"]))
    return [{"": name, "found": value} for name, value in rows]


def _counted(counts: dict[str, Any]) -> str:
    return ", ".join(
        f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.4g}" for name, value in counts.items()
    )
