"""Read configuration files, by path or by the name of one that comes with the package."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

from lora_drop.config.strict_yaml import parse
from lora_drop.errors import UserError, closest

OTHERS = ("accelerate", "experiments")
"""Folders of packaged files that are not run configurations."""
_parsed = lru_cache(maxsize=64)(parse)
"""`parse`, with a cache for the files that the runs of a grid have in common."""
SEAL = "# written by lora-drop; sha256 of the lines above: "


def find_config(name: str | Path) -> Path:
    """Return the path of a configuration file: the given path, or the packaged file of that name (`glue/rte`)."""
    path = Path(name)
    if path.is_file():
        return path
    candidates = [folder / f"{name}.yaml" for folder in config_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    files = (file.relative_to(folder).with_suffix("") for folder in config_folders() for file in folder.rglob("*.yaml"))
    known = sorted(file.as_posix() for file in files if file.parts[0] not in OTHERS)
    raise UserError(
        f"No configuration file {str(name)!r}.{closest(str(name), known)} Give a path, or one of: {', '.join(known)}"
    )


def config_folders() -> list[Path]:
    """Return the folders of the packaged configurations: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def read_config(name: str | Path) -> dict[str, Any]:
    """Return the keys and values of a configuration file, by path or packaged name. Raise UserError on failure."""
    return read_yaml(find_config(name))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file, or {} for an empty file. Raise UserError for any other content."""
    try:
        return deepcopy(_parsed(path.read_bytes(), str(path)))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def sealed(text: str) -> str:
    """Return the content of a configuration file plus a last line by which `read_sealed` checks its integrity."""
    return f"{text}{SEAL}{_seal(text)}\n"


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the keys and values of a file written with a seal. Raise UserError if the file was changed since."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError:
        text = ""
    body, _, seal = text.rpartition(SEAL)
    if seal.strip() != _seal(body):
        raise UserError(
            f"{path} has changed since lora-drop wrote it, or is from an older version. If it is the configuration "
            f"that you want, give it as -c {path}; otherwise give another one."
        )
    return parse(body.encode(), str(path))


def _seal(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
