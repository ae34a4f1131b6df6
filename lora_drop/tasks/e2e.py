"""The E2E challenge (Novikova et al. 2017): generate a description of a restaurant from a meaning representation (MR).

Training rows are the pairs of the official file. Evaluation rows are its distinct MRs (630 in test), in order of first
appearance, each with all its references, as in the challenge's own scoring.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from datasets import Dataset

from lora_drop.errors import UserError
from lora_drop.tasks.base import Source, Task, stratum_column, text_rows
from lora_drop.tasks.files import check_target, official_file, read_csv, some
from lora_drop.tasks.hub_rows import PARQUET, HubRows

PROMPT = "{mr}\n\nDescription of the restaurant:\n"
"""The prompt; the reference follows."""

FILES = {
    "train": "e2e-dataset/trainset.csv",
    "validation": "e2e-dataset/devset.csv",
    "test": "e2e-dataset/testset_w_refs.csv",
}
HUB = HubRows("tuetschek/e2e_nlg", revision=PARQUET)


def load(source: Source, split: str) -> Dataset:
    """Load "train" (`id, prompt, completion, stratum`), "test" or "validation" (`id, prompt, references`)."""
    pairs = list(_pairs(source, split))
    if split == "train":
        return text_rows(
            split,
            [PROMPT.format(mr=mr) for mr, _ in pairs],
            completion=[reference for _, reference in pairs],
            stratum=[stratum(mr) for mr, _ in pairs],
        )
    references: dict[str, list[str]] = {}
    for mr, reference in pairs:
        references.setdefault(mr, []).append(reference)
    return text_rows(split, [PROMPT.format(mr=mr) for mr in references], references=list(references.values()))


def meaning_representations(prompts: list[str]) -> list[str]:
    """Return the MRs that the prompts were made from."""
    before, after = PROMPT.split("{mr}")
    return [prompt.removeprefix(before).removesuffix(after) for prompt in prompts]


def stratum(mr: str) -> str:
    """Return the number of slots of an MR as a stratum, `slots: 5`. It measures how much the description has to say.

    (There are 109 different sets of slots, more strata than a small sample has rows.)
    """
    names = {name.strip() for name in re.findall(r"([^\[\],]+)\[", mr)}
    return f"slots: {len(names)}"


def _pairs(source: Source, split: str) -> Iterator[tuple[str, str]]:
    path = official_file(source, FILES[split], split, str(HUB))
    if path is None:
        columns = ("meaning_representation", "human_reference")
        for row in HUB.load(source, split, FILES[split], columns):
            yield row["meaning_representation"], row["human_reference"]
        return
    for line, (mr, reference) in some(path, read_csv(path, ("mr", "ref"))):
        if "[" in reference and "[" not in mr:
            raise UserError(f"{path}, line {line}: the reference has slots, and the MR {mr!r} none: they are swapped")
        yield mr, check_target(path, line, reference, "reference")


TASK = Task(
    name="e2e",
    version=2,
    kind="generation",
    description="restaurant data to a description (E2E challenge)",
    load=load,
    strata=stratum_column,
    metrics=(
        "sacrebleu",
        "rouge_l",
        "rouge_l_mean",
        "e2e_bleu",
        "e2e_rouge_l",
        "char_bleu4",
        "rouge_chinese_l",
        "slots",
    ),
    primary="sacrebleu",
    title="E2E",
    splits=("test", "validation"),
    files=FILES,
    hub=f"{HUB.name} ({PARQUET})",
    official_rows={"train": 42061, "validation": 547, "test": 630},
)
