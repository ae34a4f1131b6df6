"""A JSON schema of configuration files, with which editors complete keys, show their meaning, and mark mistakes."""

from __future__ import annotations

import dataclasses
import json
import typing
from typing import Any

from lora_drop.config.schema import Config
from lora_drop.config.strict import alternatives, describe
from lora_drop.registry import METHODS, TASKS

TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def schema() -> dict[str, Any]:
    """Return the schema of a configuration file, draft 2020-12.

    Names of tasks and methods are suggestions only, as a plugin may add others. The method defines the content of
    `method.options`.
    """
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lora-drop", **_section(Config)}
    method = found["properties"]["method"]["properties"]
    found["properties"]["task"]["examples"] = TASKS.names()
    method["name"]["examples"] = METHODS.names()
    method["options"] = {
        "type": "object",
        "description": "Hyper-parameters of the method's own, where it declares any.",
    }
    return found


def _section(cls: type) -> dict[str, Any]:
    """Return the schema of a dataclass. Its fields are the only keys, and none is required."""
    hints, texts = typing.get_type_hints(cls), describe(cls)
    keys = {
        item.name: {**_key(hints[item.name], item), "description": texts[item.name]} for item in dataclasses.fields(cls)
    }
    return {"type": "object", "properties": keys, "additionalProperties": False}


def _key(hint: Any, item: dataclasses.Field[Any]) -> dict[str, Any]:
    if dataclasses.is_dataclass(hint):
        return _section(typing.cast(type, hint))
    found: dict[str, Any] = dict(item.metadata.get("schema", {}))
    kinds = alternatives(hint)
    if typing.get_origin(kinds[0]) is tuple:
        kind = TYPES[typing.get_args(kinds[0])[0]]
        empty = ["null"] if type(None) in kinds else []
        found |= {"type": ["array", kind, *empty], "items": {"type": kind}, "minItems": 1}
    else:
        names = [TYPES.get(kind, "null") for kind in kinds]
        found["type"] = names if len(names) > 1 else names[0]
    return {**found, "default": json.loads(json.dumps(item.default))}
