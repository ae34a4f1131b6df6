"""The slope of scores over the importance that is retained.

Runs of one task and seed that differ only in the policy have the same warm-up and the same settings, but keep the
LoRA of other layers: the most important, random ones, the first, the last. If output evaluation finds the right
layers, scores rise with the share of the importance that the retained layers hold. A claim compares two of these
choices, the slope uses all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from lora_drop.config.strict import leaves
from lora_drop.experiments.claims import Score, held_out_score, kept_score
from lora_drop.experiments.means import Mean, mean_over_tasks
from lora_drop.experiments.records import Record, settings_today
from lora_drop.experiments.table import Table

STEP = 10.0
"""Percent of the importance that a slope is given for."""
Choices = tuple[Record, ...]
"""Runs of one task and seed that differ only in the policy."""


@dataclass(frozen=True)
class Slopes:
    """Points of the primary score for each further STEP percent of the importance retained."""

    by_task: dict[str, list[float]]
    """By the task's title, one for each seed."""
    mean: Mean


def choices(table: Table) -> list[Choices]:
    """Return the runs to compare, for each task and seed those of the setting with the most policies.

    A group whose runs retain the same importance has no slope and is left out.
    """
    groups: dict[tuple[str, int], dict[str, list[Record]]] = {}
    for record in table.records:
        if record.task in table.learnt and record.metrics and record.selection.get("projections"):
            setting = {**leaves(settings_today(vars(record))), "method.policy": None}
            found = groups.setdefault((record.task, record.seed), {})
            found.setdefault(json.dumps(setting, sort_keys=True), []).append(record)
    largest = [max(settings.values(), key=len) for settings in groups.values()]
    return [tuple(group) for group in largest if len(set(map(importance, group))) > 1]


def importance(record: Record) -> float:
    """Return the percentage of the importance that the retained layers hold, averaged over projections."""
    return 100 * fmean(part["coverage"] for part in record.selection["projections"].values())


def slopes(groups: Iterable[Choices], score: Score = kept_score) -> Slopes | None:
    """Return the least-squares slope of a score within each task and seed; None if no group has the score."""
    found: dict[str, list[float]] = {}
    for group in groups:
        values = [score(record) for record in group]
        points = [group[0].unit * value for value in values if value is not None]
        if len(points) == len(group):
            found.setdefault(group[0].task_title, []).append(STEP * _slope(list(map(importance, group)), points))
    return Slopes(found, mean_over_tasks(found)) if found else None


def _slope(across: Sequence[float], up: Sequence[float]) -> float:
    return float(np.polyfit(across, up, 1)[0])


def slopes_told(table: Table) -> list[tuple[str, Slopes]]:
    """Return the slopes on the evaluation split and on held-out rows, each with its name, if there are such scores."""
    groups = choices(table)
    both = (("evaluation split", slopes(groups)), ("held-out rows", slopes(groups, held_out_score)))
    return [(name, found) for name, found in both if found is not None]
