"""The table of claims, each with its floor, its aim, and its measured value or the reason why it has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Found = Mapping[str, Mapping[str, Any]]
"""The measurements of each part; or `not_measured`, the reason why there are none."""


@dataclass(frozen=True)
class Claim:
    """One row of the table. A ratio without a unit says how many times as fast the first is."""

    title: str
    part: str
    number: str
    """Name of the measured value among the part's numbers."""
    floor: float | None = None
    aim: float | None = None
    at_most: bool = False
    """True if smaller is better."""
    style: str = ".2f"

    def row(self, found: Found, judged: bool = True) -> dict[str, Any]:
        """Return the claim with its result (median, quartiles, state if `judged`) or the reason `not_measured`."""
        part = found.get(self.part, {"not_measured": "not asked for"})
        if "not_measured" in part:
            return {**asdict(self), "not_measured": part["not_measured"]}
        if self.number not in part["numbers"]:
            why = [reason for name, reason in part.get("absent", {}).items() if name in self.number]
            return {**asdict(self), "not_measured": why[0]}
        measured = part["numbers"][self.number]
        return {**asdict(self), **measured, "state": self.state(measured["median"]) if judged else ""}

    def state(self, measured: float) -> str:
        """Return the goal that a measured value has reached, as text."""
        if self.floor is None or self.aim is None:
            return ""
        reached = [measured <= goal if self.at_most else measured >= goal for goal in (self.aim, self.floor)]
        return "aim reached" if reached[0] else "floor reached" if reached[1] else "below the floor"


ROBERTA, LLAMA = "RoBERTa-base shape", "Llama-2-7b shape"
CLAIMS = (
    Claim("ours fp32 / stock fp32", "small", "ours fp32 / stock fp32", 4.0, 4.8),
    Claim("ours fp32 / stock fp32, oneDNN switched on", "small", "ours fp32 / stock fp32, switched", 2.8, 3.3),
    Claim("ours fp32 / grouped fp32", "small", "ours fp32 / grouped fp32"),
    Claim("ours bf16 / stock fp32", "small", "ours bf16 / stock fp32", 6, 9),
    Claim("ours bf16 / stock bf16", "small", "ours bf16 / stock bf16", 3.3, 4.5),
    Claim("ours bf16 / grouped bf16", "small", "ours bf16 / grouped bf16"),
    Claim("ours bf16, of the best bf16 product", "small", "ours bf16, of the product", 0.5, 0.65, style=".0%"),
    Claim("ours fp32, of the best fp32 product", "small", "ours fp32, of the product", 0.6, 0.7, style=".0%"),
    Claim("LoRA in the upper half / in all layers", "small", "ours fp32, upper half / ours fp32"),
    Claim("base size, ours fp32 / grouped fp32", "base", "ours fp32 / grouped fp32", 1.9, 2.4),
    Claim("base size, ours bf16 / grouped bf16", "base", "ours bf16 / grouped bf16", 1.3, 1.6),
    Claim("seconds, score / forward pass, fp32", "score", "score / forward fp32", 1.04, 1.02, at_most=True),
    Claim("seconds, score / forward pass, bf16", "score", "score / forward bf16", 1.04, 1.02, at_most=True),
    Claim("share of sample, score, select in 30 epochs", "commands", "share", 0.02, 0.012, at_most=True, style=".1%"),
    Claim("seconds, lora-drop select, new threshold", "commands", "select", 0.5, 0.5, at_most=True),
    Claim("seconds, lora-drop --help", "commands", "help"),
    Claim(f"{ROBERTA}, ours bf16 / stock bf16", "roberta", "ours bf16 / stock bf16", 3, 6),
    Claim(f"{ROBERTA}, ours bf16 / grouped bf16", "roberta", "ours bf16 / grouped bf16"),
    Claim(f"{ROBERTA}, ours bf16 / grouped bf16, whole call", "roberta", "ours bf16 / grouped bf16, whole call"),
    Claim(f"{LLAMA}, ours bf16, tokens/s", "llama", "ours bf16, tokens/s", 12_000, 18_000, style=",.0f"),
    Claim(f"{LLAMA}, ours bf16 / grouped bf16", "llama", "ours bf16 / grouped bf16", 1.3, 1.8),
    Claim(f"{LLAMA}, ours bf16 / grouped bf16, whole call", "llama", "ours bf16 / grouped bf16, whole call"),
    Claim(f"{LLAMA}, of the best bf16 product", "llama", "ours bf16, of the product", 0.5, 0.65, style=".0%"),
    Claim(f"{LLAMA}, nf4, ours, tokens/s", "nf4", "ours bf16, tokens/s", style=",.0f"),
    Claim(f"{LLAMA}, nf4, ours / grouped", "nf4", "ours bf16 / grouped bf16"),
    Claim(f"{LLAMA}, nf4, ours / grouped, whole call", "nf4", "ours bf16 / grouped bf16, whole call"),
)


def printed(row: Mapping[str, Any]) -> list[str]:
    """Return a row as text: title, floor, aim, measured value (with quartiles), and state."""
    sign, style = "≤ " if row["at_most"] else "≥ ", row["style"]
    goals = ["–" if row[name] is None else f"{sign}{row[name]:{style}}" for name in ("floor", "aim")]
    if "not_measured" in row:
        return [row["title"], *goals, f"not measured: {row['not_measured']}", ""]
    median, low, high = (format(row[name], style) for name in ("median", "low", "high"))
    return [row["title"], *goals, f"{median} ({low} to {high})", row["state"]]
