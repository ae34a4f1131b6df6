"""Write docs/configuration.md from the docstrings of the configuration (a test fails when it is stale)."""

import json
from pathlib import Path

from lora_drop.config.schema import Config
from lora_drop.config.strict import flatten

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Every key, its default, and what it means. Generated from `lora_drop/config/schema.py` by `scripts/make_docs.py`.

A configuration is one or more YAML files that state only what differs from the defaults (`-c`, later ones win), then
`-o key=value`, then flags such as `--seed`. `-c glue/rte` names a file that comes with the package. Unknown keys and wrong
values are errors, all reported at once. `lora-drop config -c FILE` prints the result; a run stores it as `config.yaml`.

A flag is taken as it is, and so is `-o` for a key that holds a text (`-o 'data_dir=/mnt/my #1 data'`); there, nothing or
`null` means empty, where the key may be. For other keys `-o` reads YAML: numbers, true and false, lists
(`-o 'method.target_projections=[query, key]'`).

A method of a plugin may have keys of its own: `method.options.NAME`.

| key | default | meaning |
|---|---|---|
"""


def render() -> str:
    rows = [f"| `{key}` | {_default(value)} | {_plain(text)} |" for key, (value, text) in flatten(Config).items()]
    return HEAD + "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    """Return a text with brackets escaped, so that they are not links."""
    return text.replace("[", r"\[")


def _default(value: object) -> str:
    return "" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET}")
