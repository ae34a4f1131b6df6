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
    """Write a file so that a full disk leaves the old one as it was: temporary file, fsync, rename."""
    path = Path(path).absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(content, indent=2) + "\n")
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
