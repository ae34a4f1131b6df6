"""Broken texts of every kind that users provide: each must give an answer, or a sentence and exit code 2."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from torture.runs import Ground, Part
from torture.server import Trial, bounded, call

FUZZ = "fuzz: configurations, overrides, experiments, records, predictions, own and official data"
PIECES = (
    *("~", "[]", "{}", "-1", "1e999", "9" * 5000, "[" * 2000, "{" * 2000, "\x00", "\ufeff", "&a [*a]", ".nan", "NaN"),
    *("'", '"', "a: b: c", "é" * 50, "\u2028", "\r", "\n", "\t", ",", "{x}", "{}.__class__", "%s", "null", "true"),
    *('"\\ud83d"', "x" * 70000, "../" * 20, "=1+1", "[" * 50000, "[" * 90 + "]" * 90, "[1, [2]]", "-", "--", "0x10"),
)
"""Pieces inserted literally into a text."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    0.5,
    "",
    " ",
    "x",
    "../x",
    "a" * 5000,
    [],
    [1],
    [None],
    [[]],
    {},
    {"x": 1},
    [{"x": []}],
)
"""Values that replace a valid one."""
SECONDS = 30
"""Seconds after which a command with a broken text counts as hung."""
ROWS = [
    {"text": f"dog {number} barks at the {('moon', 'sun')[number % 2]}", "label": "ab"[number % 2]}
    for number in range(24)
]
TURNS = [
    {"messages": [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": str(number)}]}
    for number in range(12)
]
RTE = [("index", "sentence1", "sentence2", "label"), *((n, f"A dog {n}.", "A cat.", "entailment") for n in range(9))]
INFO = {"x": {"file_name": "x.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}  # fmt: skip


def lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(rows: list[Any], separator: str = ",") -> str:
    """Return rows as a table."""
    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def parquet(rows: list[dict[str, Any]]) -> str:
    """Return a Parquet file of rows, its bytes as characters."""
    import pyarrow
    from pyarrow.parquet import write_table

    stream = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), stream)
    return stream.getvalue().decode("latin-1")


def predictions() -> str:
    """Return valid predictions for a task."""
    from lora_drop.registry import TASKS
    from lora_drop.tasks.base import Source

    task = TASKS.get("toy-nli")
    rows = task.load(Source(None), "validation")
    return lines([{"id": row["id"], "prediction": task.labels[row["label"]]} for row in rows])


def right(finished: Path) -> dict[str, str]:
    """Return a valid text of each kind."""
    record = next(iter(sorted((Path(__file__).parents[2] / "results").glob("*/*/*.json"))))
    experiment = {"title": "x", "rows": {"a": {"title": "A"}, "b": {"method.name": "full"}}, "tasks": ["toy-nli"]}
    cells = [list(row.values()) for row in ROWS]
    return {
        "configuration": (finished / "config.yaml").read_text(encoding="utf-8"),
        "override": "train.learning_rate=5e-4",
        "experiment": json.dumps({**experiment, "seeds": [0], "set": {"backbone": "tiny:bert"}}, indent=1),
        "record": record.read_text(encoding="utf-8"),
        "prediction": predictions(),
        "csv": table([("text", "label"), *cells]),
        "tsv": table([("text", "label"), *cells], "\t"),
        "json": json.dumps(ROWS, indent=1),
        "jsonl": lines(ROWS),
        "chat": lines(TURNS),
        "dataset_info": json.dumps(INFO),
        "parquet": parquet(ROWS),
        "official": table(RTE, "\t"),
    }


def commands(kind: str, text: str, folder: Path) -> list[str]:
    """Write a text where it belongs, and return the command that reads it."""
    content = text.encode("latin-1" if kind == "parquet" else "utf-8", errors="replace")

    def written(name: str) -> str:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    if kind == "override":
        return ["config", "-o", text.replace("\x00", "")]
    if kind == "record":
        written("results/x/y/a.json")
        return ["report", "--results", str(folder / "results")]
    if kind == "configuration":
        return ["config", "-c", written("a.yaml")]
    if kind == "experiment":
        return ["reproduce", written("e.yaml"), "--dry-run", "--results", str(folder / "results")]
    if kind == "prediction":
        return ["eval", "--task", "toy-nli", "--predictions", written("a.jsonl")]
    if kind == "dataset_info":
        (folder / "x.jsonl").write_text(lines(TURNS))
        return ["tasks", "--dataset-info", written("dataset_info.json"), "--name", "x"]
    if kind == "official":
        written("glue/RTE/dev.tsv")
        (folder / "p.txt").write_text("entailment\n" * 9)
        return ["eval", "--task", "rte", "--data-dir", str(folder), "--predictions", str(folder / "p.txt")]
    return ["tasks", "--inspect", written(f"rows.{'jsonl' if kind == 'chat' else kind}")]


def mutated(text: str, draw: random.Random, binary: bool) -> str:
    """Return a text with a few pieces cut out, doubled or inserted."""
    for _ in range(draw.randint(1, 3)):
        start, length = draw.randrange(len(text) + 1), draw.choice((1, 1, 4, 30, len(text) // 3))
        letter = chr(draw.randrange(256) if binary else draw.randrange(32, 300))
        put = draw.choice(("", text[start : start + length] * 2, draw.choice(PIECES), letter))
        text = text[:start] + (letter if binary and draw.random() < 0.7 else put) + text[start + length :]
    return text


def altered(value: Any, draw: random.Random) -> Any:
    """Return JSON-like values with one of them, at any depth, replaced, removed, doubled or under another key."""
    if not value or not isinstance(value, (dict, list)) or draw.random() < 0.1:
        # `rewritten` replaces "@NUMBER@", quotes included, by a piece
        return draw.choice((*VALUES, *(f"@{number}@" for number in range(len(PIECES)))))
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, changed, way = draw.choice(places), copy.copy(value), draw.random()
    if way < 0.1:
        del changed[place]
    elif way < 0.2:
        if isinstance(changed, dict):
            changed[draw.choice(("x", "", "a.b", *places))] = changed.pop(place)
        else:
            changed.append(changed[place])
    else:
        changed[place] = altered(value[place], draw)
    return changed


def rewritten(kind: str, text: str, draw: random.Random) -> str:
    """Return a text of a kind with valid syntax (except for what `altered` inserts) and one or two wrong values."""
    if kind == "override":
        key, _, right_one = text.partition("=")
        return draw.choice(
            (f"{draw.choice(PIECES)}={right_one}", f"{key}={draw.choice(PIECES)}", f"{key}={draw.choice(VALUES)}")
        )
    if kind in ("csv", "tsv", "official"):
        separator = "," if kind == "csv" else "\t"
        rows = [line.split(separator) for line in text.splitlines()]
        row = draw.choice((rows[0], draw.choice(rows)))
        row[draw.randrange(len(row))] = draw.choice(PIECES)
        return table(rows, separator)
    by_line = kind in ("jsonl", "chat", "prediction")
    value: Any = ROWS
    if kind != "parquet":
        value = [json.loads(line) for line in text.splitlines()] if by_line else yaml.safe_load(text)
    for _ in range(draw.randint(1, 2)):
        value = altered(value, draw)
    if kind == "parquet":
        try:
            return parquet(value)
        except Exception:  # noqa: BLE001 - values that a Parquet file cannot hold
            return mutated(text, draw, binary=True)
    written = lines(value) if by_line and isinstance(value, list) else json.dumps(value, indent=1)
    return re.sub(r'"@(\d+)@"', lambda found: PIECES[int(found[1])], written)


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return chunks of broken texts, each with the valid text, a seed, and the number of broken texts."""
    texts, chunks = right(ground.finished), 4
    size = max(1, -(-count // (chunks * len(texts))))
    return [
        {"kind": kind, "text": text, "seed": seed, "count": size}
        for seed in range(chunks if count > len(texts) else 1)
        for kind, text in texts.items()
    ]


def fuzz(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Give a command many broken texts of one kind in one process."""
    kind, told = case["kind"], folder / "told"
    told.write_text("")

    def all_of_them() -> None:
        bounded()
        draw = random.Random(case["seed"])
        for number in range(case["count"]):
            wrong = (
                rewritten(kind, case["text"], draw) if number % 3 else mutated(case["text"], draw, kind == "parquet")
            )
            with told.open("a") as file:
                file.write(f"{number}: ")
                file.flush()
                signal.alarm(SECONDS)
                outcome = _outcome(partial(commands, kind, wrong, folder))
                file.write(json.dumps(outcome) + "\n")
        signal.alarm(0)
        os._exit(0)

    ended = call([], folder / "log", all_of_them)
    outcomes = told.read_text().splitlines()
    if ended.code:  # the last text killed it
        outcomes[-1] = f"{outcomes[-1].partition(':')[0]}: {json.dumps(ended.kind)}"
    for line in outcomes:
        number, _, outcome = line.partition(": ")
        said = json.loads(outcome)
        fine = said in ("accepted", "refused")
        what = f"{kind}, seed {case['seed']}, number {number}"
        yield Trial(FUZZ, f"{what}: {said}" if fine else what, "" if fine else said)


def _outcome(command: Callable[[], list[str]]) -> str:
    from lora_drop.cli.app import main

    try:
        main(command())
    except SystemExit as ended:
        known: dict[Any, str] = {None: "accepted", 0: "accepted", 2: "refused"}
        return known.get(ended.code, f"exit {ended.code}")
    except BaseException as error:  # noqa: BLE001 - these are the faults to find
        return f"{type(error).__name__}: {error}"[:200]
    return "accepted"


PARTS = (Part(FUZZ, 2500, cases, fuzz),)
