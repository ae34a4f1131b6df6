"""What the project wants to reach. Stored and printed beside what was reached, whether it was or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.settings import Settings

Found = Mapping[str, Any]
"""What the parts have measured, by their names."""


@dataclass(frozen=True)
class Goal:
    """One number that is wanted."""

    name: str
    floor: float
    """What must be reached."""
    aim: float
    """What should be."""
    read: Callable[[Found], float | None]
    """Finds the number; None if it was not measured."""
    applies: Callable[[Settings, str], bool] = lambda settings, device: True
    """`applies(settings, device)`: whether this benchmark is the one that the goal is about."""
    at_most: bool = False
    """Whether smaller is better."""

    def state(self, reached: float) -> str:
        """Say how far a number has come."""
        sign = -1 if self.at_most else 1
        if sign * reached >= sign * self.aim:
            return "aim reached"
        return "floor reached" if sign * reached >= sign * self.floor else "below the floor"


def _on_cpu(settings: Settings, device: str) -> bool:
    return device == "cpu" and (settings.backbone, settings.task) == ("packaged:minilm-l6", "rte")


def _on_gpu(model: str, task: str = "") -> Callable[[Settings, str], bool]:
    return lambda settings, device: (
        device == "cuda"
        and settings.backbone.lower().split(":")[-1].split("/")[-1].startswith(model)
        and (not task or settings.task == task)
    )


def _real(found: Found) -> Mapping[str, Any] | None:
    """What training on the task's own rows has measured; generated rows are not what a goal is about."""
    return next((entry for entry in found.get("train", ()) if entry["workload"]["name"] == "real"), None)


def _ratio(name: str) -> Callable[[Found], float | None]:
    def read(found: Found) -> float | None:
        real = _real(found)
        return real["ratios"][name]["median"] if real else None

    return read


def _fraction(found: Found) -> float | None:
    real = _real(found)
    return real["variants"]["ours"].get("fraction_full", {}).get("median") if real else None


def _scoring(found: Found) -> float | None:
    """The worse of the two ways."""
    return max(way["ratio"]["median"] for way in found["score"]["ways"].values()) if "score" in found else None


def _share(found: Found) -> float | None:
    return found["share"]["share"] if "share" in found else None


GOALS = (
    Goal("training against stock", 2.6, 3.2, _ratio("ours/stock"), _on_cpu),
    Goal("training against grouped", 1.35, 1.6, _ratio("ours/grouped"), _on_cpu),
    Goal("training against stock", 3, 6, _ratio("ours/stock"), _on_gpu("roberta-base")),
    Goal("training against grouped", 1.3, 1.8, _ratio("ours/grouped"), _on_gpu("llama-2-7b", "dialogsum")),
    Goal("fraction of the machine's matrix products", 0.5, 0.65, _fraction),
    Goal("score against a plain forward pass", 1.05, 1.02, _scoring, at_most=True),
    Goal("share of sample, warm-up and score in 30 epochs", 0.02, 0.012, _share, at_most=True),
)


def judge(found: Found, settings: Settings, device: str) -> list[dict[str, Any]]:
    """Return every goal that this benchmark is about and has measured, with what was reached."""
    rows = []
    for goal in GOALS:
        reached = goal.read(found) if goal.applies(settings, device) else None
        if reached is not None:
            facts = {"name": goal.name, "floor": goal.floor, "aim": goal.aim, "at_most": goal.at_most}
            rows.append({**facts, "reached": reached, "state": goal.state(reached)})
    return rows
