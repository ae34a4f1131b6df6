"""Writing and reading the files of a run: atomically, and known by their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, fsync, rename.

    What UTF-8 cannot hold (half a character, from a path of other bytes) is written as `\\udcff`, which JSON reads back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically. Raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Remove it and repeat the stage that writes it."
        ) from error


def cache_root() -> Path | None:
    """Return the user's cache: `$LORA_DROP_CACHE`, else `lora-drop` in `$XDG_CACHE_HOME` or `~/.cache`; None for a user without a home."""
    own, users = os.environ.get("LORA_DROP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(users or "~/.cache").expanduser() / "lora-drop"
    except RuntimeError:
        return None


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an exception."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("r+b") as stream:  # Windows syncs only what may be written
                    os.fsync(stream.fileno())
        if path.exists():
            path.rename(replaced)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def digest(*parts: Any) -> str:
    """Return the sha256 (16 hexadecimal digits) of JSON-like values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the sha256 (16 hexadecimal digits) of a file, or of all files of a folder; empty if there is nothing."""
    files = (
        sorted((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.as_posix())
        if path.is_dir()
        else [path]
        if path.is_file()
        else []
    )
    if not files:
        return ""
    total = hashlib.sha256()
    for file in files:
        total.update(file.relative_to(path).as_posix().encode())
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                total.update(block)
    return total.hexdigest()[:16]
