"""Hostile models: adapters, backbones and tokenizers with wrong files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torture.attacks import LORA, SHORT, Attack
from torture.payloads import CODE, DEEP, DIGITS, GGUF, ODD, VALUES, Content, json_with, lying
from torture.runs import Ground
from torture.server import call


def backbone_of(ground: Ground) -> Path:
    """Return a folder with a valid model and its tokenizer."""
    folder = ground.root / "backbone"
    if not folder.is_dir():
        call(["export", ground.finished, "--to", "merged", "--out", folder, "--base", "x"], ground.root / "log")
        for name in ("README.md", "lora_drop.json"):
            (folder / name).unlink(missing_ok=True)
    return folder


def adapters(ground: Ground) -> Iterator[Attack]:
    """Yield attacks with wrong adapters."""
    content = json.loads((ground.finished / "adapter" / "adapter_config.json").read_text())
    content |= {"auto_mapping": {"base_model_class": "os", "parent_library": "os"}, "auto_map": {"AutoModel": "x.y"}}
    ways = ([*LORA, "-o", "train.start_from={here}/adapter"], [*SHORT, "-o", "warmup.adapter={here}/adapter"])
    number = 0
    for key in sorted({*content, "megatron_core", "runtime_config", "eva_config", "lora_dtype", "unknown"}):
        for value in (*VALUES, *ODD):
            number += 1
            if number % 4 == 0:  # each key gets a part of the values
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
    """Yield attacks with wrong models and tokenizers."""
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
