"""Output to streams of any encoding: a character that a stream cannot encode is written in ASCII, not an error.

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
"""Replacements for the package's own symbols; other characters, as in paths, are escaped as in Python (`\\u4e2d`)."""
ERRORS = "lora_drop.signs"


def tolerate_encodings() -> None:
    """Let standard output and standard error replace characters that their encoding lacks.

    If a process lacks one of the streams (`>&-`), output to it is dropped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until the process ends
    codecs.register_error(ERRORS, _stand_in)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook's stream is not, and takes any character
            stream.reconfigure(errors=ERRORS)


def forsake() -> None:
    """Drop what is still to be written to standard output after its reader has gone (`| head -1`)."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stand_in(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    return "".join(SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in missing), error.end
