"""The share of a meaning representation's values that a text mentions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

import evaluate
from datasets import Features, List, Value

from lora_drop.evaluation.metrics.text_metric import TextMetric

LEFT_OUT = frozenset({"familyFriendly"})
"""Slots whose value, yes or no, is not in the words of a description."""


class Slots(TextMetric):
    """Slot values of the prompts (`name[The Mill], food[French]`) that the predictions mention, of all of all prompts.

    A value is mentioned if it is a substring of the text, in upper or lower case; spaces count as one. A paraphrase
    ("under £20" for `less than £20`) is no mention, and "slow" is one of `low`. So the number compares systems; it is
    not a rate of errors. References, which paraphrase freely, have fewer than 100. `familyFriendly` is left out.
    """

    names: ClassVar[tuple[str, ...]] = ("slots",)
    description = "share of the prompt's slot values that are substrings of the prediction"
    needs_prompts = True

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": Value("string"), "references": List(Value("string")), "prompts": Value("string")}
        return evaluate.MetricInfo(description=self.description, citation="", features=Features(columns))

    def _compute(
        self, predictions: Sequence[str], references: Sequence[Sequence[str]], prompts: Sequence[str]
    ) -> dict[str, float]:
        mentioned = [
            _plain(value) in _plain(prediction)
            for prediction, prompt in zip(predictions, prompts, strict=True)
            for value in slot_values(prompt)
        ]
        self.signatures = {
            "slots": f"values:substring|case:lower|without:{','.join(LEFT_OUT)}|values-of-all-items:mean"
        }
        return {"slots": 100 * sum(mentioned) / len(mentioned)} if mentioned else {}


def slot_values(prompt: str) -> list[str]:
    """Return the values of the slots that count, in order. An empty value says nothing and does not count."""
    slots = re.findall(r"([^\[\],]+)\[([^\]]*)\]", prompt)
    return [value for name, value in slots if value.strip() and name.strip() not in LEFT_OUT]


def _plain(text: str) -> str:
    """Return the text in lower case with single spaces."""
    return " ".join(text.lower().split())
