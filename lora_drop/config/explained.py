"""Write a configuration as YAML with a comment that explains every key. The result can be saved and run."""

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
    """Return the content of a configuration file for this configuration, with a comment above each key."""
    return "\n".join(_lines(config, to_dict(config))).strip() + "\n"


def _lines(section: Any, values: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Yield the lines of a section, with its plain `values` from `to_dict`."""
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
        else:  # dumped on its own: the lines of a text may look like keys
            yield textwrap.indent(as_yaml({name: value}), indent).removesuffix("\n")
