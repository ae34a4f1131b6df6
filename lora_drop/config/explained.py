"""A configuration as YAML with the meaning of every key: to read, to save, and to run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from lora_drop.config.identity import as_yaml, to_dict
from lora_drop.config.schema import Config
from lora_drop.config.strict import describe

WIDTH = 78


def explained(config: Config) -> str:
    """Return the content of a configuration file that gives the same configuration, with a comment above each key."""
    return "\n".join(_lines(config, to_dict(config))).strip() + "\n"


def _lines(section: Any, values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of a section, whose plain `values` are those of `to_dict`."""
    kind: type = type(section)
    texts = describe(kind)
    for name, value in values.items():
        if not indent:
            yield ""
        yield from textwrap.wrap(
            texts.get(name, ""), WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# "
        )
        inner = getattr(section, name)
        if is_dataclass(inner) and value:
            yield f"{indent}{name}:"
            yield from _lines(inner, value, f"{indent}  ")
        else:  # by itself: the lines of a text look like keys
            yield textwrap.indent(as_yaml({name: value}), indent).removesuffix("\n")
