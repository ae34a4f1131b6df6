"""A fork server: torch is imported once, and each command of a trial runs in its own child process."""

from __future__ import annotations

import fcntl
import gc
import importlib
import json
import os
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lora_drop.interruption import end_at_once

Hook = Callable[[], None]
HUNG = 999
"""Exit code for a command that was still running when its time was up."""
_PLACE = struct.Struct("i")


@dataclass(frozen=True)
class Trial:
    """The outcome of one trial."""

    test: str
    what: str
    fault: str = ""
    """Empty if the promise was kept."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    """Exit code; if negative, the signal that killed the command."""
    text: str
    """Everything it printed, including errors."""

    @property
    def traceback(self) -> bool:
        """True if it printed a traceback."""
        return "Traceback (most recent call last)" in self.text

    @property
    def kind(self) -> str:
        """The exit code and, after a failure, the last line printed."""
        if self.code:
            return f"exit {self.code}: {(self.text.strip().splitlines() or [''])[-1][:200]}"
        return f"exit {self.code}"


def preload(commands: Iterable[Sequence[object]], log: Path) -> None:
    """Import what these commands import, in the same order, so that forked commands need not.

    Raises SystemExit if one of the commands fails.
    """
    import torch

    torch.set_num_threads(1)
    for arguments in commands:
        listed = log.with_suffix(".modules")
        ended = wait(spawn(arguments, log, modules=listed), log)
        if ended.code:
            raise SystemExit(f"{arguments[0]} fails undisturbed: {ended.text}")
        for name in listed.read_text().split():
            with suppress(ImportError):  # a module that a library creates at run time, or a part of one
                importlib.import_module(name)
    with suppress(ImportError):  # an older transformers has no such table
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("bert")  # built on the first call
    gc.collect()
    gc.freeze()  # children then neither scan nor copy these objects


def spawn(arguments: Sequence[object], log: Path, hook: Hook | None = None, modules: Path | None = None) -> int:
    """Start `lora-drop ARGUMENTS` in a child, which calls `hook` first; return its process id.

    The file `modules` receives the names of the modules that the child has imported.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_at_once()  # as `lora_drop.__main__` does in a process of its own
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if hook:
            hook()
        from lora_drop.cli.app import main

        main([str(argument) for argument in arguments])
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - the process ends here, and its parent checks how
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if modules:
            modules.write_text("\n".join(sys.modules))
        os._exit(code)


def wait(process: int, log: Path, seconds: float = 240.0) -> Ended:
    """Wait for a child to end; kill it if it runs too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return Ended(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"))
        time.sleep(0.005)
    os.killpg(process, signal.SIGKILL)  # it leads its own session: its children, too
    os.waitpid(process, 0)
    return Ended(HUNG, log.read_text(errors="replace"))


def call(arguments: Sequence[object], log: Path, hook: Hook | None = None, seconds: float = 240.0) -> Ended:
    """Run a command in a child and wait for it to end; kill it if it runs too long."""
    return wait(spawn(arguments, log, hook), log, seconds)


def bounded() -> None:
    """Limit this process to 4 GiB more memory than it uses now."""
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 4 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def shared_out(
    work: Callable[[Any, Path], Iterable[Trial]], items: Sequence[Any], root: Path, jobs: int
) -> list[Trial]:
    """Try every item in `jobs` processes; each takes the next item that is left and calls `work(item, its folder)`."""
    children, left = [], _queue(len(items))
    for _ in range(jobs):
        folder = Path(tempfile.mkdtemp(dir=root))
        process = os.fork()
        if not process:
            code = 1
            try:
                with (folder / "trials.jsonl").open("w") as file:
                    while place := os.read(left, _PLACE.size):
                        for trial in work(items[_PLACE.unpack(place)[0]], folder):
                            file.write(json.dumps(asdict(trial)) + "\n")
                            file.flush()
                code = 0
            except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append((process, folder))
    os.close(left)
    trials = []
    for process, folder in children:
        _, status = os.waitpid(process, 0)
        if status:
            raise SystemExit("The torture itself failed; the traceback is above.")
        trials += [Trial(**json.loads(line)) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return trials


def _queue(count: int) -> int:
    """Return a pipe that holds the numbers below `count`; a process that reads one has taken it."""
    left, filled = os.pipe()
    numbers = b"".join(map(_PLACE.pack, range(count)))
    fcntl.fcntl(filled, fcntl.F_SETPIPE_SZ, max(len(numbers), os.sysconf("SC_PAGESIZE")))
    os.write(filled, numbers)
    os.close(filled)
    return left
