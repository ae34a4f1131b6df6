"""`toy-nlg`: a generated data-to-text task for demonstrations and tests. It needs no file or network; rows never vary.

A meaning representation in the style of E2E becomes a sentence: `animal[dog], number[three], colour[brown],
does[sleep], place[garden]` -> "Three brown dogs sleep in the garden." or "In the garden, three brown dogs sleep.". The
words can be copied, but number, negation and missing slots determine the endings and the order, so a model has to read
all slots.
"""

from __future__ import annotations

import random
from itertools import product

from datasets import Dataset

from lora_drop.tasks.base import Source, Task, stratum_column, text_rows

PROMPT = "{mr}\n\nIn words:\n"
"""The prompt; the sentence follows."""
ROWS = {"train": 800, "validation": 200}

ANIMALS = ("dog", "cat", "horse", "duck", "rabbit", "goat", "parrot", "donkey")
NUMBERS = ("one", "two", "three", "four")
COLOURS = ("", "brown", "black", "white", "grey")
ACTIONS = ("sleep", "eat", "wait", "rest", "play")
PLACES = ("", "garden", "stable", "field", "yard")
POLARITIES = ("yes", "no")

Meaning = tuple[str, str, str, str, str, str]
"""(animal, number, colour, action, place, polarity); colour and place may be empty."""


def load(source: Source, split: str) -> Dataset:
    """Generate "train" (`id, prompt, completion, stratum`) or, with other meanings, "validation" (`…, references`)."""
    meanings = _meanings(split)
    prompts = [PROMPT.format(mr=representation(meaning)) for meaning in meanings]
    if split != "train":
        return text_rows(split, prompts, references=[list(dict.fromkeys(sentences(meaning))) for meaning in meanings])
    return text_rows(
        split,
        prompts,
        completion=[sentences(meaning)[number % 2] for number, meaning in enumerate(meanings)],
        stratum=[_stratum(meaning) for meaning in meanings],
    )


def representation(meaning: Meaning) -> str:
    """Return the slots of a meaning as one line: `animal[dog], number[three], does[sleep]`."""
    animal, number, colour, action, place, polarity = meaning
    slots = {"animal": animal, "number": number, "colour": colour, "does": action, "place": place}
    filled = [f"{name}[{value}]" for name, value in slots.items() if value]
    return ", ".join(filled if polarity == "yes" else [*filled, "true[no]"])


def sentences(meaning: Meaning) -> tuple[str, str]:
    """Return two sentences that express a meaning. They are the same if there is no place."""
    animal, number, colour, action, place, polarity = meaning
    plural, ending, auxiliary = ("", "s", "does") if number == "one" else ("s", "", "do")
    subject = " ".join(word for word in (number, colour, animal + plural) if word)
    verb = action + ending if polarity == "yes" else f"{auxiliary} not {action}"
    plain = f"{subject} {verb}"
    if not place:
        return f"{plain.capitalize()}.", f"{plain.capitalize()}."
    return f"{plain.capitalize()} in the {place}.", f"In the {place}, {plain}."


def _meanings(split: str) -> list[Meaning]:
    everything = list(product(ANIMALS, NUMBERS, COLOURS, ACTIONS, PLACES, POLARITIES))
    random.Random("toy-nlg").shuffle(everything)
    start = 0 if split == "train" else ROWS["train"]
    return everything[start : start + ROWS[split]]


def _stratum(meaning: Meaning) -> str:
    given = ["colour"] * bool(meaning[2]) + ["place"] * bool(meaning[4]) + ["negated"] * (meaning[5] == "no")
    return ", ".join(given) or "plain"


TASK = Task(
    name="toy-nlg",
    version=1,
    kind="generation",
    description="generated: data about animals to a sentence",
    load=load,
    strata=stratum_column,
    metrics=("sacrebleu", "rouge_l", "rouge_l_mean"),
    primary="sacrebleu",
    hub="generated, needs nothing",
    official_rows=ROWS,
)
