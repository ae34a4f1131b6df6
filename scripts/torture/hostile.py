"""Hostile files and names: nothing is executed, nothing is written elsewhere, and each is refused in one sentence."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torture.payloads import CODE, DEEP, DIGITS, GGUF, ODD, VALUES, YAML, Content, json_with, lying
from torture.runs import BERT, Ground, Part, every, fault, fresh, options
from torture.server import Trial, bounded, call

HOSTILE = "hostile: code in files, adapters, backbones, tokenizers, safetensors, YAML, names, bombs"
SHORT = [part for setting in (*BERT, "train.epochs=1", "limit.train=16") for part in ("-o", setting)]
LORA = [*SHORT, "-o", "method.name=lora"]
HERE = "{here}"
"""In a command: the folder of the trial."""
OURS = {"run", "half", "backbone", "adapter", "mark", "log", "inside", "files"}


@dataclass(frozen=True)
class Attack:
    """Files in a folder, and the command that meets them."""

    what: str
    command: list[str]
    copies: tuple[str, ...] = ()
    """What is there: run (finished), half (killed), backbone, adapter."""
    files: Mapping[str, Content | bytes] = field(default_factory=dict)
    """Put over that."""


def backbone_of(ground: Ground) -> Path:
    """Return a folder with a right model and its tokenizer."""
    folder = ground.root / "backbone"
    if not folder.is_dir():
        call(["export", ground.finished, "--to", "merged", "--out", folder, "--base", "x"], ground.root / "log")
        for name in ("README.md", "lora_drop.json"):
            (folder / name).unlink(missing_ok=True)
    return folder


def code(ground: Ground) -> Iterator[Attack]:
    """Code in place of, or beside, every file that is read."""
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
    """Configurations and experiments."""
    for name, content in YAML.items():
        yield Attack(f"YAML {name}", ["run", "-d", "{here}/run", "-c", "{here}/a.yaml"], (), {"a.yaml": content})
        yield Attack(f"experiment {name}", ["reproduce", "{here}/a.yaml", "--dry-run"], (), {"a.yaml": content})
        yield Attack(f"config.yaml {name}", ["runs", "{here}"], ("run",), {"run/config.yaml": content})


def adapters(ground: Ground) -> Iterator[Attack]:
    """Settings of adapters that are not what they should be."""
    content = json.loads((ground.finished / "adapter" / "adapter_config.json").read_text())
    content |= {"auto_mapping": {"base_model_class": "os", "parent_library": "os"}, "auto_map": {"AutoModel": "x.y"}}
    ways = ([*LORA, "-o", "train.start_from={here}/adapter"], [*SHORT, "-o", "warmup.adapter={here}/adapter"])
    number = 0
    for key in sorted({*content, "megatron_core", "runtime_config", "eva_config", "lora_dtype", "unknown"}):
        for value in (*VALUES, *ODD):
            number += 1
            if number % 4 == 0:  # each key meets a part of the values
                command = ["run", "-d", "{here}/run", *ways[number // 4 % 2]]
                files: Mapping[str, Content | bytes] = {"adapter/adapter_config.json": json_with(content, key, value)}
                yield Attack(f"adapter: {key} = {str(value)[:40]}", command, ("adapter",), files)
    module = json.dumps({**content, "megatron_config": {"x": 1}, "megatron_core": "evil"}).encode()
    for way in ways:
        files = {"adapter/adapter_config.json": module, "evil.py": CODE["python"]}
        yield Attack("adapter: a module for Megatron", ["run", "-d", "{here}/run", *way], ("adapter",), files)
    for text in ("", "[]", "null", "{}", DEEP, DIGITS, '{"peft_type": "LORA"}', '{"peft_type": "EVIL"}'):
        for way in ways:
            files = {"adapter/adapter_config.json": text.encode()}
            yield Attack(f"adapter: {text[:30]}", ["run", "-d", "{here}/run", *way], ("adapter",), files)
    for name, made in lying((ground.finished / "adapter" / "adapter_model.safetensors").read_bytes()).items():
        for way in ways:
            files = {"adapter/adapter_model.safetensors": made}
            yield Attack(f"adapter: {name}", ["run", "-d", "{here}/run", *way], ("adapter",), files)


def backbones(ground: Ground) -> Iterator[Attack]:
    """Models and tokenizers."""
    folder = backbone_of(ground)
    command = ["run", "-d", "{here}/run", *LORA, "-o", "backbone={here}/backbone"]
    content = json.loads((folder / "config.json").read_text())
    remote = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    special: Mapping[str, list[Any]] = {
        "auto_map": [
            remote,
            "evil--evil.Config",
            {"AutoConfig": "../evil.Config"},
            {"AutoTokenizer": ["evil.T", None]},
        ],
        "_attn_implementation": ["kernels-community/evil", "evil"],
        "attn_implementation": ["kernels-community/evil", "flash_attention_2"],
        "quantization_config": [{"quant_method": name} for name in ("gptq", "awq", "evil", "bitsandbytes", "quark")],
        "hidden_act": ["os.system", "__import__", "gelu_new"],
        "model_type": ["evil", "../bert", "llama", "t5", "vit"],
        "dtype": ["os.system", "float64", "__class__"],
    }
    python: Mapping[str, Content | bytes] = {
        "backbone/evil.py": CODE["python"],
        "backbone/modeling_evil.py": CODE["python"],
    }
    for key, values in special.items():
        for value in values:
            files = {"backbone/config.json": json_with(content, key, value), **python}
            yield Attack(f"config.json: {key} = {value}", command, ("backbone",), files)
    number = 0
    for key in sorted({*content, "tie_word_embeddings", "pruned_heads", "torchscript", "base_model_tp_plan"}):
        for value in (*VALUES, *ODD):
            number += 1
            if number % 4 == 0:
                files = {"backbone/config.json": json_with(content, key, value)}
                yield Attack(f"config.json: {key} = {str(value)[:40]}", command, ("backbone",), files)
    for name, made in lying((folder / "model.safetensors").read_bytes()).items():
        yield Attack(f"model.safetensors: {name}", command, ("backbone",), {"backbone/model.safetensors": made})
    for value in ("../x.safetensors", "/etc/passwd", "", None, 3, ["x"], "evil.py", "pytorch_model.bin"):
        index = json.dumps({"metadata": {}, "weight_map": {"a": value}}).encode()
        yield Attack(
            f"index: {value}",
            command,
            ("backbone",),
            {"backbone/model.safetensors": b"", "backbone/model.safetensors.index.json": index},
        )
    for name, made in GGUF.items():
        yield Attack(
            f"GGUF {name}", ["run", "-d", "{here}/run", *LORA, "-o", "backbone={here}/x.gguf"], (), {"x.gguf": made}
        )
        yield Attack(f"GGUF {name} in a folder", command, ("backbone",), {"backbone/model.safetensors": made})
    yield from _tokenizers(folder, command)


def _tokenizers(folder: Path, command: list[str]) -> Iterator[Attack]:
    content = json.loads((folder / "tokenizer_config.json").read_text())
    python: Mapping[str, Content | bytes] = {"backbone/evil.py": CODE["python"]}
    values: dict[str, tuple[Any, ...]] = {
        "auto_map": ({"AutoTokenizer": ["evil.T", "evil.T"]}, "evil.T", {"AutoTokenizer": "x/y--evil.T"}),
        "tokenizer_class": ("os.system", "../x", "PreTrainedTokenizer", "EvilTokenizer", 3, [], "BertTokenizer"),
        "model_max_length": ("x", -1, 10**30, None, "NaN", DIGITS),
        "chat_template": (
            "{{ cycler.__init__.__globals__.os.mkdir('x') }}",
            "{% for x in range(10**9) %}{% endfor %}",
            3,
        ),
        "added_tokens_decoder": ({"-1": {"content": "x"}}, {"x": {}}, {str(10**12): {"content": "y"}}, [], "x"),
        "pad_token": (None, 3, [], {"content": 3}, "", "x" * 10**6),
        "extra_special_tokens": ({"a": 3}, ["x"], 3),
        "tokenizer_file": ("../../x", "/etc/passwd"),
    }
    for key, some in values.items():
        for value in some:
            files = {"backbone/tokenizer_config.json": json_with(content, key, value), **python}
            yield Attack(f"tokenizer_config.json: {key} = {str(value)[:40]}", command, ("backbone",), files)
    good = json.loads((folder / "tokenizer.json").read_text())
    for text in ("", "null", "[]", "{}", DEEP, DIGITS):
        yield Attack(f"tokenizer.json: {text[:20]}", command, ("backbone",), {"backbone/tokenizer.json": text.encode()})
    regex = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
    kinds: Mapping[str, tuple[Any, ...]] = {
        "model": (
            {"type": "Evil"},
            {},
            None,
            {**good["model"], "vocab": {}},
            {**good["model"], "vocab": {"a": 10**12}},
        ),
        "pre_tokenizer": (regex, {"type": "Evil"}, 3),
        "normalizer": ({"type": "Replace", "pattern": {"Regex": "("}, "content": ""}, 3),
        "post_processor": (None, {"type": "Evil"}),
        "added_tokens": ([{"id": -1}], [{"id": 10**12, "content": "x"}], 3),
    }
    for key, some in kinds.items():
        for value in some:
            files = {"backbone/tokenizer.json": json.dumps({**good, key: value}).encode()}
            yield Attack(f"tokenizer.json: {key} = {str(value)[:40]}", command, ("backbone",), files)


def names(ground: Ground) -> Iterator[Attack]:
    """Names that would leave their folder, or that no file can have."""
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
    """Small files that would be large, or never end."""
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


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return attacks of all kinds, evenly spread."""
    kinds = [list(kind(ground)) for kind in (code, yaml, adapters, backbones, names, bombs)]
    total = sum(map(len, kinds))
    chosen = [every(kind, max(1, -(-count * len(kind) // total))) for kind in kinds]
    return [{"attack": attack} for kind in chosen for attack in kind]


def _names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def attack(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Put the files where they are met, run the command in a folder of others, and look at what it did."""
    mine: Attack = case["attack"]
    here = fresh(folder / "here")
    mark, inside = here / "mark", here / "inside"
    theirs = {"adapter/mine": "1", "checkpoints/mine": "2", "mine.txt": "3", "warmup/mine": "4"}
    sources = {
        "run": ground.finished,
        "half": ground.half,
        "backbone": ground.root / "backbone",
        "adapter": ground.finished / "adapter",
    }
    for name in mine.copies:
        shutil.copytree(sources[name], here / name)
    for name, content in {**theirs, **mine.files}.items():
        path = (inside if name in theirs else here) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            content.encode() if isinstance(content, str) else content if isinstance(content, bytes) else content(mark)
        )
    before = _names_in(here) | _names_in(folder)

    def hook() -> None:
        bounded()
        os.chdir(inside)
        os.environ["HOME"] = str(inside)
        sys.path.insert(0, str(here))  # a module that a file names could be found there

    ended = call([part.replace("{here}", str(here)) for part in mine.command], folder / "log", hook, seconds=60)
    elsewhere = (_names_in(here) | _names_in(folder)) - before - OURS
    lost = [
        name for name, text in theirs.items() if not (inside / name).is_file() or (inside / name).read_text() != text
    ]
    if mark.exists():
        problem = "executed"
    elif elsewhere or lost:
        problem = f"wrote {elsewhere} outside, removed {lost}"
    elif ended.traceback or ended.code not in (0, 2):
        problem = ended.kind
    elif ended.code == 2:
        said = len(re.findall(r"^Error:", ended.text, re.MULTILINE))
        problem = "" if said == 1 else f"{said} sentences: {ended.text[-300:]}"
    else:
        run = here / ("half" if "half" in mine.copies else "run")
        compared = mine.command[0] == "run" and set(mine.copies) & {"run", "half"}
        problem = fault(run, ground.known[ground.first]["results"], facts=False) if compared else ""
    yield Trial(HOSTILE, f"{mine.what}: {'refused' if ended.code else 'harmless'}", problem)


PARTS = (Part(HOSTILE, 400, cases, attack),)
