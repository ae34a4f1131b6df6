"""DialogSum (Chen et al. 2021): summarise a dialogue. Test dialogues have three summaries."""

from __future__ import annotations

from collections.abc import Iterator

from datasets import Dataset

from lora_drop.tasks.base import Source, Task, quantile_strata, stratum_column, text_rows
from lora_drop.tasks.files import check_target, official_file, read_jsonl, some, text_in
from lora_drop.tasks.hub_rows import HubRows

PROMPT = "{dialogue}\n\nSummary of the dialogue:\n"
"""The prompt; the summary follows."""

FILES = {
    "train": "dialogsum/dialogsum.train.jsonl",
    "validation": "dialogsum/dialogsum.dev.jsonl",
    "test": "dialogsum/dialogsum.test.jsonl",
}
HUB = HubRows("knkarthick/dialogsum")
LENGTH_BINS = 5


def load(source: Source, split: str) -> Dataset:
    """Load "train" (`id, prompt, completion, stratum`), "test" or "validation" (`id, prompt, references`)."""
    items = list(_items(source, split))
    prompts = [PROMPT.format(dialogue=dialogue) for dialogue, _ in items]
    if split != "train":
        return text_rows(split, prompts, references=[summaries for _, summaries in items])
    return text_rows(
        split,
        prompts,
        completion=[summaries[0] for _, summaries in items],
        stratum=length_strata([dialogue for dialogue, _ in items]),
    )


def length_strata(dialogues: list[str]) -> list[str]:
    """Return a stratum per dialogue by its length in words: five bins, cut at the quintiles of the list itself."""
    return quantile_strata([len(dialogue.split()) for dialogue in dialogues], LENGTH_BINS, "length")


def _items(source: Source, split: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each dialogue and its summaries."""
    path = official_file(source, FILES[split], split, str(HUB))
    if path is None:
        yield from _hub_items(source, split)
        return
    for line, row in some(path, read_jsonl(path)):
        keys: list[str] = [key for key in ("summary1", "summary2", "summary3") if key in row] or ["summary"]
        summaries = [check_target(path, line, text_in(path, line, row, key), key) for key in keys]
        yield text_in(path, line, row, "dialogue").replace("\r\n", "\n"), summaries


def _hub_items(source: Source, split: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the items of the Hub's copy, whose test split repeats a dialogue for each of its summaries."""
    items: dict[str, tuple[str, list[str]]] = {}
    for row in HUB.load(source, split, FILES[split], ("id", "dialogue", "summary")):
        name = row["id"].rsplit("_", 1)[0] if split == "test" else row["id"]  # test_7_1, test_7_2, test_7_3
        items.setdefault(name, (row["dialogue"].replace("\r\n", "\n"), []))[1].append(row["summary"])
    yield from items.values()


TASK = Task(
    name="dialogsum",
    version=1,
    kind="generation",
    description="dialogue to summary",
    load=load,
    strata=stratum_column,
    metrics=(
        "sacrebleu",
        "rouge_l",
        "rouge_l_mean",
        "rouge1_stem",
        "rouge2_stem",
        "rougeL_stem",
        "char_bleu4",
        "rouge_chinese_l",
    ),
    primary="sacrebleu",
    title="DialogSum",
    splits=("test", "validation"),
    files=FILES,
    hub=HUB.name,
    official_rows={"train": 12460, "validation": 500, "test": 500},
)
