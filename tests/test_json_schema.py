"""The schema that editors check configuration files by: it accepts what `load_config` accepts."""

import dataclasses
import json
import re
from typing import Any

import pytest
import yaml

from lora_drop.config.files import OTHERS, config_folders
from lora_drop.config.identity import to_dict
from lora_drop.config.json_schema import schema
from lora_drop.config.loading import load_config
from lora_drop.config.schema import Config
from lora_drop.config.strict import describe, flatten

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


class Yaml12(yaml.SafeLoader):
    """YAML as editors read it: 5e-4 is a number."""


Yaml12.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def is_a(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        return isinstance(value, (int, float) if kind == "number" else int) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


def faults(value: Any, rule: dict[str, Any], where: str = "") -> list[str]:
    """Return what a JSON schema says against a value, of the keywords that ours has."""
    kinds = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
    if not any(is_a(value, kind) for kind in kinds):
        return [f"{where}: not {' or '.join(kinds)}"]
    if isinstance(value, dict):
        known = rule.get("properties", {})
        unknown = [
            f"{where}.{key}: unknown"
            for key in value
            if key not in known and not rule.get("additionalProperties", True)
        ]
        return unknown + [
            fault for key in known if key in value for fault in faults(value[key], known[key], f"{where}.{key}")
        ]
    if isinstance(value, list):
        return [fault for entry in value for fault in faults(entry, rule["items"], where)]
    if value is None:
        return []
    limits = {
        "minimum": lambda limit: value >= limit,
        "maximum": lambda limit: value <= limit,
        "exclusiveMinimum": lambda limit: value > limit,
        "exclusiveMaximum": lambda limit: value < limit,
        "enum": lambda limit: value in limit,
    }
    return [f"{where}: {name} {rule[name]}" for name, holds in limits.items() if name in rule and not holds(rule[name])]


def test_every_packaged_configuration_is_valid():
    files = [file for file in config_folders()[0].rglob("*.yaml") if not set(OTHERS) & set(file.parts)]
    assert len(files) > 10
    for file in files:
        assert faults(yaml.load(file.read_text(), Yaml12), schema()) == [], file
    assert faults(to_dict(load_config()), schema()) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("train: {epoch: 1}", ".train.epoch: unknown"),
        ("train: {epochs: many}", ".train.epochs: not number"),
        ("train: {epochs: 0}", ".train.epochs: exclusiveMinimum 0"),
        ("method: {policy: treshold}", ".method.policy: enum"),
        ("method: {threshold: 1.5}", ".method.threshold: maximum 1"),
        ("method: {target_projections: [1]}", ".method.target_projections: not string"),
        ("method: {dropout: 1}", ".method.dropout: exclusiveMaximum 1"),
        ("seed: -1", ".seed: minimum 0"),
        ("device: gpu", ".device: enum"),
        ("train: 3", ".train: not object"),
    ],
)
def test_mistakes_are_marked(text, fault):
    (found,) = faults(yaml.safe_load(text), schema())
    assert found.startswith(fault)


def test_every_key_is_explained_and_has_its_default():
    def section(cls, rule):
        assert list(rule["properties"])[: len(dataclasses.fields(cls))] == [
            item.name for item in dataclasses.fields(cls)
        ]
        for item in dataclasses.fields(cls):
            key = rule["properties"][item.name]
            assert key["description"] == describe(cls)[item.name]
            if dataclasses.is_dataclass(item.default):
                section(type(item.default), key)
            else:
                assert key["default"] == json.loads(json.dumps(item.default))

    section(Config, schema())
    assert json.loads(json.dumps(schema())) == schema()
    assert "e2e" in schema()["properties"]["task"]["examples"] and len(flatten(Config)) > 40
