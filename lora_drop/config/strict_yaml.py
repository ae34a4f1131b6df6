"""Read YAML strictly: refuse duplicate keys and what is too large or too deep, and report each fault in a sentence."""

from __future__ import annotations

from typing import Any

import yaml

from lora_drop.errors import UserError

MOST_BYTES = 2**18
MOST_VALUES = 20_000
"""Limit after expanding aliases: a few lines of aliases of aliases would make billions of values."""
DEEPEST = 20
MOST_BITS = 4096
"""Most bits of a whole number."""


class _Loader(yaml.SafeLoader):
    """The safe loader, but refusing duplicate keys, of which it would use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in names:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:  # such as 59:59:59:… or 0xfff…, which Python can read but not print
            raise yaml.constructor.ConstructorError(None, None, "a number that is too large", node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse(content: bytes, name: str) -> dict[str, Any]:
    """Return the keys and values of a YAML text, or {} for an empty one. Raise a UserError with `name` otherwise."""
    if len(content) > MOST_BYTES:
        raise UserError(
            f"{name} has {len(content):,} bytes, which is too large for a configuration (at most {MOST_BYTES:,})."
        )
    try:
        value = value_of(content.decode())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{name} is not readable YAML{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or over a limit
        raise UserError(f"{name} is not readable YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{name} must hold keys and values, but holds a {type(value).__name__}.")
    return value


def value_of(text: str) -> Any:
    """Return the value of a YAML text. Raise yaml.YAMLError, or ValueError if it is too large."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {}, 0)
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return the number of values in a node, with aliases expanded. Raise ValueError if it is too large or too deep."""
    if depth > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")
    if id(node) not in known:
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_size(child, known, depth + 1) for child in children)
    if known[id(node)] > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_VALUES:,} values")
    return known[id(node)]
