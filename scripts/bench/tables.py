"""What a benchmark prints, from its result alone: one table per part, and the goals beside what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VARIANT_TITLES = {
    "stock": "stock: all rows padded to one length",
    "grouped": "grouped: the Trainer at its best",
    "ours": "ours: lora_drop.training.trainer.fit",
}


@dataclass(frozen=True)
class Printed:
    """A table to print."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()


def tables(result: Mapping[str, Any]) -> list[Printed]:
    """Return the tables of a result, in the order of its parts."""
    makers: dict[str, Callable[[Any], list[Printed]]] = {
        "train": lambda found: [_training(entry, "gpu" in result["machine"]) for entry in found],
        "score": _scoring,
        "share": _share,
        "generation": _generation,
        "startup": _startup,
        "scaling": _scaling,
    }
    printed = [table for name, found in result["parts"].items() for table in makers[name](found)]
    return [*printed, *_goals(result["goals"])]


def machine_line(result: Mapping[str, Any]) -> str:
    """Return what was measured, and where."""
    asked, machine = result["benchmark"], result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {_count(machine['threads'], 'thread')}"
    what = f"{asked['task']}, {asked['backbone']}, batch {asked['batch_size']}, {asked['precision']}"
    quick = "; QUICK: these numbers measure nothing" if asked["quick"] else ""
    return f"{what}; {where}; {_count(asked['rounds'], 'round')}, medians (with quartiles){quick}"


def _training(entry: Mapping[str, Any], gpu: bool) -> Printed:
    work, variants = entry["workload"], entry["variants"]
    counted = entry["flops"] is not None
    columns = [
        "training",
        "samples/s",
        "real tokens/s",
        "against stock",
        "against grouped",
        "of the peak",
        "needed",
        "MB",
    ]
    rows = [
        [
            VARIANT_TITLES[name],
            _number(found["samples_per_second"]["median"]),
            _number(found["tokens_per_second"]["median"], 0),
            *(_times(entry["ratios"].get(f"{name}/{other}")) for other in ("stock", "grouped")),
            _percent(found["fraction_full"]["median"]) if counted else "not counted",
            _percent(found["fraction_needed"]["median"]) if counted else "not counted",
            f"{found['memory_mb']:>7,}",
        ]
        for name, found in variants.items()
    ]
    name = "the task's rows" if work["name"] == "real" else f"generated rows of {work['name']} tokens"
    padding = 1 - work["tokens"] / work["tokens_if_padded"]
    product = entry["product"]
    reached = product["flops_per_second"]["median"] / 1e9
    dtype = product["dtype"].removeprefix("torch.")
    notes = [
        f"against: how many times as fast, round by round; MB: peak{'' if gpu else ' above the model'}; our path: {entry['path']}",
        f"of the peak: {reached:,.0f} GFLOP/s, products of {product['size']} × {product['size']} {dtype} matrices; needed: without what nobody reads",
        *_disturbed(entry["rounds"]),
    ]
    title = f"\nTraining on {work['rows']:,} rows, {name}: {work['tokens']:,} real tokens; padded to the maximal length {padding:.0%} is padding"
    return Printed(title, columns, rows, notes)


def _scoring(found: Mapping[str, Any]) -> list[Printed]:
    columns = ["score against a plain forward pass", "seconds", "memory"]
    rows = [[name, _times(way["ratio"]), f"{way['more_memory_mb']:+,} MB"] for name, way in found["ways"].items()]
    return [Printed(f"\nScoring {found['rows']:,} rows", columns, rows, _disturbed(found["rounds"]))]


def _share(found: Mapping[str, Any]) -> list[Printed]:
    stages = {"sample": "sample", "score": "warm-up and score"}
    rows = [[stages[stage], f"{seconds:>10,.1f} s"] for stage, seconds in found["seconds"].items()]
    rows.append([f"training, {found['epochs']} epochs", f"{found['training_seconds']:>10,.1f} s"])
    rows.append(["share of the whole", f"{found['share']:>10.2%}"])
    return [Printed(f"\nFinding the layers, {found['rows']:,} training rows", ["", ""], rows)]


def _generation(found: Mapping[str, Any]) -> list[Printed]:
    columns = ["generation", "tokens/s", "prompts/s"]
    rows = [
        [
            title,
            _number(found[name]["tokens_per_second"]["median"]),
            _number(found[name]["prompts_per_second"]["median"], 2),
        ]
        for name, title in (("file order", "in the file's order"), ("ordered", "ours: the longest prompts first"))
    ]
    notes = [f"how many times as fast: {_times(found['ratio'])}", *_disturbed(found["rounds"])]
    title = f"\nGenerating for {found['prompts']:,} prompts, {found['batch_size']} at a time"
    return [Printed(title, columns, rows, notes)]


def _startup(found: Mapping[str, Any]) -> list[Printed]:
    rows = [
        ["lora-drop --help", f"{found['help_seconds']['median']:.2f} s"],
        ["against importing typer, rich and yaml", _times(found["ratio"])],
    ]
    return [Printed("\nStarting", ["", ""], rows, _disturbed(found["rounds"]))]


def _scaling(found: Mapping[str, Any]) -> list[Printed]:
    rows = [
        [
            name,
            ", ".join(map(str, axis["values"])),
            ", ".join(f"{1000 * one['median']:,.0f}" for one in axis["seconds"]),
            f"{axis['exponent']:.2f}",
            f"{axis['exponent_of_flops']:.2f}",
        ]
        for name, axis in found["axes"].items()
    ]
    columns = ["size", "values", "ms a step", "exponent", "of the operations"]
    otherwise = ", ".join(f"{name} {value}" for name, value in found["otherwise"].items())
    return [Printed(f"\nCost of a training step, BERT of width {found['model']['hidden']}; {otherwise}", columns, rows)]


def _goals(goals: Sequence[Mapping[str, Any]]) -> list[Printed]:
    if not goals:
        return []
    columns = ["goal", "floor", "aim", "reached", ""]
    rows = []
    for goal in goals:
        sign = "≤ " if goal["at_most"] else "≥ "
        # a share of something is read in per cent, a ratio of two times is not
        show = _percent if goal["floor"] < 1 else lambda value: f"{value:.2f}"
        cells = [sign + show(goal["floor"]).strip(), sign + show(goal["aim"]).strip(), show(goal["reached"]).strip()]
        rows.append([goal["name"], *cells, goal["state"]])
    return [Printed("\nGoals", columns, rows)]


def _disturbed(rounds: Mapping[str, Any]) -> list[str]:
    """Say how many rounds others have disturbed."""
    noisy, whole = len(rounds["noisy_rounds"]), len(rounds["orders"])
    return [f"note: other work kept cores busy in {noisy} of {_count(whole, 'round')}"] if noisy else []


def _times(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return ""
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"


def _number(value: float, digits: int = 1) -> str:
    return f"{value:>10,.{digits}f}"


def _percent(value: float) -> str:
    return f"{value:>7.1%}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
