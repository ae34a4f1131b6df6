"""`toy-nli`: a generated task of sentence pairs for demonstrations and tests. It needs no file; its rows never vary.

Premise and hypothesis differ in one word or phrase. Two properties together decide if the premise entails the
hypothesis:

- The quantifier is upward ("some dog", "at least three dogs") or downward ("no dog", "at most three dogs").
- The change widens the statement (poodle -> dog, sleeps soundly -> sleeps) or narrows it.

Upward quantifiers allow widening, downward ones narrowing. The label is the exclusive or of the two. Every combination
is equally frequent, and each word is equally frequent with either label. A sum of word weights therefore cannot predict
the label; an encoder must relate the words.
"""

from __future__ import annotations

import random
from itertools import product

from datasets import Dataset

from lora_drop.tasks.base import Source, Task

LABELS = ("entailment", "not_entailment")
ROWS = {"train": 1600, "validation": 400}

# (wide, narrow)
NOUNS = (
    ("dogs", "poodles"),
    ("birds", "sparrows"),
    ("flowers", "roses"),
    ("cars", "taxis"),
    ("fish", "salmon"),
    ("trees", "oaks"),
    ("children", "girls"),
    ("musicians", "drummers"),
    ("doctors", "surgeons"),
    ("buildings", "churches"),
    ("boats", "ferries"),
    ("insects", "bees"),
)
VERBS = (
    ("move", "move slowly"),
    ("can be seen", "can be seen clearly"),
    ("are waiting", "are waiting outside"),
    ("get wet", "get wet in the rain"),
    ("disappear", "disappear at night"),
    ("are here", "are here today"),
)
ADJECTIVES = ("old", "small", "red", "quiet", "heavy", "beautiful")
UPWARD = ("some", "at least three", "several", "more than five")
DOWNWARD = ("no", "at most three", "hardly any", "fewer than five")


def load(source: Source, split: str) -> Dataset:
    """Generate the rows of "train" or "validation". Combinations of quantifier and direction are exactly balanced.

    The splits have no row in common: they share words, but no sentence pairs.
    """
    generator = random.Random(f"toy-nli/{split}")
    training = split == "train"
    changes = [change for number, change in enumerate(_changes()) if (number % 5 != 0) == training]
    rows = []
    for upward, widens in product((True, False), repeat=2):
        pairs = [(quantifier, change) for quantifier in (UPWARD if upward else DOWNWARD) for change in changes]
        for quantifier, (wide, narrow) in generator.sample(pairs, ROWS[split] // 4):
            premise, hypothesis = (narrow, wide) if widens else (wide, narrow)
            label = LABELS.index("entailment" if upward == widens else "not_entailment")
            rows.append(
                {"text": f"{quantifier} {premise}.", "text_pair": f"{quantifier} {hypothesis}.", "label": label}
            )
    generator.shuffle(rows)
    return Dataset.from_list([{"id": f"{split}-{number}", **row} for number, row in enumerate(rows)])


def _changes() -> list[tuple[str, str]]:
    """Return every (wide, narrow) pair of clauses, in an order that mixes the kinds of change."""
    changes = []
    for (wide, narrow), (verb, verb_narrow), adjective in product(NOUNS, VERBS, ADJECTIVES):
        changes += [
            (f"{wide} {verb}", f"{narrow} {verb}"),
            (f"{narrow} {verb}", f"{narrow} {verb_narrow}"),
            (f"{wide} {verb}", f"{adjective} {wide} {verb}"),
        ]
    unique = list(dict.fromkeys(changes))
    random.Random("toy-nli").shuffle(unique)
    return unique


TASK = Task(
    name="toy-nli",
    version=1,
    kind="classification",
    description="generated: does one sentence entail the other?",
    load=load,
    strata=lambda rows: [LABELS[index] for index in rows["label"]],
    metrics=("accuracy",),
    primary="accuracy",
    labels=LABELS,
    hub="generated, needs nothing",
    official_rows=ROWS,
)
