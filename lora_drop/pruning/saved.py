"""The JSON files of scores and selections."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError


def write(path: str | Path, content: Any) -> None:
    """Write a file so that a full disk leaves the old one as it was: temporary file, fsync, rename.

    (`lora_drop.files` can do the same for runs, but this folder stands on its own.)
    """
    path, text = Path(path).resolve(), json.dumps(content, indent=2) + "\n"
    if path.exists() and not path.is_file():  # a device or a pipe, or an error
        path.write_text(text, encoding="utf-8")
        return
    temporary = path.with_name(f".{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: str | Path, what: str, advice: str = "") -> Iterator[Any]:
    """Yield the content of a file. Raise UserError, with `advice`, if it cannot be read or does not hold `what`."""
    try:
        yield json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} does not hold {what} ({type(error).__name__}: {error}).{advice}") from error
