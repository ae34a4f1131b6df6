"""Claims about two rows of a table, judged by paired differences: one row minus the other on the same task and seed.

A claim says that a row is better than another or, with a margin, that it is worse by less than the margin. Differences
are averaged by task, then over tasks (`means.py`). The claim is about these tasks. It is *held* if the whole 95 %
interval for other seeds supports it, *not held* if the whole interval contradicts it, and *undecided* otherwise, or if
fewer than two tasks have several seeds. Tasks in which nothing was learnt are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lora_drop.experiments.means import Mean, mean_over_tasks, seeds_to_tell
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table
from lora_drop.runs.stages.base import HELD_OUT

Score = Callable[[Record], float | None]
"""Returns the primary score of a run on some rows; None if there is none."""


@dataclass(frozen=True)
class Verdict:
    """A claim, and the measurements that decide it."""

    text: str
    row: str
    """Title of the row; `against` is the title of the row it is compared with."""
    against: str
    margin: float | None
    """Margin in the table's unit; None if the row is claimed to be better."""
    differences: dict[str, list[float]]
    """Differences by task, one for each seed, in the table's unit; positive where the row is better."""
    mean: Mean
    held_out: Verdict | None = None
    """The same claim on the rows held out of training; None without such rows."""

    @property
    def bound(self) -> float:
        """The difference above which the claim is true."""
        return -(self.margin or 0.0)

    @property
    def verdict(self) -> str:
        """`held`, `not held` or `undecided`."""
        here = self.mean.here
        if here is None or len(self.mean.tasks) < 2 or here[0] <= self.bound <= here[1]:
            return "undecided"
        return "held" if here[0] > self.bound else "not held"

    @property
    def seeds(self) -> int | None:
        """Seeds per task that would decide the claim if mean and spreads stay the same; see `seeds_to_tell`."""
        return seeds_to_tell(self.differences, self.bound)


def judge(table: Table) -> list[Verdict]:
    """Return the verdict on each claim of the table's experiment that has at least one pair of runs."""
    found = []
    for claim in table.claims.values():
        verdict, held_out = (_judge(table, claim, score) for score in (kept_score, held_out_score))
        if verdict is not None:
            found.append(replace(verdict, held_out=held_out))
    return found


def _judge(table: Table, claim: Mapping[str, Any], score: Score) -> Verdict | None:
    ours, theirs = (_scores(table, claim[key], score) for key in ("row", "against"))
    differences: dict[str, list[float]] = {}
    for task, seed in sorted(ours.keys() & theirs.keys()):
        differences.setdefault(task, []).append(ours[task, seed] - theirs[task, seed])
    if not differences:
        return None
    titles = {row.name: row.title for row in table.rows}
    names = titles[claim["row"]], titles[claim["against"]]
    return Verdict(claim["says"], *names, claim.get("margin"), differences, mean_over_tasks(differences))


def _scores(table: Table, row: str, score: Score) -> dict[tuple[str, int], float]:
    """Return a row's score on each task and seed, in the table's unit."""
    mine = [each for each in table.records if each.row == row and each.task in table.learnt]
    found = {(each.task, each.seed): (each.unit, score(each)) for each in mine}
    return {key: unit * value for key, (unit, value) in found.items() if value is not None}


def kept_score(record: Record) -> float | None:
    """Return the primary score of the kept epoch on the evaluation split; None without one."""
    return record.metrics.get(record.primary)


def held_out_score(record: Record) -> float | None:
    """Return the primary score of the kept epoch on the rows held out of training.

    None if there are no such rows, or if they chose the epoch.
    """
    if record.select_epoch == "held_out":
        return None
    return next((entry.get(HELD_OUT) for entry in record.epochs if entry["epoch"] == record.kept_epoch), None)
