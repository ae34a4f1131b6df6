"""Claims about two rows of a table, judged by paired differences: the same task and seed, one row against the other.

A claim says that a row is better than another, or, with a margin, that it is worse by less than the margin. Differences
are averaged by task, then over tasks (`means.py`). The claim is about these tasks: it is *held* if the whole 95 % interval
for other seeds says so, *not held* if the whole interval says the contrary, and *undecided* else, or with fewer than two
tasks that have several seeds. Tasks in which nothing was learnt take no part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_drop.experiments.means import Mean, mean_over_tasks
from lora_drop.experiments.records import Record
from lora_drop.experiments.table import Table


@dataclass(frozen=True)
class Verdict:
    """A claim, and what was measured of it."""

    text: str
    row: str
    """Titles of the row and of that which it is compared with."""
    against: str
    margin: float | None
    """In the table's unit; None if the row is claimed to be better."""
    differences: dict[str, list[float]]
    """Of each task, one for each seed, in the table's unit; positive where the row is better."""
    mean: Mean

    @property
    def verdict(self) -> str:
        """Held, not held or undecided."""
        bound, here = -(self.margin or 0.0), self.mean.here
        if here is None or len(self.mean.tasks) < 2 or here[0] <= bound <= here[1]:
            return "undecided"
        return "held" if here[0] > bound else "not held"


def judge(table: Table) -> list[Verdict]:
    """Return the verdict on each claim of the table's experiment of which there is a pair."""
    titles = {row.name: row.title for row in table.rows}
    found = [_judge(table, claim, titles) for claim in table.claims.values()]
    return [verdict for verdict in found if verdict is not None]


def _judge(table: Table, claim: Mapping[str, Any], titles: Mapping[str, str]) -> Verdict | None:
    ours, theirs = (_scores(table, claim[key]) for key in ("row", "against"))
    differences: dict[str, list[float]] = {}
    for task, seed in sorted(ours.keys() & theirs.keys()):
        differences.setdefault(task, []).append(ours[task, seed] - theirs[task, seed])
    if not differences:
        return None
    names = titles[claim["row"]], titles[claim["against"]]
    return Verdict(claim["says"], *names, claim.get("margin"), differences, mean_over_tasks(differences))


def _scores(table: Table, row: str) -> dict[tuple[str, int], float]:
    """Return the primary score of each task and seed, of the epoch kept, in the table's unit."""
    known = [each for each in table.records if each.row == row and each.metrics]
    mine: list[Record] = [each for each in known if each.task in table.learnt]
    return {(each.task, each.seed): each.unit * each.metrics[each.primary] for each in mine}
