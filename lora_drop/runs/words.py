"""Sentences and numbers about runs, for pages and cards."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lora_drop.config.strict import leaves
from lora_drop.pruning.selection import Selection
from lora_drop.runs.facts import Facts, differences
from lora_drop.training.warmup import doubts


def quoted(text: str) -> str:
    """Return a text as a Python literal."""
    return json.dumps(text, ensure_ascii=False)  # valid Python; escaped, an emoji would become two characters


@dataclass(frozen=True)
class Compared:
    """Runs that differ only in the seed: one row of the comparison."""

    title: str
    runs: tuple[Facts, ...]
    """At least one; all are trained and evaluated."""

    @property
    def first(self) -> Facts:
        """The run with the lowest seed."""
        return self.runs[0]

    @property
    def scores(self) -> list[float]:
        """The primary metric of each run."""
        return [run.score for run in self.runs if run.score is not None]

    @property
    def mean(self) -> float:
        """Mean of the scores."""
        return fmean(self.scores)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation of the scores; None for one run."""
        return stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def parameters(self) -> float:
        """Mean number of adapter parameters: each seed may retain different layers."""
        return fmean(run.parameters["adapter"] for run in self.runs)

    @property
    def seconds(self) -> float:
        """Mean seconds of a run."""
        return fmean(run.seconds for run in self.runs)

    @property
    def seeds(self) -> str:
        """The seeds, as text."""
        return ", ".join(str(run.seed) for run in self.runs)


def compared(runs: Sequence[Facts]) -> list[Compared]:
    """Return the evaluated runs of one task and backbone as rows; settings distinguish rows of the same method.

    A run that was configured anew after its training is left out, since its settings are not those of its scores. Of
    runs with the same seed, the first one counts: the others repeat it.
    """
    repeated = repetitions(runs)
    groups: dict[str, list[Facts]] = {}
    for run in filter(_comparable, runs):
        if run.path not in repeated:
            groups.setdefault(run.group, []).append(run)
    found = [sorted(group, key=lambda run: run.seed) for group in groups.values()]
    return [Compared(_title(group[0], [other[0] for other in found]), tuple(group)) for group in found]


def repetitions(runs: Sequence[Facts]) -> dict[Path, Facts]:
    """Return, by its path, each run with the configuration and the seed of an earlier one, such as a copy, and that one."""
    first: dict[tuple[str, int], Facts] = {}
    earlier = {run.path: first.setdefault((run.group, run.seed), run) for run in filter(_comparable, runs)}
    return {path: run for path, run in earlier.items() if path != run.path}


def _comparable(run: Facts) -> bool:
    return bool(run.metrics and run.parameters and run.trained_as_configured)


def _title(run: Facts, others: Sequence[Facts]) -> str:
    """Return the method's title, with the settings in which other runs of the same method differ."""
    namesakes = [other for other in others if other is not run and other.method == run.method]
    keys = list(dict.fromkeys(key for other in namesakes for key in differences(run, other) if key != "seed"))
    values = leaves(run.config)
    told = [f"{key.removeprefix('method.')} {shown(values.get(key))}" for key in keys]
    return f"{run.title} ({', '.join(told)})" if told else run.title


def shown(value: Any) -> str:
    """Return a configuration value as text."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def answer(run: Facts) -> str:
    """Return a sentence that says which layers the task needs; empty for a method that selects none."""
    selection = run.selection
    if selection is None:
        return ""
    whole = sum(row.parameters for row in run.scored)
    needs = " and ".join(_needed(name, selection) for name in selection.projections)
    rest = "the others share one LoRA per projection" if selection.share else "the others have none"
    share = selection.trainable_parameters / whole
    saved = f"{selection.trainable_parameters:,} trainable parameters, {share:.0%} of LoRA's"
    if selection.trainable_parameters == whole:
        return (
            f"At T = {selection.threshold:g} nothing can be dropped: LoRA-drop is plain LoRA on {run.subject} "
            f"({saved}). Lower the threshold below."
        )
    return f"{run.subject} needs a LoRA of its own in {needs}; {rest}. That is {saved}."


def _needed(name: str, selection: Selection) -> str:
    layers = selection.projections[name]
    return f"{len(layers.retained)} of {len(layers.all)} {name} layers ({spans(layers.retained)})"


def spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as text, with three or more consecutive ones as a span: `0, 3 to 7`."""
    groups: list[list[int]] = []
    for number in numbers:
        if groups and number == groups[-1][-1] + 1:
            groups[-1].append(number)
        else:
            groups.append([number])
    parts: list[str] = []
    for group in groups:
        parts += [f"{group[0]} to {group[-1]}"] if len(group) > 2 else map(str, group)
    return ", ".join(parts)


def doubted(run: Facts) -> list[str]:
    """Return reasons not to trust a run, such as rows that were left out or cut, or too little warm-up."""
    found = [f"it is {run.status}"] if run.status != "done" else []
    if run.selection is not None and not run.trained_as_selected:
        found.append(
            f"its adapter was trained under another selection, with {run.parameters['adapter']:,} parameters; "
            "lora-drop run trains it again"
        )
    if not run.trained_as_configured:
        found.append("its configuration was changed after its training; lora-drop run trains it again")
    found += [f"only {rows:,} {part} rows were used" for part, rows in run.limited.items()]
    return found + run.cut + (doubts(run.warmup_losses, run.constant_loss) if run.warmup_losses else [])


def verdict(rows: Sequence[Compared]) -> str:
    """Return a sentence that compares LoRA-drop with LoRA; empty if one of them is missing."""
    drop = next((row for row in rows if row.first.method == "lora_drop"), None)
    lora = next((row for row in rows if row.first.method == "lora"), None)
    if drop is None or lora is None or drop.first.primary != lora.first.primary:
        return ""
    pair = f"{drop.first.primary} {measured(drop)} with {drop.parameters:,.0f} parameters, LoRA {measured(lora)} with"
    runs = min(len(drop.scores), len(lora.scores))
    few = "One seed each" if len(drop.scores) == len(lora.scores) else "One of them has only one seed"
    doubt = f" {few}: a difference of a few rows may be chance." if runs == 1 else ""
    return f"LoRA-drop reaches {pair} {lora.parameters:,.0f}.{doubt}"


def measured(row: Compared) -> str:
    """Return mean ± standard deviation, or the value of one run."""
    return number(row.mean) + (f" ± {number(row.deviation)}" if row.deviation is not None else "")


def number(value: float) -> str:
    """Return a metric as text: fractions with four decimals, BLEU and ROUGE with two."""
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """Return a duration as text, in seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
