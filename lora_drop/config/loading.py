"""Build a configuration from YAML files, overrides and flags.

All mistakes are collected and reported at once, each with its key, its value, the allowed values, and the nearest valid
name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_drop.config.files import read_config, read_sealed
from lora_drop.config.identity import OWN
from lora_drop.config.schema import Config, DataConfig, MethodConfig, OwnMethodConfig
from lora_drop.config.strict import MOST_ERRORS, apply_override, build, merge, put
from lora_drop.errors import UserError, closest
from lora_drop.registry import CRITERIA, METHODS, TASKS


def load_config(
    files: Iterable[str | Path] = (),
    overrides: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    stored: Path | None = None,
) -> Config:
    """Build a configuration from YAML files, overrides and flags; later ones win.

    Args:
        stored: a run directory's own configuration, which all others override.
        files: paths, or names of packaged files (`glue/rte`).
        overrides: `dotted.key=value`, parsed according to the key's type.
        flags: values by dotted key, used as they are; None values are ignored.

    Raises:
        UserError: with every mistake found.
    """
    errors: list[str] = []
    merged: dict[str, Any] = read_sealed(stored) if stored is not None else {}
    for name in files:
        layer(merged, read_config(name))
    override(merged, overrides, flags or {}, errors)
    return from_dict(merged, errors=errors)


def override(into: dict[str, Any], overrides: Iterable[str], flags: Mapping[str, Any], errors: list[str]) -> None:
    """Put `dotted.key=value` overrides, then flags (values by dotted key; None is ignored) over nested values."""
    asked: dict[str, Any] = {}
    for text in overrides:
        apply_override(asked, text, errors, Config)
    for key, value in flags.items():
        if value is not None:
            put(asked, key, value)
    method = asked.get("method")
    if isinstance(method, dict) and "threshold" in method and method.get("budget") is not None:
        errors.append(
            "method.threshold and method.budget exclude each other: the budget finds a threshold. Leave one out."
        )
    layer(into, asked)


def layer(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Put `values` over `into`, section by section.

    A threshold removes the budget of an earlier layer, which would otherwise override it.
    """
    earlier, method = into.get("method"), values.get("method")
    merge(into, values)
    if isinstance(earlier, dict) and isinstance(method, Mapping) and "threshold" in method and "budget" not in method:
        earlier.pop("budget", None)


def from_dict(values: Mapping[str, Any], errors: list[str] | None = None) -> Config:
    """Build a configuration from nested dictionaries.

    Raise a UserError that lists the unknown keys and wrong values.
    """
    errors = [] if errors is None else errors
    method = values.get("method")
    options = method.get("options") if isinstance(method, Mapping) else None
    if isinstance(method, Mapping):
        values = {**values, "method": {key: value for key, value in method.items() if key != "options"}}
    config = _with_own_task(build(Config, values, errors), "task" in values, errors)
    if config.train.select_epoch == "held_out" and not config.train.held_out:
        errors.append(
            "train.select_epoch = held_out needs rows that are held out of training: set train.held_out, for example "
            "to 0.1."
        )
    for key, name, known in (
        ("task", config.task, [*TASKS.names(), *([OWN] if config.data.given else [])]),
        ("method.name", config.method.name, METHODS.names()),
        ("score.criterion", config.score.criterion, CRITERIA.names()),
        *(("score.compare", name, CRITERIA.names()) for name in config.score.compare or ()),
    ):
        if name not in known:
            errors.append(f"{key} = {name!r}: must be one of {', '.join(known)}.{closest(name, known)}")
        elif key == "method.name" and (options is not None or name not in METHODS.own):
            config = replace(config, method=_with_options(config.method, METHODS.get(name).options, options, errors))
    if errors:
        count = "an error" if len(errors) == 1 else f"{len(errors)} errors"
        told = [*errors[:MOST_ERRORS], *([f"and {len(errors) - MOST_ERRORS} more"] if errors[MOST_ERRORS:] else [])]
        raise UserError(f"The configuration has {count}:\n" + "\n".join(f"  {error}" for error in told))
    return config


def _with_own_task(config: Config, named: bool, errors: list[str]) -> Config:
    """Return the configuration, with the task `own` if it names the user's own data, and check the keys of `data`."""
    data = config.data
    if not data.given:
        extra = [key for key, value in vars(data).items() if value != getattr(DataConfig(), key)]
        if config.task == OWN or extra:
            what = f"data.{extra[0]}" if extra else f"task = {OWN!r}"
            errors.append(f"{what} is for your own data, but data.path is empty. Set data.path, or use --data FILE.")
        return config
    if named and config.task != OWN:
        errors.append(f"task = {config.task!r} and data.path = {data.path!r} exclude each other. Leave one out.")
    if (data.dataset_info is None) != (data.name is None) or (data.dataset_info and data.path):
        errors.append(
            "data.dataset_info and data.name must be given together, and without data.path: --dataset-info "
            "dataset_info.json --name NAME."
        )
    return replace(config, task=OWN)


def _with_options(method: MethodConfig, declared: type | None, given: Any, errors: list[str]) -> MethodConfig:
    """Add a method's own options (`declared` is their dataclass) to its configuration."""
    if declared is not None:
        options: Any = build(declared, {} if given is None else given, errors, "method.options.")
        return OwnMethodConfig(**vars(method), options=options)
    if given is not None:
        errors.append(f"method.options: the method {method.name} has no options of its own. Leave it out.")
    return method
