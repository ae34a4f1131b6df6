"""Hashes of file contents. The hash of a large file is cached by its size and modification time, as git does."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from lora_drop import files

REMEMBERED = 2**24
"""Least bytes of a file whose hash is cached."""


def sha256(path: Path) -> str:
    """Return the sha256 of a file. A file in the Hub's cache is not read: it links to a blob named by its sha256."""
    blob = path.readlink() if path.is_symlink() else path
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return blob.name
    state = path.stat()
    return _sha256(str(path.resolve()), state.st_size, state.st_mtime_ns)


def sha256_of_all(paths: Iterable[Path]) -> str:
    """Return a hash of the names and contents of files, in any order."""
    listed = sorted((path.name, sha256(path)) for path in paths)
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


@lru_cache(maxsize=4096)
def _sha256(path: str, size: int, changed: int) -> str:
    remembered = _memory(path, size, changed) if size >= REMEMBERED else None
    if remembered is not None:
        with suppress(OSError, ValueError):
            kept = remembered.read_text(encoding="ascii")
            if re.fullmatch(r"[0-9a-f]{64}", kept):  # a damaged file is made anew
                return kept
    found = files.sha256(Path(path))
    if remembered is not None:
        with suppress(OSError):  # without a writable home, the file is read again next time
            files.write_text(remembered, found)
    return found


def _memory(path: str, size: int, changed: int) -> Path | None:
    """Return the path of the cached hash of a file in this state, or None for a user without a home."""
    root = files.cache_root()
    key = hashlib.sha256(f"{path}|{size}|{changed}".encode()).hexdigest()[:32]
    return root / "sha256" / key if root else None
