"""Read and write the files of a run, atomically, and hash their content."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from lora_drop.errors import UserError

OURS = re.compile(r"\.(.+)\.(\d{1,9})(\.old|\.gone)?\.tmp", re.DOTALL)
"""Names of half-written or half-removed files: the final name, the number of the process, and what it was doing."""

ABANDONED_S = 86400.0
"""Seconds after which a half-written file is abandoned: no write takes this long."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces `path` when the block ends without an exception."""
    path = path.absolute()  # "." has no name
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:  # it still exists if the block failed, `path` is a folder, or the disk is full
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part: temporary file, fsync, rename.

    A character that UTF-8 cannot encode (a surrogate, from a path with other bytes) is written as `\\udcff`, which JSON
    reads back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file,
    ):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def check_writable(folder: Path, option: str) -> None:
    """Raise UserError unless a folder, or else its nearest existing parent, can be written to. Writes nothing."""
    absolute = folder.absolute()
    there = next(path for path in (absolute, *absolute.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{there} is not a folder. Name a folder with {option}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written to. Name another folder with {option}.")


def write_through(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    with path.open("r+b") as stream:  # Windows syncs only writable files
        os.fsync(stream.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, if the system supports it."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a folder or a link (but not its target), if it exists.

    A folder is first renamed, so that it disappears at once; `sweep` removes leftovers of that name.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    doomed = path
    if not OURS.fullmatch(path.name):
        doomed = path.with_name(f".{path.name}.{os.getpid()}.gone.tmp")
        remove(doomed)
        path.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path, untouched_s: float = 0.0) -> None:
    """Remove the half-written and half-removed files of killed processes from a folder.

    A folder that a process moved aside to replace it gets its name back if the process died before the new one had it.
    The files of another running process stay, as it may be writing. (If its number was reused, they stay for
    ABANDONED_S.)

    Args:
        folder: the folder to sweep.
        untouched_s: least seconds since the last write; ABANDONED_S if processes on other machines may be writing.
    """
    for leftover in folder.glob(".*.tmp"):
        with suppress(FileNotFoundError):  # another process may be sweeping
            named = OURS.fullmatch(leftover.name)
            if named is None:
                continue
            untouched = time.time() - leftover.lstat().st_mtime
            if untouched < (ABANDONED_S if _is_another(int(named[2])) else untouched_s):
                continue
            if named[3] == ".old":
                _settle(leftover, folder / named[1])
            else:
                remove(leftover)


def _settle(replaced: Path, path: Path) -> None:
    """Remove what was moved aside from `path`, or give it its name back if nothing has taken its place."""
    if os.path.lexists(replaced) and not os.path.lexists(path):
        replaced.rename(path)
    else:
        remove(replaced)


def _is_another(process: int) -> bool:
    """Return True for the number of another running process of this machine."""
    import psutil

    return process != os.getpid() and psutil.pid_exists(process)


HARMLESS = re.compile(r"[+-]?(?:[\d\s().,/+-]+|\d[\d.]*[eE][+-]?\d+|inf|nan)")
"""Numbers, including phone numbers: without a letter, they cannot name a cell or a function."""


def csv_cell(text: str) -> str:
    """Return a text as a CSV cell that spreadsheets do not read as a formula: `=1+1` as `'=1+1`, numbers unchanged."""
    if not text.startswith(("=", "+", "-", "@", "\t", "\r")):
        return text
    return text if HARMLESS.fullmatch(text) else f"'{text}"


def write_csv_row(file: TextIO, cells: Iterable[Any], dialect: str = "excel") -> None:
    """Write a line of CSV. A line with a lone carriage return, which Python's writer leaves bare, is quoted."""
    row = list(map(str, cells))
    quoted = any("\r" in cell for cell in row)
    csv.writer(file, dialect, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL).writerow(row)


def copy_files(source: Path, folder: Path) -> None:
    """Copy what is in a folder into another, without the modes: copies of read-only files can be written."""
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir(exist_ok=True)
        else:
            shutil.copyfile(path, place)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, atomically. Raise ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file. Raise UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Remove it and repeat the stage that writes it."
        ) from error


def cache_root() -> Path | None:
    """Return the user's cache: `$LORA_DROP_CACHE`, or else `lora-drop` in `$XDG_CACHE_HOME` or `~/.cache`.

    Return None for a user without a home.
    """
    own, users = os.environ.get("LORA_DROP_CACHE"), os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(own).expanduser() if own else Path(users or "~/.cache").expanduser() / "lora-drop"
    except RuntimeError:
        return None


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` when the block ends without an exception.

    Its content is on the disk before it gets its name. If the process dies between the two renames, `sweep` undoes the
    first one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    remove(temporary)
    _settle(replaced, path)  # left by a killed process of the same number
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for entry in (temporary, *temporary.rglob("*")):
            if entry.is_file():
                write_through(entry)
            elif entry.is_dir():
                sync_folder(entry)
        if os.path.lexists(path):
            path.rename(replaced)
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        _settle(replaced, path)
        remove(temporary)


def digest(*parts: Any) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of JSON-like values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the sha256 of a file, or of all files in a folder; empty if none."""
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
        total.update(file.relative_to(path).as_posix().encode(errors="surrogateescape"))
        _add(file, total)
    return total.hexdigest()[:16]


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content. Raise OSError if it cannot be read."""
    total = hashlib.sha256()
    _add(path, total)
    return total.hexdigest()


def digests_below(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file in a folder, by name, and an empty string for a link or a folder.

    Raise OSError if something cannot be read.
    """
    return {
        path.name: sha256(path) if path.is_file() and not path.is_symlink() else "" for path in sorted(folder.iterdir())
    }


def _add(path: Path, total: hashlib._Hash) -> None:
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            total.update(block)
