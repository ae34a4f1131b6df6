"""What identifies a configuration: all that decides its results, and nothing of where it runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lora_drop.config.schema import Config

LATER_KEYS = {
    **{"train.products": "auto", "train.held_out": 0.0, "train.head_learning_rate": None},
    **{"score.criterion": "output", "score.compare": None, "warmup.adapter": None},
}
"""Keys that came after the first results, with the values that configurations without them mean: these values are left
out of a configuration's identity, so that it stays what it was."""

OWN = "own"
"""The task of a configuration with data of the user's own."""
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?(?:@(?P<revision>\S+))?")
"""What `data.path` may be instead of a path on this computer."""

WHERE_KEYS = ("data_dir", "device", "offline", "train.report_to", "train.logging_steps")
"""Keys that say where a run happens and who watches it, not what it computes: they are left out of its identity."""


def subject(task: str, data: Mapping[str, Any]) -> str:
    """Return the name of a task for people: of data of the user's own (`data.*`), that of the file or the data set."""
    named = data.get("name") or data.get("path")
    return Path(str(named)).name if task == OWN and named else task


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested dictionaries (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def what_is_computed(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that decides results. Data of one's own are named only where there are any."""
    found = without(to_dict(config), WHERE_KEYS if config.data.given else (*WHERE_KEYS, "data"))
    for dotted, meant in LATER_KEYS.items():
        section, key = dotted.split(".")
        if found[section][key] == meant:
            del found[section][key]
    return found


def without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return nested values without those at these dotted keys."""
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for dotted in keys:
        section, _, key = dotted.rpartition(".")
        inner = found.get(section) if section else found
        if isinstance(inner, dict):
            inner.pop(key, None)
    return found


def config_hash(config: Config) -> str:
    """Return 12 hexadecimal digits that identify what a run computes (WHERE_KEYS are left out)."""
    return hashlib.sha256(json.dumps(what_is_computed(config), sort_keys=True).encode()).hexdigest()[:12]


def to_yaml(config: Config) -> str:
    """Return the content of a configuration file that gives the same configuration again, whatever its texts hold."""
    return as_yaml(to_dict(config))


def as_yaml(values: Mapping[str, Any]) -> str:
    """Return YAML that reads back as these plain values, whatever their texts hold."""
    readable = json.dumps(
        values, ensure_ascii=False
    ).isprintable()  # else escaped: YAML takes U+0085, say, for a line end
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=readable)
