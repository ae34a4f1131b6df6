"""A configuration as YAML with the meaning of every key: to read, to save, and to run."""

from __future__ import annotations

import re
import textwrap

from lora_drop.config.schema import Config, to_yaml
from lora_drop.config.strict import describe

WIDTH = 78


def explained(config: Config) -> str:
    """Return the content of a configuration file that gives the same configuration, with a comment above each key."""
    lines: list[str] = []
    section: type = Config
    for line in to_yaml(config).splitlines():
        key = re.match(r"( *)([a-z_]+):", line)
        if key is None:  # an item of a list
            lines.append(line)
            continue
        indent, name = key.groups()
        if not indent:
            section = Config
            lines.append("")
        text = describe(section)[name]
        lines += textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        lines.append(line)
        if not indent and line.endswith(":"):
            section = type(getattr(config, name))
    return "\n".join(lines).strip() + "\n"
