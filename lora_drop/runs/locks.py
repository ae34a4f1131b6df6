"""File locks that let in one process at a time and say which process it is.

The system frees the lock of a process that has ended, even on a file system that machines share. A stopped process
(SIGSTOP, Ctrl-Z) keeps its lock, and so does a child that outlives the process that took it. The holder therefore
writes its process id and machine to a file beside the lock.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
from filelock import FileLock, Timeout

from lora_drop.errors import UserError
from lora_drop.files import write_json

LOCK = ".lock"
"""Name of a run directory's lock file."""
AT_ONCE_S = 0.2
"""Seconds to wait for a lock: even a check whether it is free takes it for a moment."""


class Busy(UserError):
    """Raised when another process holds what is needed."""

    def __init__(self, message: str, lock: Path):
        """Store the message and the path of the lock file that is held."""
        super().__init__(message)
        self.lock = lock

    def __reduce__(self) -> tuple[type[Busy], tuple[str, Path]]:
        return Busy, (str(self), self.lock)


class Owner(NamedTuple):
    """A process that holds a lock."""

    pid: int
    host: str
    started: float

    @property
    def state(self) -> str:
        """`running`, `stopped` or `dead`; `elsewhere` for a process of another machine, which cannot be checked."""
        if self.host != socket.gethostname():
            return "elsewhere"
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.started) > 1:  # the id now belongs to another process
                return "dead"
            status = process.status()
        except psutil.NoSuchProcess:
            return "dead"
        names = {psutil.STATUS_STOPPED: "stopped", psutil.STATUS_TRACING_STOP: "stopped", psutil.STATUS_ZOMBIE: "dead"}
        return names.get(status, "running")

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def refuse_held(path: Path, what: str) -> None:
    """Raise Busy with the sentence `what` and the holder if a process holds a lock file. The check creates no file."""
    if is_held(path):
        raise _busy(path, what)


@contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file for this process. Raises Busy with the sentence `what` and the holder if another one has it."""
    lock, note = FileLock(path), _note(path)
    try:
        lock.acquire(timeout=AT_ONCE_S)
    except Timeout as error:
        raise _busy(path, what) from error
    try:
        write_json(note, Owner(os.getpid(), socket.gethostname(), psutil.Process().create_time())._asdict())
        yield
    finally:
        with suppress(OSError):  # the disk may have become read-only
            note.unlink(missing_ok=True)
        lock.release()


def is_held(path: Path) -> bool:
    """Return True if a process holds a lock file. The check creates no file.

    If the file may not be opened, such as that of another user, its recorded holder decides.
    """
    if not path.is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:
        holder = owner(path)
        return holder is not None and holder.state != "dead"


def owner(path: Path) -> Owner | None:
    """Return the recorded holder of a lock file; None if there is none."""
    with suppress(OSError, ValueError, TypeError):
        return Owner(**json.loads(_note(path).read_text(encoding="utf-8")))
    return None


def _busy(path: Path, what: str) -> Busy:
    return Busy(f"{what} ({owner(path) or 'its id is unknown'}).", path)


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.owner")
