"""Runs on a Ray cluster. Each run is a task, which another node takes over if its node is lost.

Records come back through Ray, and the driver writes them, so the nodes need no common file system. With one, a run that
another node takes over continues from its checkpoint, and a warm-up that several runs need is made once.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lora_drop.errors import UserError, first_line
from lora_drop.experiments.engines.base import Line
from lora_drop.experiments.grid import Planned
from lora_drop.experiments.one_run import End, perform_run
from lora_drop.interruption import ENDING
from lora_drop.plugins import LOADED, load_plugin
from lora_drop.progress import GridReporter, Relay
from lora_drop.provenance import versions

RETRIES = 3
"""Retries of a run after its node or its process is lost."""
GRACE_S = 300.0
"""Seconds for runs that were asked to end: enough for a step and a checkpoint."""
STORE_BYTES = 100 * 2**20
"""Size of a local cluster's object store; records are small."""
ENVIRONMENT = ("LORA_DROP_DATA", "HF_HUB_OFFLINE", "HF_ENDPOINT")
"""Variables that say where rows and weights are; they are set on every node."""


@dataclass(frozen=True)
class _Setup:
    """Settings common to all runs of a command."""

    runs: Path
    folder: Path
    """Folder in which the command was started; relative paths of data and weights start there on each node, too."""
    version: str
    prepare: Callable[[], object]
    plugins: Sequence[Path]


class RayCluster:
    """A Ray cluster, which this process joins or starts."""

    def __init__(
        self,
        runs: Path,
        address: str | None,
        gpus_per_run: float | None,
        prepare: Callable[[], object],
        report: GridReporter,
    ):
        """Prepare the connection. Entering the context connects, and raises UserError if no cluster answers.

        Args:
            runs: folder of the run directories, the same path on each node.
            address: address of the cluster, or `auto`; None for RAY_ADDRESS or, if that is not set, this machine alone.
            gpus_per_run: GPUs of each run, may be a fraction; None for one GPU if the cluster has any.
            prepare: called first in each process of a node.
            report: receives notices about the nodes.

        Raises:
            UserError: if Ray is not installed.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs Ray: pip install 'lora-drop[ray]', on every node.") from error
        self.ray: Any = ray
        self.gpus, self.report = gpus_per_run, report
        self.setup = _Setup(runs.absolute(), Path.cwd(), versions()["lora-drop"], prepare, tuple(LOADED))
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"
        self.pending: dict[Any, int] = {}
        self.lines: dict[int, Line] = {}
        self.places: dict[int, str] = {}

    @property
    def free(self) -> bool:
        """Always True: Ray queues runs that it has no room for."""
        return True

    @property
    def working(self) -> bool:
        """True if a task has not ended."""
        return bool(self.pending)

    def begin(self, number: int, run: Planned, line: Line) -> None:
        """Hand a run to Ray."""
        gpus = 0 if run.config.device == "cpu" else self.gpus
        task = self.task.options(num_cpus=1, num_gpus=gpus, max_retries=RETRIES, name=run.name)
        self.lines[number] = line
        self.places.pop(number, None)
        self.pending[task.remote(number, run, self.setup, self.board)] = number

    def ended(self, timeout: float) -> list[tuple[int, End]]:
        """Return the runs that have ended, and pass on what the others report."""
        if not self.pending:
            time.sleep(timeout)
        ready = self.ray.wait(list(self.pending), timeout=timeout)[0] if self.pending else []
        for number, name, *values in self.ray.get(self.board.take.remote()):
            if number not in self.pending.values():  # it came after the result
                continue
            if name == "at":
                self._place(number, *values)
            getattr(self.lines[number](), name)(*values)
        numbers = [self.pending.pop(task) for task in ready]
        return [(number, self._end(task, number)) for task, number in zip(ready, numbers, strict=True)]

    def _place(self, number: int, place: str) -> None:
        before = self.places.get(number)
        self.places[number] = place
        if before is not None:
            self.lines[number]().notice(f"{before} was lost; its run continues on {place}")

    def _end(self, task: Any, number: int) -> End:
        place = self.places.get(number, "no node yet")
        try:
            end: End = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:  # raised before our own code could catch it
            said = f"{error.cause}".strip().splitlines() or [type(error.cause).__name__]
            return End(f"on {place}: {said[-1]}")
        except self.ray.exceptions.RayError as error:
            return End(f"on {place}: {type(error).__name__}: {first_line(error)}")
        return end if end.record is not None else replace(end, note=f"on {place}: {end.note}")

    def __enter__(self) -> RayCluster:
        _reachable(self.address)
        local = {"object_store_memory": STORE_BYTES, "include_dashboard": False} if self.address == "local" else {}
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        try:
            with _signals_kept():
                self.ray.init(
                    self.address,
                    log_to_driver=False,
                    logging_level="ERROR",
                    runtime_env={"env_vars": environment},
                    **local,
                )
        except (ConnectionError, ValueError, RuntimeError, self.ray.exceptions.RayError) as error:
            raise _no_cluster(self.address, first_line(error)) from error
        found = self.ray.cluster_resources()
        if self.gpus is None:
            self.gpus = 1 if found.get("GPU") else 0
        elif self.gpus > found.get("GPU", 0):
            self.report.notice(f"the cluster has {found.get('GPU', 0):g} GPUs now; runs wait for {self.gpus:g}")
        self.task = self.ray.remote(_on_a_node)
        # on this node, which must stay alive anyway; another node may be lost
        here = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            self.ray.get_runtime_context().get_node_id(), soft=False
        )
        self.board = self.ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for task in self.pending:
                self.ray.cancel(task)
            if self.pending:
                self.ray.wait(list(self.pending), num_returns=len(self.pending), timeout=GRACE_S)
        finally:  # also after a second Ctrl-C
            self.ray.shutdown()


class _Board:
    """An actor that keeps what runs report until the driver asks for it."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []

    def tell(self, number: int, said: tuple[Any, ...]) -> None:
        self.said.append((number, *said))

    def take(self) -> list[tuple[Any, ...]]:
        said, self.said = self.said, []
        return said


def _on_a_node(number: int, run: Planned, setup: _Setup, board: Any) -> End:
    """Perform a run on this node."""
    report = Relay(lambda said: board.tell.remote(number, said))
    report.at(_node())
    with suppress(FileNotFoundError):  # only relative paths need it, and they raise their own errors
        os.chdir(setup.folder)
    here = versions()["lora-drop"]
    if here != setup.version:
        return End(f"lora-drop {here} is installed there, and {setup.version} here. Install the same version on both.")
    try:
        _prepare(setup.prepare, setup.plugins)
    except UserError as error:
        return End(f"UserError: {error}")
    return perform_run(run, setup.runs, report)


@cache
def _prepare(prepare: Callable[[], object], plugins: tuple[Path, ...]) -> None:
    prepare()
    for plugin in plugins:
        load_plugin(plugin)


def _node() -> str:
    import ray

    return f"{socket.gethostname()} ({ray.get_runtime_context().get_node_id()[:6]})"


def _reachable(address: str) -> None:
    """Raise UserError if no cluster can be at the address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address in ("local", "auto"):
        return
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(
            f"--address {address}: must be HOST:PORT of a cluster that this machine belongs to, auto, or local."
        )
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, f"{error}") from error


def _no_cluster(address: str, reason: str) -> UserError:
    return UserError(
        f"No Ray cluster answers at {address} ({reason}). Start one with: ray start --head, and on each other machine: "
        "ray start --address HOST:6379. Without --address the grid runs on this machine."
    )


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Restore the signal handlers after the block, since Ray's own handler exits on SIGTERM."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
