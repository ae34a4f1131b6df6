"""Explain failures of the machine to the user: no memory, no room on the disk, no permission."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from lora_drop import processes
from lora_drop.errors import UserError

REMEDIES = {
    errno.ENOSPC: "Make room there, or name a folder on another disk. The same command continues.",
    errno.EDQUOT: "Make room there, or name a folder on another disk. The same command continues.",
    errno.EFBIG: "A limit (ulimit -f), or the file system, does not allow files of this size. Raise it, or name another disk.",
    errno.EROFS: "Name a folder that can be written to.",
    errno.EACCES: "Change its permissions, or name another.",
    errno.EPERM: "Change its permissions, or name another.",
    errno.ENAMETOOLONG: "Give a shorter name.",
    errno.EIO: "The disk has a fault. Name a folder on another one.",
    errno.EISDIR: "A file was expected there, and it is a folder.",
    errno.ENOTDIR: "A folder was expected there, and it is a file.",
    errno.EEXIST: "Remove it, or name another.",
    errno.ENOTEMPTY: "Another process is writing there. Wait for it, or name another folder.",
    errno.ELOOP: "A link there leads back to itself.",
    errno.EMFILE: "The limit of open files is too low: raise it with ulimit -n.",
    errno.ENOMEM: "Close other programs, or use a machine with more memory.",
}
LOST = ("closed by peer", "reset by peer", "Broken pipe", "NCCL", "Gloo", "gloo")
"""Parts of torch.distributed's messages when a process does not answer."""

LONGEST = 400
"""Most characters shown of a library's message."""


@contextmanager
def as_sentences(memory: str) -> Iterator[None]:
    """Raise a UserError for a failure of the machine in the block. `memory` is the advice for a lack of memory."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, SafetensorError) as error:
        told = sentence(error, memory)
        if told is None:
            raise
        raise UserError(told) from error


@contextmanager
def foreign(said: str) -> Iterator[None]:
    """Raise a UserError that begins with `said` for any exception of a library that reads foreign files in the block.

    A library may raise anything for an unexpected file. Failures of the machine are raised unchanged.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if sentence(error) is not None:
            raise
        why = " ".join(str(error).split())
        why = why if why and not isinstance(error, KeyError) else f"{type(error).__name__} {why}".strip()
        raise UserError(f"{said}: {why[:LONGEST]}{'…' * (len(why) > LONGEST)}") from error


def sentence(error: BaseException, memory: str = "") -> str | None:
    """Return the meaning and the remedy of a failure of the machine, or None for any other error."""
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return f"Out of memory. {memory or REMEDIES[errno.ENOMEM]}"
    if processes.size() > 1 and isinstance(error, RuntimeError) and any(text in str(error) for text in LOST):
        return "Another process of this run has ended. The same command continues."
    number = getattr(error, "errno", None)
    if number is None:  # libraries in Rust and C++ put it in the message
        number = next((each for each in REMEDIES if f"os error {each})" in str(error)), None)
    if number not in REMEDIES:
        return None
    where = getattr(error, "filename", None)
    return f"{f'{where}: ' if where else ''}{os.strerror(number)}. {REMEDIES[number]}"
