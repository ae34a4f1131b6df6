"""Build frozen dataclasses from untyped values, and collect all mistakes with their key, value and allowed values.

A field may have a rule (`checked` and the functions below it). The string under a field is its help text.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import yaml

from lora_drop.config.strict_yaml import DEEPEST, value_of
from lora_drop.errors import closest

T = TypeVar("T")
LARGEST = 10**9
"""Largest number in a configuration, unless its rule has another maximum: endless work is a mistake."""
LONGEST = 200
MOST_ERRORS = 20
"""Most mistakes that are listed one by one."""
_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)
"""The types of a dataclass's fields, cached because a grid reads thousands of configurations."""


def checked(default: Any, allowed: str, check: Callable[[Any], bool], **keywords: Any) -> Any:
    """Declare a field whose value must satisfy `check` (None is always accepted).

    `allowed` states the rule in words, and `keywords` in JSON schema keywords.
    """
    return dataclasses.field(default=default, metadata={"allowed": allowed, "check": check, "schema": keywords})


def one_of(default: str, *names: str) -> Any:
    """Declare a field with a few allowed values."""
    return checked(default, "one of " + ", ".join(names), lambda value: value in names, enum=list(names))


def positive(default: Any) -> Any:
    """Declare a number above 0."""
    return checked(default, "a number > 0", lambda value: value > 0, exclusiveMinimum=0)


def fraction(default: Any) -> Any:
    """Declare a number from 0 to below 1."""
    return checked(default, "in the range 0 ≤ value < 1", lambda value: 0 <= value < 1, minimum=0, exclusiveMaximum=1)


def portion(default: Any) -> Any:
    """Declare a number above 0, up to 1."""
    return checked(default, "in the range 0 < value ≤ 1", lambda value: 0 < value <= 1, exclusiveMinimum=0, maximum=1)


@cache
def describe(cls: Any) -> dict[str, str]:
    """Return the docstrings under the fields of a dataclass and of its bases, by field name."""
    texts = {}
    for owner in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(typing.cast(type, owner)))).body
        assert isinstance(definition, ast.ClassDef)
        for statement, following in zip(definition.body, definition.body[1:], strict=False):
            text = following.value if isinstance(following, ast.Expr) else None
            if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Constant):
                texts[ast.unparse(statement.target)] = " ".join(str(text.value).split())
    return texts


def flatten(cls: type, prefix: str = "") -> dict[str, tuple[Any, str]]:
    """Return every leaf key, dotted, with its default and help text."""
    leaves: dict[str, tuple[Any, str]] = {}
    for item in dataclasses.fields(cls):
        if dataclasses.is_dataclass(item.default):
            leaves |= flatten(type(item.default), f"{prefix}{item.name}.")
        else:
            leaves[prefix + item.name] = (item.default, describe(cls).get(item.name, ""))
    return leaves


def merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put `values` over `into`, section by section."""
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def key_of(override: str) -> str:
    """Return the key of `dotted.key=value`."""
    return override.partition("=")[0].strip()


def apply_override(into: dict[str, Any], override: str, errors: list[str], root: type) -> None:
    """Put one `dotted.key=value` over `into`, with the value parsed according to the type of that field of `root`."""
    key, separator, text = override.partition("=")
    if not (separator and key.strip()):
        errors.append(f"{override!r} is not of the form key=value (example: train.epochs=3)")
        return
    if key.count(".") > DEEPEST:
        errors.append(f"{shown(key)}: no such key.")
        return
    put(into, key.strip(), _read(text, _hint(root, key.strip())))


def _hint(root: type, dotted: str) -> Any:
    """Return the type of the field at `section.key`, or None if there is no such field."""
    found: Any = root
    for part in dotted.split("."):
        found = _hints(found).get(part) if dataclasses.is_dataclass(found) else None
    return found


def _read(text: str, hint: Any) -> Any:
    """Return the value of a text from the command line.

    For a text field, it is the text itself (`007`, `~`, `my #1 data`), or None for an empty text or `null` if the field
    may be empty. Whole numbers are decimal (`010` is 10). Everything else is parsed as YAML: a list, true or false, a
    section.
    """
    options = alternatives(hint)
    if str in options:
        return None if type(None) in options and text in ("", "null") else text
    try:
        return int(text) if int in options and text.isdecimal() else value_of(text)
    except (yaml.YAMLError, ValueError):
        return text


def alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that a hint allows."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def put(into: dict[str, Any], dotted: str, value: Any) -> None:
    """Put a value over `into` at `section.key`."""
    *path, last = dotted.split(".")
    nested: dict[str, Any] = {last: value}
    for part in reversed(path):
        nested = {part: nested}
    merge(into, nested)


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def build(cls: type[T], values: Any, errors: list[str], prefix: str = "", root: type | None = None) -> T:
    """Build a `cls` from nested mappings. Append mistakes to `errors` and use the defaults in their place."""
    root = root or cls
    if not isinstance(values, Mapping):
        names = ", ".join(item.name for item in dataclasses.fields(cls))  # type: ignore[arg-type]
        errors.append(f"{prefix.rstrip('.')} = {_repr(values)}: needs keys under it ({names})")
        return cls()
    hints = _hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in fields and len(errors) > MOST_ERRORS:
            errors.append(f"{shown(dotted)}: no such key.")
        elif key not in fields:
            errors.append(_unknown_key(root, dotted, str(key), prefix, list(fields)))
        elif dataclasses.is_dataclass(hints[key]):
            arguments[key] = build(hints[key], value, errors, f"{dotted}.", root)
        else:
            _check_leaf(fields[key], hints[key], value, dotted, arguments, errors)
    return cls(**arguments)


def _repr(value: Any) -> str:
    """Return a value for a message."""
    try:
        return shown(repr(value))
    except ValueError:
        return "a number of thousands of digits"


def shown(text: str) -> str:
    """Return a text for a message, shortened to its beginning if it is long."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _unknown_key(root: type, dotted: str, key: str, prefix: str, siblings: list[str]) -> str:
    by_leaf = {leaf.rsplit(".", 1)[-1]: leaf for leaf in flatten(root)}
    if key in by_leaf:  # the right name in the wrong place
        return f"{dotted}: no such key. Did you mean {by_leaf[key]!r}?"
    hint = closest(key, siblings)
    if hint and prefix:
        hint = hint.replace(" '", f" '{prefix}")
    where = f"under {prefix.rstrip('.')!r}: " if prefix else ""
    return f"{dotted}: no such key.{hint or closest(dotted, list(flatten(root)))} Allowed {where}{', '.join(siblings)}"


def _check_leaf(
    item: dataclasses.Field[Any], hint: Any, value: Any, dotted: str, arguments: dict[str, Any], errors: list[str]
) -> None:
    try:
        converted = _convert(value, hint)
    except ValueError as error:
        errors.append(f"{dotted} = {_repr(value)}: must be {error}")
        return
    bounded = "maximum" in item.metadata.get("schema", {})
    if isinstance(converted, (int, float)) and not bounded and abs(converted) > LARGEST:
        errors.append(f"{dotted} = {_repr(value)}: must be at most {LARGEST:,}")
        return
    check = item.metadata.get("check")
    if check is not None and converted is not None and not check(converted):
        nearest = closest(str(value), item.metadata["schema"].get("enum", []))
        errors.append(f"{dotted} = {_repr(value)}: must be {item.metadata['allowed']}.{nearest}")
        return
    arguments[item.name] = converted


def _convert(value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint`, accepting only lossless readings (1 as 1.0, '5e-4' as 0.0005)."""
    options = alternatives(hint)
    if value is None and type(None) in options:
        return None
    kind, *others = [option for option in options if option is not type(None)]
    if others:  # a union, such as a share or a name: the first type that accepts the value
        try:
            return _convert(value, kind)
        except ValueError:
            return _convert(value, others[0])
    if typing.get_origin(kind) is tuple:
        return _convert_list(value, typing.get_args(kind)[0])
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        inner = typing.get_args(kind)[1]
        return {str(key): entry if inner is Any else _convert(entry, inner) for key, entry in value.items()}
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if kind is float and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    if kind is str and isinstance(value, str):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text (in quotes)"}
    raise ValueError(names.get(kind, "keys and values") + (" or empty" if type(None) in options else ""))


def _convert_list(value: Any, kind: Any) -> tuple[Any, ...]:
    items = [value] if isinstance(value, (str, int)) else value
    what = "names" if kind is str else "whole numbers"
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(entry, kind) for entry in items):
        raise ValueError(f"a list of {what}")
    return tuple(items)
