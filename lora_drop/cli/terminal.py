"""Output to streams of any encoding: a sign that one cannot hold is shown by ASCII signs, and is never an error.

Windows consoles and redirected output often have an encoding of 256 characters (cp1252), and a stripped-down system may
have ASCII.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from pathlib import Path

SIGNS = {
    "█": "#",
    "░": ".",
    "━": "-",
    "≤": "<=",
    "≥": ">=",
    "‖": "||",
    "×": "x",
    "·": "*",
    "±": "+/-",
    "−": "-",
    "…": "...",
}
SIGNS |= {"†": "+", "²": "^2", "Δ": "D", "Σ": "S", "α": "alpha", "β": "beta", "τ": "tau", "ᵀ": "'"}
"""Replacements for our signs; anything else, such as a letter of a path, is written as Python writes it (`\\u4e2d`)."""
ERRORS = "lora_drop.signs"


def tolerate_encodings() -> None:
    """Let standard output and standard error show what their encoding lacks by other signs.

    Where a process has none of them (`>&-`), what would be written there is dropped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    codecs.register_error(ERRORS, _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's is none, and holds everything
            stream.reconfigure(errors=ERRORS)


def forsake() -> None:
    """Drop what would still be written to standard output, whose reader has gone (`| head -1`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing), error.end
