"""Product reviews made by a generator, as people have them: in a table of each kind; and what is read of them."""

import csv
import json
import random
from pathlib import Path

import pytest

from lora_drop.config.schema import DataConfig
from lora_drop.errors import UserError
from lora_drop.progress import Reporter
from lora_drop.tasks.base import Source
from lora_drop.tasks.own.task import OwnData

PRODUCTS = ("kettle", "lamp", "backpack", "keyboard", "blender", "tent", "headset", "chair", "camera", "drill")
ASPECTS = {
    "battery": ("the battery lasts all week", "the battery dies within an hour"),
    "delivery": ("it arrived a day early", "it arrived three weeks late"),
    "price": ("it is worth every penny", "it costs far too much for what it does"),
    "quality": ("the build feels solid", "the case cracked on the second day"),
    "support": ("support answered at once", "support never wrote back"),
}
VERDICTS = {
    1: ("I want my money back", "Avoid this {}", "The worst {} that I have owned"),
    2: ("I would not buy this {} again", "A disappointing {}", "Not good"),
    3: ("It does the job", "An average {}", "Neither good nor bad"),
    4: ("A good {}", "I am happy with this {}", "Would recommend it to a friend"),
    5: ("I love this {}", "The best {} that I have owned", "Perfect in every way"),
}


def reviews(count: int, seed: int = 0) -> list[dict]:
    """Reviews with `title`, `review`, `stars` (1 to 5), `price` in euros and the `aspects` that they mention."""
    generator = random.Random(seed)
    rows = []
    for number in range(count):
        stars, product = generator.randint(1, 5), generator.choice(PRODUCTS)
        mentioned = generator.sample(sorted(ASPECTS), generator.randint(1, 3))
        good = [generator.random() < (stars - 1) / 4 for _ in mentioned]
        sentences = [ASPECTS[name][0 if fine else 1] for name, fine in zip(mentioned, good, strict=True)]
        felt = min(5, max(1, stars + generator.choice((-1, 0, 0, 0, 0, 0, 0, 1))))  # people differ in their stars
        verdict = generator.choice(VERDICTS[felt]).format(product)
        text = f"{verdict}. {'; '.join(sentences).capitalize()}. Order {number}."
        rows.append(
            {
                "title": f"My new {product}",
                "review": text,
                "stars": stars,
                "delight": round(sum(good) / len(good) + stars / 5 + generator.gauss(0, 0.05), 3),
                "aspects": sorted(mentioned),
            }
        )
    return rows


def pairs(count: int, seed: int = 0) -> list[dict]:
    """Two sentences each, and whether they agree."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        first, second = generator.choice(sorted(ASPECTS)), generator.choice(sorted(ASPECTS))
        one, other = generator.randint(0, 1), generator.randint(0, 1)
        label = "agree" if one == other else "disagree"
        rows.append({"sentence1": ASPECTS[first][one], "sentence2": ASPECTS[second][other], "label": label})
    return rows


def chats(count: int, seed: int = 0) -> list[dict]:
    """Conversations of two rounds about reviews."""
    generator = random.Random(seed)
    rows = []
    for row in reviews(count, seed):
        polite = generator.choice(("please", "quickly"))
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"How many stars, {polite}? {row['review']}"},
                    {"role": "assistant", "content": f"{row['stars']} stars."},
                    {"role": "user", "content": "And what is it about?"},
                    {"role": "assistant", "content": ", ".join(row["aspects"]) + "."},
                ]
            }
        )
    return rows


def write(path: Path, rows: list[dict]) -> Path:
    """Write rows in the format that the file's name says; lists as `a;b` in CSV and TSV."""
    suffix = path.suffix
    if suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            flat = [{k: ";".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
            writer.writerows(flat)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


class Notices(Reporter):
    def __init__(self):
        self.texts = []

    def notice(self, text):
        self.texts.append(text)


def read(path, report=None, **data) -> OwnData:
    source = Source(None, offline=True, report=report or Reporter())
    return OwnData(DataConfig(path=str(path), **data), source)


def rows(data: OwnData, split="train"):
    return data.load(data.source, split).to_list()


def error(path, **data) -> str:
    with pytest.raises(UserError) as found:
        read(path, **data)
    return str(found.value)


def csv_file(tmp_path: Path, text: str, name="t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path
