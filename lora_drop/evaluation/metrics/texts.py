"""The metrics of generated texts, by name. Each name denotes one protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lora_drop.errors import UserError, closest
from lora_drop.evaluation.metrics.bleu import DartBleu, E2eBleu, SacreBleu
from lora_drop.evaluation.metrics.character import CharBleu4, RougeChineseL, paper_package
from lora_drop.evaluation.metrics.rouge import E2eRougeL, RougeL, RougeStem
from lora_drop.evaluation.metrics.slots import Slots
from lora_drop.evaluation.metrics.text_metric import TextMetric

CLASSES: tuple[type[TextMetric], ...] = (
    SacreBleu,
    RougeL,
    E2eBleu,
    E2eRougeL,
    DartBleu,
    RougeStem,
    CharBleu4,
    RougeChineseL,
    Slots,
)
METRICS: dict[str, type[TextMetric]] = {name: metric for metric in CLASSES for name in metric.names}
"""The class that computes each metric, by the metric's name."""
PACKAGES = {"char_bleu4": ("nltk",), "rouge_chinese_l": ("jieba", "rouge_chinese")}
"""Packages from the extra paper-metrics that a metric needs, by its name."""


@dataclass(frozen=True)
class TextScores:
    """The metrics (0 to 100), how each was computed, and the reason for those that were not; all by name."""

    metrics: dict[str, float]
    signatures: dict[str, str]
    skipped: dict[str, str] = field(default_factory=dict)


def score_texts(
    names: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    as_written: bool = False,
    prompts: Sequence[str] | None = None,
) -> TextScores:
    """Compare texts with references. Metrics that lack a package (extra paper-metrics) or prompts are in `skipped`.

    Args:
        names: Metrics to compute (keys of METRICS); the results keep this order.
        predictions: One text per item.
        references: One or more texts per item.
        as_written: See TextMetric; False suits the raw text of a model.
        prompts: What each text was written for, needed by `slots` only.

    Raises:
        UserError: For an unknown metric, no items, different numbers of predictions and items, or an item without a
            reference.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"Unknown metric {name!r}.{closest(name, list(METRICS))} Metrics: {', '.join(METRICS)}")
    if not predictions or len(predictions) != len(references):
        raise UserError(
            f"There are {len(predictions)} predictions for {len(references)} items; every item needs exactly one."
        )
    if not all(references):
        raise UserError(
            f"Item {[bool(given) for given in references].index(False) + 1} has no reference to compare with."
        )
    skipped = _not_installed(names)
    if prompts is None:
        skipped |= {name: "needs the prompts" for name in names if METRICS[name].needs_prompts}
    numbers: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for metric_class in dict.fromkeys(METRICS[name] for name in names if name not in skipped):
        metric = metric_class(as_written=as_written)
        given = {"prompts": list(prompts)} if metric.needs_prompts and prompts is not None else {}
        numbers |= (
            metric.compute(predictions=list(predictions), references=[list(each) for each in references], **given) or {}
        )
        signatures |= metric.signatures
    computed = [name for name in names if name in numbers]
    return TextScores(
        {name: numbers[name] for name in computed}, {name: signatures[name] for name in computed}, skipped
    )


def _not_installed(names: Sequence[str]) -> dict[str, str]:
    """Return the metrics that cannot be computed here, each with the reason."""
    skipped = {}
    for name in names:
        for package in PACKAGES.get(name, ()):
            try:
                paper_package(package)
            except UserError as error:
                skipped[name] = str(error)
    return skipped
