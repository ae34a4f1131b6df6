"""A configuration as YAML with the meaning of every key: to read, to save, and to run."""

from __future__ import annotations

import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

from lora_drop.config.identity import to_yaml
from lora_drop.config.schema import Config
from lora_drop.config.strict import describe

WIDTH = 78


def explained(config: Config) -> str:
    """Return the content of a configuration file that gives the same configuration, with a comment above each key."""
    lines: list[str] = []
    sections: list[Any] = [config]  # that the line is in, from the outermost
    for line in to_yaml(config).splitlines():
        key = re.match(r"((?:  )*)(\w+):", line)
        if key is None:  # an item of a list
            lines.append(line)
            continue
        indent, name = key.groups()
        if not indent:
            lines.append("")
        del sections[len(indent) // 2 + 1 :]
        section: type = type(sections[-1])
        text = describe(section).get(name, "")
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        lines.append(line)
        value = getattr(sections[-1], name)
        if is_dataclass(value):
            sections.append(value)
    return "\n".join(lines).strip() + "\n"
