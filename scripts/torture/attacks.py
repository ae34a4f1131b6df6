"""Hostile files and names: code, configurations, names that leave their folder, small files that expand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torture.payloads import CODE, DEEP, DIGITS, YAML, Content
from torture.runs import BERT, Ground, options

SHORT = [part for setting in (*BERT, "train.epochs=1", "limit.train=16") for part in ("-o", setting)]
LORA = [*SHORT, "-o", "method.name=lora"]
HERE = "{here}"
"""Placeholder, in a command, for the folder of the trial."""


@dataclass(frozen=True)
class Attack:
    """Files in a folder, and the command that reads them."""

    what: str
    command: list[str]
    copies: tuple[str, ...] = ()
    """Folders copied to the trial: run (finished), half (killed), backbone, adapter."""
    files: Mapping[str, Content | bytes] = field(default_factory=dict)
    """Files written over the copies."""


def code(ground: Ground) -> Iterator[Attack]:
    """Yield attacks with code in place of, or beside, every file that is read."""
    checkpoint = max(ground.half.glob("checkpoints/train/checkpoint-*")).relative_to(ground.half)
    again, started = ["run", "-d", "{here}/run", *options(ground.first)], ["run", "-d", "{here}/run", *LORA]
    of_run = (
        "scores.json",
        "selection.json",
        "sample.json",
        "run.json",
        "config.yaml",
        "metrics.json",
        "predictions.jsonl",
    )
    adapters = (
        "adapter_model.safetensors",
        "adapter_model.bin",
        "adapter_config.json",
        "lora_drop.json",
        "pytorch_model.bin",
    )
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "state.safetensors",
              "trainable.safetensors", "random.safetensors", "trainer_state.json", "manifest.json")  # fmt: skip
    models = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "config.json", "tokenizer.json",
              "tokenizer_config.json", "vocab.txt", "special_tokens_map.json", "training_args.bin", "chat_template.jinja",
              "added_tokens.json", "generation_config.json", "tf_model.h5", "flax_model.msgpack")  # fmt: skip
    inspected = ("x.csv", "x.tsv", "x.json", "x.jsonl", "x.parquet")
    for form, content in CODE.items():
        for name in of_run:
            yield Attack(f"{form} as run/{name}", again, ("run",), {f"run/{name}": content})
        for name in adapters:
            yield Attack(
                f"{form} as adapter/{name}, eval",
                ["eval", "-d", "{here}/run"],
                ("run",),
                {f"run/adapter/{name}": content},
            )
            yield Attack(f"{form} as warmup/{name}, run", again, ("run",), {f"run/warmup/{name}": content})
            start = [*started, "-o", "train.start_from={here}/adapter"]
            yield Attack(f"{form} as {name}, start_from", start, ("adapter",), {f"adapter/{name}": content})
        for name in states:
            half = ["run", "-d", "{here}/half", *options(ground.first)]
            yield Attack(f"{form} as checkpoint/{name}", half, ("half",), {f"half/{checkpoint}/{name}": content})
        for name in models:
            command = [*started, "-o", "backbone={here}/backbone"]
            yield Attack(f"{form} as backbone/{name}", command, ("backbone",), {f"backbone/{name}": content})
        for name in inspected:
            yield Attack(f"{form} as {name}", ["tasks", "--inspect", f"{HERE}/{name}"], (), {name: content})
        yield Attack(
            f"{form} as predictions",
            ["eval", "--task", "toy-nli", "--predictions", "{here}/p.jsonl"],
            (),
            {"p.jsonl": content},
        )
        yield Attack(
            f"{form} as a record",
            ["report", "--results", "{here}/files", "--no-figures"],
            (),
            {"files/x/y/z.json": content},
        )


def yaml(ground: Ground) -> Iterator[Attack]:
    """Yield attacks with configurations and experiments."""
    for name, content in YAML.items():
        yield Attack(f"YAML {name}", ["run", "-d", "{here}/run", "-c", "{here}/a.yaml"], (), {"a.yaml": content})
        yield Attack(f"experiment {name}", ["reproduce", "{here}/a.yaml", "--dry-run"], (), {"a.yaml": content})
        yield Attack(f"config.yaml {name}", ["runs", "{here}"], ("run",), {"run/config.yaml": content})


def names(ground: Ground) -> Iterator[Attack]:
    """Yield attacks with names that would leave their folder, or that no file can have."""
    strange = (
        "../outside",
        "/outside",
        "a/b",
        "..",
        ".",
        "",
        "x\n",
        "~",
        "a\x00b",
        "x" * 5000,
        "-x",
        "x/../..",
        "CON",
        "\u202e",
        "\ud800",
    )
    experiment = {"rows": {"a": {}}, "tasks": ["toy-nli"], "seeds": [0], "title": "x", "set": {"backbone": "tiny:bert"}}
    for name in strange:
        text = json.dumps({**experiment, "name": name}).encode()
        shown = repr(name)[:30]
        yield Attack(
            f"experiment named {shown}",
            ["reproduce", "{here}/e.yaml", "--dry-run", "--results", "{here}/files"],
            (),
            {"e.yaml": text},
        )
        row = json.dumps({**experiment, "rows": {name: {}}}).encode()
        yield Attack(
            f"row named {shown}",
            ["reproduce", "{here}/e.yaml", "--dry-run", "--results", "{here}/files"],
            (),
            {"e.yaml": row},
        )
        if "\x00" in name or "\ud800" in name:
            continue  # no command line can hold them
        yield Attack(f"backbone named {shown}", ["run", "-d", "{here}/run", *LORA, "-o", f"backbone={name}"])
        yield Attack(f"task named {shown}", ["run", "-d", "{here}/run", *LORA, "-o", f"task={name}"])
        yield Attack(f"data named {shown}", ["tasks", "--inspect", name])
        rows = b"text,label\n" + b"a good dog,x\na bad dog,y\n" * 12
        info = json.dumps({name: {"file_name": "rows.jsonl", "columns": {"prompt": "p", "response": "r"}}}).encode()
        lines = b'{"p": "say a", "r": "a"}\n' * 12
        made = {"files/dataset_info.json": info, "files/rows.jsonl": lines}
        options = ["-o", "backbone=tiny:llama", "-o", "train.epochs=1"]
        command = ["run", "--dataset-info", "{here}/files/dataset_info.json", "--name", name, *options]
        yield Attack(f"data set named {shown}", command, (), made)
        yield Attack(
            f"--to {shown}",
            ["predict", "{here}/run", "--data", "{here}/rows.csv", "--to", name],
            ("run",),
            {"rows.csv": rows},
        )
        yield Attack(f"-d {shown}", ["runs", "clean", name, "--unfinished", "--yes"])
    for name in ("", ".", "./", "../inside"):
        yield Attack(f"-d {name!r} in a foreign folder", ["run", "-d", name, *LORA])
        yield Attack(f"select -d {name!r} in a foreign folder", ["select", "-d", name])


def bombs(ground: Ground) -> Iterator[Attack]:
    """Yield attacks with small files that would become large or never end."""
    import io

    import pyarrow
    from pyarrow.parquet import write_table

    def parquet(columns: dict[str, Any]) -> bytes:
        stream = io.BytesIO()
        write_table(pyarrow.table(columns), stream, compression="zstd", use_dictionary=True)
        return stream.getvalue()

    files = {
        "x.json": [DEEP, DIGITS, "[" + "1," * 10**6 + "1]", '[{"text": "a", "label": 1e999}]', '{"a":' * 50_000],
        "x.jsonl": [DEEP, DIGITS, '{"text": ' + DEEP, '{"text": "a", "label": ' + DIGITS + "}", "\n" * 10**6],
        "x.csv": [
            'text,label\n"' + "a" * 10**7,
            "text," * 10**5,
            "\x00" * 10**5,
            "text,label\n" + "a,[" + "-" * 10**5 + "1]\nb,c\n",
        ],
    }
    for name, texts in files.items():
        for text in texts:
            yield Attack(f"{name}: {text[:20]!r}", ["tasks", "--inspect", f"{HERE}/{name}"], (), {name: text.encode()})
    long = pyarrow.array(["x" * 10**6] * 300)
    for what, columns in {
        "300 MB of text": {"text": long, "label": ["a", "b", "c"] * 100},
        "no columns": {},
        "nested": {"text": [[[["a"]]]] * 9, "label": [{"a": {"b": 1}}] * 9},
        "binary": {"text": [b"\xff\x00"] * 9, "label": [b"\xfe"] * 9},
    }.items():
        made = parquet(columns)
        yield Attack(f"parquet: {what}", ["tasks", "--inspect", "{here}/x.parquet"], (), {"x.parquet": made})
        yield Attack(
            f"parquet: {what}, cut",
            ["tasks", "--inspect", "{here}/x.parquet"],
            (),
            {"x.parquet": made[: len(made) // 2] + made[-8:]},
        )
