"""Configuration files: a path, or the name of one that comes with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lora_drop.errors import UserError, closest


def find_config(name: str | Path) -> Path:
    """Return the path of a configuration file: a path as given, or the packaged file of that name (`glue/rte`)."""
    path = Path(name)
    if path.is_file():
        return path
    candidates = [folder / f"{name}.yaml" for folder in config_folders()]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    files = (file.relative_to(folder).with_suffix("") for folder in config_folders() for file in folder.rglob("*.yaml"))
    known = sorted(file.as_posix() for file in files if file.parts[0] != "experiments")
    raise UserError(
        f"No configuration file {str(name)!r}.{closest(str(name), known)} Give a path, or one of: {', '.join(known)}"
    )


def config_folders() -> list[Path]:
    """Return the folders of the packaged configurations: inside the wheel, or beside the package in a checkout."""
    package = Path(__file__).parents[1]
    return [folder for folder in (package / "configs", package.parent / "configs") if folder.is_dir()]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file, empty if it is. Raises UserError for any other content."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, but holds a {type(content).__name__}.")
    return content
