"""Stage 3: select the layers that keep their own LoRA (paper §3.2). Pure functions of the importances, without tensors.

Per projection, layers are taken from most to least important until their importances sum to the threshold T. These are
retained; the others will share one LoRA.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_drop.errors import UserError
from lora_drop.pruning import saved
from lora_drop.pruning.scores import HasRows, Scored, check_kinds

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from peft import LoraConfig
    from torch.nn import Module

DEFAULT_THRESHOLD = 0.9
BELOW_ONE = math.nextafter(1.0, 0.0)
"""Largest threshold below 1. At 1, layers of importance 0 are retained as well."""
POLICIES = ("threshold", "inverse", "random", "top", "bottom")
RULE = ("threshold", "budget", "policy", "share")
"""The settings of a selection, besides the seed: arguments of `select` and keys of `method` in a configuration."""


def rule_of(method: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rule in the section `method` of a configuration, whose budget overrides its threshold, for `select`."""
    rule = {key: method[key] for key in RULE if key in method}
    return rule if rule.get("budget") is None else {**rule, "threshold": None}


@dataclass(frozen=True)
class Layers:
    """The layers of one projection, ascending.

    `retained` layers keep their own LoRA; `shared` are all others, even if the selection gives them no LoRA. `coverage`
    is the sum of the retained importances.
    """

    retained: tuple[int, ...]
    shared: tuple[int, ...]
    coverage: float

    @property
    def all(self) -> tuple[int, ...]:
        """All layers of the projection, the retained ones first."""
        return (*self.retained, *self.shared)


