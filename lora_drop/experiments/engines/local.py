"""Runs on this machine: in this process, or in several worker processes, one for each device."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import connection, get_context, parent_process, resource_tracker
from pathlib import Path
from typing import Any

import psutil

from lora_drop.experiments.engines.base import Line
from lora_drop.experiments.grid import Planned
from lora_drop.experiments.one_run import End, perform_run
from lora_drop.interruption import ENDING, stoppable
from lora_drop.plugins import LOADED, load_plugin
from lora_drop.progress import Relay

GRACE_S = 300.0
"""Seconds for a worker that was asked to end: enough for a step and a checkpoint."""
STOPPED_S = 30.0
"""Seconds after which a stopped worker is named."""
OF_THE_TERMINAL = [number for number in ENDING if number != signal.SIGTERM]
"""Signals that workers ignore: the parent gets them, too, and asks its workers to end by SIGTERM."""


class InProcess:
    """Performs one run after the other in this process."""

    def __init__(self, runs: Path):
        self.runs = runs
        self.next: tuple[int, Planned, Line] | None = None

    @property
    def free(self) -> bool:
        """True if no run was handed over."""
        return self.next is None

    @property
    def working(self) -> bool:
        """True if a run was handed over."""
        return self.next is not None

    def begin(self, number: int, run: Planned, line: Line) -> None:
        """Take a run; `ended` performs it."""
        self.next = (number, run, line)

    def ended(self, timeout: float) -> list[tuple[int, End]]:
        """Perform the run and return how it ended."""
        if self.next is None:
            time.sleep(timeout)
            return []
        (number, run, line), self.next = self.next, None
        return [(number, perform_run(run, self.runs, line()))]

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Processes:
    """`count` workers on this machine. If a worker dies, its run fails and another worker takes its place."""

    def __init__(self, count: int, runs: Path, prepare: Callable[[], object]):
        """Plan the workers; each will call `prepare` first."""
        devices = visible_devices()
        import torch

        threads = max(1, torch.get_num_threads() // count)
        places = [devices[number % len(devices)] if devices else "" for number in range(count)]
        self.workers = [
            _Worker(number, device, threads, (runs, prepare, tuple(LOADED))) for number, device in enumerate(places, 1)
        ]

    @property
    def free(self) -> bool:
        """True if a worker is idle."""
        return any(worker.run is None for worker in self.workers)

    @property
    def working(self) -> bool:
        """True if a worker has a run."""
        return any(worker.run is not None for worker in self.workers)

    def begin(self, number: int, run: Planned, line: Line) -> None:
        """Give a run to an idle worker."""
        next(worker for worker in self.workers if worker.run is None).begin(number, run, line)

    def ended(self, timeout: float) -> list[tuple[int, End]]:
        """Return the runs that have ended; wait at most `timeout` seconds."""
        busy = {worker.pipe: worker for worker in self.workers if worker.run is not None}
        if not busy:
            time.sleep(timeout)
        ready = connection.wait(list(busy), timeout) if busy else []
        for worker in self.workers:
            worker.notice_a_stop()
        found = [(busy[pipe].run, busy[pipe].hear()) for pipe in ready]
        return [(number, end) for number, end in found if number is not None and end is not None]

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for worker in self.workers:
                worker.dismiss()
            until = time.monotonic() + GRACE_S
            for worker in self.workers:
                worker.join(until - time.monotonic())
        finally:  # also after a second Ctrl-C
            for worker in self.workers:
                worker.kill()


class _Worker:
    """A process that performs one run after the other; it is started with its first run."""

    def __init__(self, number: int, device: str, threads: int, setup: tuple[Any, ...]):
        self.device, self.threads, self.setup = device, threads, setup
        self.place = f"GPU {device}" if device else f"worker {number}"
        self.process: Any = None
        self.pipe: Any = None
        self.run: int | None = None
        self.stopped: float | None = None

    def begin(self, number: int, run: Planned, line: Line) -> None:
        if self.process is not None and not self.process.is_alive():  # it died while idle
            self.pipe.close()
            self.process = None
        if self.process is None:
            context = get_context("spawn")  # a fork of a process that has threads, or CUDA, may hang
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_work, args=(theirs, *self.setup))
            with _environment(self.device, self.threads), _signals_kept_from_it():
                self.process.start()
            theirs.close()
        self.run, self.line = number, line()
        self.line.at(self.place)
        with suppress(OSError):  # it has died: `hear` will report it
            self.pipe.send(run)

    def hear(self) -> End | None:
        """Pass on what the worker reports; return how its run ended, if it did."""
        try:
            told = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            end = End(f"its process ended with {_reason(self.process.exitcode)}. The same command continues")
            self.process = self.run = None
            self.pipe.close()
            return end
        if isinstance(told, End):
            self.run = None
            return told
        name, *values = told
        getattr(self.line, name)(*values)
        return None

    def notice_a_stop(self) -> None:
        """Name the process if it has been stopped for a while."""
        if self.run is None or not _is_stopped(self.process.pid):
            self.stopped = None
        elif self.stopped is None:
            self.stopped = time.monotonic()
        elif time.monotonic() - self.stopped > STOPPED_S:
            pid, self.stopped = self.process.pid, float("inf")  # so that it is named once
            self.line.notice(
                f"{self.place} (process {pid}) is stopped. Resume it with: kill -CONT {pid}, or end it with: kill "
                f"-KILL {pid}"
            )

    def dismiss(self) -> None:
        """Ask the process to end: at once if idle, else after a checkpoint."""
        if self.process is not None and self.run is not None:
            self.process.terminate()
        elif self.process is not None:
            with suppress(OSError):
                self.pipe.send(None)

    def join(self, seconds: float) -> None:
        """Wait for the process to end, unless it is stopped and cannot."""
        if self.process is not None and not _is_stopped(self.process.pid):
            self.process.join(max(0, seconds))

    def kill(self) -> None:
        """Kill the process if it is still alive."""
        if self.process is not None:
            self.process.kill()
            self.process.join()


def visible_devices() -> list[str]:
    """Return the GPUs that a process started here may use, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named is not None else [str(number) for number in range(count)]


def _work(pipe: Any, runs: Path, prepare: Callable[[], object], plugins: Sequence[Path]) -> None:
    """Perform the runs that come through the pipe, until None comes or the parent is gone."""
    for number in OF_THE_TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, OF_THE_TERMINAL)
    os.dup2(2, 1)  # standard output is for results, which the parent prints
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    with stoppable(), suppress(EOFError, BrokenPipeError, ConnectionResetError):
        prepare()
        for plugin in plugins:
            load_plugin(plugin)
        while (run := pipe.recv()) is not None:
            pipe.send(perform_run(run, runs, Relay(partial(tell, pipe))))


def tell(pipe: Any, said: tuple[Any, ...]) -> None:
    """Send what a run reports. A parent that is gone fails no run here: `_end_with_the_parent` stops the worker."""
    with suppress(BrokenPipeError, ConnectionResetError):
        pipe.send(said)


def _end_with_the_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _signals_kept_from_it() -> Iterator[None]:
    """Keep the terminal's signals from a process that is started in the block until it can ignore them.

    Signals that come to this process meanwhile are delivered at the end.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # if started in the block, it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, OF_THE_TERMINAL)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _environment(device: str, threads: int) -> Iterator[None]:
    """Let a process that is started in the block see one device and compute with its share of the threads."""
    given = {"OMP_NUM_THREADS": str(threads), **({"CUDA_VISIBLE_DEVICES": device} if device else {})}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _is_stopped(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return False


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
    return f"{signal.Signals(-code).name}{hint}"
