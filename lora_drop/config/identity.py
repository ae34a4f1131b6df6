"""The identity of a configuration: everything that decides its results, and nothing about where it runs."""

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
"""Keys added after the first results, with the values that older configurations imply. These values are left out of a
configuration's identity, so that older identities stay valid."""

OWN = "own"
"""Name of the task for the user's own data."""
HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<configuration>[\w.-]+))?(?:@(?P<revision>\S+))?")
"""Pattern of a `data.path` on the Hub, rather than on this computer."""

WHERE_KEYS = ("data_dir", "device", "offline", "train.report_to", "train.logging_steps", "train.save_steps")
"""Keys that say where a run happens and how it is tracked and saved, not what it computes. A run's identity leaves them
out."""


def subject(task: str, data: Mapping[str, Any]) -> str:
    """Return a readable name of a task. For the user's own data (`data.*`), it is the name of the file or data set."""
    named = data.get("name") or data.get("path")
    return Path(str(named)).name if task == OWN and named else task


def criterion_of(stored: Mapping[str, Any]) -> str:
    """Return the criterion of a stored configuration. Those of earlier versions name none: it was the paper's."""
    return str(stored.get("score", {}).get("criterion", LATER_KEYS["score.criterion"]))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain nested dictionaries (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def what_is_computed(config: Config) -> dict[str, Any]:
    """Return the part of a configuration that decides results. The section `data` is left out unless it names data."""
    found = without(to_dict(config), WHERE_KEYS if config.data.given else (*WHERE_KEYS, "data"))
    for dotted, meant in LATER_KEYS.items():
        section, key = dotted.split(".")
        if found[section][key] == meant:
            del found[section][key]
    found["train"]["save_steps"] = None  # so that older identities, which had it, stay valid
    return found


def without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return nested values without these dotted keys."""
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
    """Return the content of a configuration file that gives the same configuration again, for any text values."""
    return as_yaml(to_dict(config))


def as_yaml(values: Any, width: int = 80) -> str:
    """Return YAML, in lines of about `width` characters, that reads back as the same plain values, for any texts."""
    # other texts are escaped: YAML reads U+0085, for example, as a line end
    readable = json.dumps(values, ensure_ascii=False).isprintable()
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=readable, width=width))