@dataclass(frozen=True)
class Selection:
    """The result of stage 3, as in `selection.json`. Notebooks display it as a table."""

    policy: str
    threshold: float
    share: bool
    projections: dict[str, Layers]
    trainable_parameters: int

    def to_json(self) -> dict[str, Any]:
        """Return the content of `selection.json`."""
        content = asdict(self)
        for layers in content["projections"].values():
            layers |= {"retained": list(layers["retained"]), "shared": list(layers["shared"])}
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Selection:
        """Return the selection that `to_json` wrote. Raise KeyError or TypeError if it is malformed."""
        check_kinds(content, {"policy": str, "threshold": Real, "share": bool, "trainable_parameters": int})
        for layers in content["projections"].values():
            check_kinds(layers, {"retained": Sequence, "shared": Sequence, "coverage": Real})
            for layer in (*layers["retained"], *layers["shared"]):
                check_kinds({"layer": layer}, {"layer": int})
        projections = {
            name: Layers(tuple(layers["retained"]), tuple(layers["shared"]), layers["coverage"])
            for name, layers in content["projections"].items()
        }
        return cls(
            content["policy"], content["threshold"], content["share"], projections, content["trainable_parameters"]
        )

    def save(self, path: str | Path) -> None:
        """Write the selection as JSON, in the format of a run's `selection.json`; `load` reads it."""
        saved.write(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read a selection written by `save`, or a run's `selection.json`. Raise UserError if the file holds none."""
        with saved.reading(path, "a selection") as content:
            return cls.from_json(content)

    def to_frame(self) -> DataFrame:
        """Return a pandas DataFrame with a row per layer and projection; `lora` is retained, shared or none."""
        from pandas import DataFrame

        low = "shared" if self.share else "none"
        rows = [
            {"projection": name, "layer": layer, "lora": "retained" if layer in layers.retained else low}
            for name, layers in self.projections.items()
            for layer in sorted(layers.all)
        ]
        return DataFrame(rows)

    def plot(self, scores: HasRows, title: str = "") -> Figure:
        """Return a matplotlib figure of the importances that tells retained layers from the others.

        A selection holds no importances of single layers: they come from the `scores` that it was made from.
        """
        from lora_drop.pruning.picture import importance_figure

        return importance_figure(scores.rows, self, title or f"T = {self.threshold:.3g}")

    def to_lora_config(self, base: Module, rank: int = 8, low_rank: int | None = None, **options: Any) -> LoraConfig:
        """Return a PEFT configuration of the modules that get a LoRA.

        Args:
            base: the model to configure, before PEFT wraps it.
            rank: rank of the retained layers. `share` requires the rank that was scored.
            low_rank: rank of the other layers. None means `rank` if they share a LoRA (then call `share` on the model),
                and 0 if not. 0 leaves them without LoRA (`exclude_modules`), whatever the selection says. Another
                number gives each its own smaller LoRA (`rank_pattern`) with the same scaling, for tools that cannot
                share.
            options: other fields of LoraConfig (`lora_alpha`, by default 2 · rank; `task_type`, `modules_to_save`, …).

        Raises:
            UserError: if the model lacks a layer of the selection, or if a name or pattern matches other modules than
                intended (PEFT ignores patterns that match nothing).
        """
        from lora_drop.pruning.lora_config import lora_config

        return lora_config(self, base, rank, low_rank, **options)

    def _repr_html_(self) -> str:
        from lora_drop.pruning.notebook import selection_html

        return selection_html(self)


def select(
    scored: HasRows | Iterable[Scored],
    threshold: float | None = None,
    budget: float | None = None,
    policy: str = "threshold",
    share: bool = True,
    seed: int = 0,
) -> Selection:
    """Decide per projection which layers retain their own LoRA.

    Args:
        scored: the scores returned by `lora_drop.score`, or their rows: every LoRA of the model with its importance.
        threshold: T in (0, 1], by default 0.9; T = 1 retains every layer, which is plain LoRA.
        budget: instead of a threshold, a share in (0, 1] of plain LoRA's parameters: T is then the largest threshold at
            which LoRA-drop has at most that many.
        policy: "threshold" retains the most important layers. "inverse", "random" and "top" retain the same number of
            layers, but the least important ones, random ones, or the last ones (nearest the output): the paper's
            ablations (Table 7). "bottom" retains the first ones, which matter most according to arXiv 2503.23360.
        share: True if the other layers share one LoRA per projection, False if they have none.
        seed: seed of the policy "random".

    Ties go to the lower layer; at least one layer is always retained. Raise UserError for values out of range, for both
    a threshold and a budget, and for a budget that not even one retained layer per projection would meet.
    """
    scored = sorted(_rows(scored), key=lambda row: (row.projection, row.layer))
    if not scored:
        raise UserError("There are no scores to select from.")
    strange = [row for row in scored if not math.isfinite(row.importance)]
    if strange:
        raise UserError(f"The importance of {strange[0].name} is {strange[0].importance}: it must be a finite number.")
    places = [(row.projection, row.layer) for row in scored]
    twice = [place for place, other in pairwise(places) if place == other]
    if twice:
        projection, layer = twice[0]
        raise UserError(f"There are two scores of {projection} in layer {layer}. Give the scores of one model.")
    if policy not in POLICIES:
        raise UserError(f"Unknown policy {policy!r}. Allowed: {', '.join(POLICIES)}")
    if share not in (True, False):
        raise UserError(f"share must be True or False, but is {share!r}.")
    share = bool(share)  # a NumPy bool cannot be saved as JSON
    if budget is not None:
        if threshold is not None:
            raise UserError(
                "threshold and budget exclude each other: the budget finds a threshold. Give one of them, and None for the "
                "other."
            )
        threshold = _threshold_for(scored, _portion("budget", budget), share)
    threshold = _portion("threshold", DEFAULT_THRESHOLD if threshold is None else threshold)
    projections = {}
    for projection, importances in _by_projection(scored).items():
        count = len(_most_important(importances, threshold))
        retained = _retained(importances, count, policy, f"{seed}/{projection}")
        projections[projection] = _layers(importances, retained)
    return Selection(policy, threshold, share, projections, _parameters(scored, projections, share))


def _rows(scored: HasRows | Iterable[Scored]) -> list[Scored]:
    """Return the rows of scores. Raise UserError for anything else."""
    given: Any = getattr(scored, "rows", scored)
    rows = list(given) if isinstance(given, Iterable) else [given]
    if not all(isinstance(row, Scored) for row in rows):
        raise UserError(
            f"select needs the Scores that lora_drop.score returns, or their rows, but was given a {type(scored).__name__}."
        )
    return rows


def _portion(name: str, value: float) -> float:
    """Return a threshold or budget as a float. Raise UserError unless it is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
        raise UserError(f"The {name} must be in (0, 1], a number, but is {value!r}.")
    return float(value)


def _by_projection(scored: Iterable[Scored]) -> dict[str, dict[int, float]]:
    projections: dict[str, dict[int, float]] = {}
    for row in scored:
        projections.setdefault(row.projection, {})[row.layer] = row.importance
    return projections


def _ranking(importances: Mapping[int, float]) -> list[int]:
    return sorted(importances, key=lambda layer: (-importances[layer], layer))


def _most_important(importances: Mapping[int, float], threshold: float) -> list[int]:
    """Take layers, most important first, until their importances sum to the threshold."""
    ranking = _ranking(importances)
    if threshold >= 1:  # includes layers of importance 0, so that T = 1 is plain LoRA
        return ranking
    count = 1
    while math.fsum(importances[layer] for layer in ranking[:count]) < threshold - 1e-12 and count < len(ranking):
        count += 1
    return ranking[:count]


def _retained(importances: Mapping[int, float], count: int, policy: str, seed: str) -> list[int]:
    if policy == "inverse":
        return sorted(importances, key=lambda layer: (importances[layer], layer))[:count]
    if policy == "random":
        return random.Random(seed).sample(sorted(importances), count)
    if policy == "top":
        return sorted(importances)[-count:]
    if policy == "bottom":
        return sorted(importances)[:count]
    return _ranking(importances)[:count]


def _layers(importances: Mapping[int, float], retained: Iterable[int]) -> Layers:
    kept = tuple(sorted(retained))
    coverage = math.fsum(importances[layer] for layer in kept)
    return Layers(kept, tuple(sorted(set(importances) - set(kept))), coverage)


def _parameters(scored: Iterable[Scored], projections: Mapping[str, Layers], share: bool) -> int:
    """Count the adapter's parameters: retained pairs and, if `share`, one pair for the others of each projection."""
    total = 0
    sizes = {(row.projection, row.layer): row.parameters for row in scored}
    for projection, layers in projections.items():
        owners = [*layers.retained, *(layers.shared[:1] if share else ())]
        total += sum(sizes[projection, layer] for layer in owners)
    return total


def _threshold_for(scored: list[Scored], budget: float, share: bool) -> float:
    """Return the largest T that fits the budget. Candidates are the sums of importances at which a layer is added."""
    allowed = _allowed(budget, sum(row.parameters for row in scored))
    by_projection = _by_projection(scored)
    steps = {1.0}
    for importances in by_projection.values():
        ranking = _ranking(importances)
        sums = (math.fsum(importances[layer] for layer in ranking[:count]) for count in range(1, len(ranking)))
        steps |= {min(total, BELOW_ONE) for total in sums}

    def parameters(threshold: float) -> int:
        kept = {name: _layers(rows, _most_important(rows, threshold)) for name, rows in by_projection.items()}
        return _parameters(scored, kept, share)

    fitting = [step for step in sorted(steps) if 0 < step <= 1 and parameters(step) <= allowed]
    if not fitting:
        least = min(parameters(step) for step in steps if step > 0)
        raise _too_small(budget, least / sum(row.parameters for row in scored), share)
    return fitting[-1]


def _allowed(budget: float, total: int) -> int:
    """Return the most parameters within a share of `total`. In floats, 0.35 of 184,320 is less than 64,512."""
    return math.floor(budget * total + 1e-6)


def check_budget(sizes: Iterable[tuple[str, int]], budget: float, share: bool) -> None:
    """Raise UserError if a budget is too small for any selection.

    The least is one retained layer per projection, and a shared pair if `share`.

    Args:
        sizes: projection and parameters of every LoRA of the model.
        budget: share of the parameters of all of them.
        share: True if the other layers share a LoRA.
    """
    by_projection: dict[str, list[int]] = {}
    for projection, size in sizes:
        by_projection.setdefault(projection, []).append(size)
    least = sum(sum(sorted(found)[: 1 + share]) for found in by_projection.values())
    total = sum(map(sum, by_projection.values()))
    if least > _allowed(budget, total):
        raise _too_small(budget, least / total, share)


def _too_small(budget: float, least: float, share: bool) -> UserError:
    pairs = "one retained layer and one shared pair" if share else "one retained layer"
    enough = math.ceil(100 * least + 1e-6) / 100
    raised = f"Raise the budget to {enough:g}"
    remedy = raised if enough <= 1 else "That is LoRA itself; with share set to false, less is needed"
    return UserError(
        f"A budget of {budget:g} of LoRA's parameters is too small: {pairs} in each projection already need {least:.3f}. {remedy}"
    )
