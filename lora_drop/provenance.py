"""The provenance of a computation: memory, versions, and the commit of this package's code."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

CODE = ("lora_drop", "configs", "pyproject.toml")
LIBRARIES = ("torch", "transformers", "peft")
"""The libraries that compute."""
PACKAGES = ("lora-drop", "torch", "transformers", "peft", "datasets", "accelerate", "scikit-learn", "numpy")

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def reset_peak_memory() -> None:
    """Reset the peak memory, if the system supports it (a GPU; Linux, by writing 5 to clear_refs)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR_REFS.exists() and os.access(_CLEAR_REFS, os.W_OK):
        _CLEAR_REFS.write_text("5", encoding="utf-8")


def release_memory() -> None:
    """Return freed memory to the system, if the C library keeps it (glibc).

    The memory freed by a stage is fragmented. The next stage finds no room in the fragments and allocates more, so that
    a long grid would grow without holding anything.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def peak_memory_mb() -> int:
    """Return the peak memory in MB since `reset_peak_memory`: of the GPU if one is in use, else of the process.

    If the system cannot reset the peak, it is the peak since the process started.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() // 2**20
    if _STATUS.exists():
        return int(re.findall(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)[0]) // 2**10
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset) // 2**20
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of `packages`, by default those that influence results."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def other_versions(then: Mapping[str, str]) -> str:
    """Return the LIBRARIES whose versions differ from the installed ones, as text for a message."""
    now = versions(LIBRARIES)
    return ", ".join(f"{name} {then[name]} (here: {now[name]})" for name in LIBRARIES if then.get(name) != now[name])


@lru_cache(maxsize=1)
def commit() -> str | None:
    """Return the commit of the checkout this package runs from, or None outside a checkout.

    `+altered` is appended if the code has uncommitted changes. Results and runs, which the work itself writes, are not
    code. The value is cached at the start, because later commits do not change the code that a process has loaded.
    """
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        try:
            return subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8", check=False
            ).stdout.strip()
        except OSError:  # git is not installed
            return ""

    found = git("rev-parse", "HEAD")
    return found + "+altered" * bool(git("status", "--porcelain", "--", *CODE)) if found else None
