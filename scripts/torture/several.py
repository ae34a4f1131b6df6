"""Runs in two processes (as torchrun starts them) and grids on two Ray nodes, of which one is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from lora_drop.runs import locks
from torture.kills import at_change
from torture.runs import Ground, Part, fault, fresh, options, results
from torture.server import Ended, Hook, Trial, call, spawn, wait

SEVERAL = "two processes (DDP), two Ray nodes: one of them killed"
NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
GRID = {
    **{"title": "x", "tasks": ["toy-nli"], "seeds": [0]},
    "set": {"backbone": "tiny:bert", "limit.train": 160, "limit.eval": 40, "train.epochs": 4, "train.save_steps": 2},
    "rows": {
        "a": {"title": "A", "method.name": "lora"},
        **{name: {"title": name, "method.threshold": at} for name, at in (("b", 0.3), ("c", 0.5), ("d", 0.7))},
    },
}
PATIENCE_S = 90.0


def cases(ground: Ground, count: int) -> list[dict[str, Any]]:
    """Return the kills: a fifth on Ray, in one shared cluster, and the others in launches of two processes."""
    draw, names = random.Random(3), list(ground.known)
    on_ray = count // 5 if find_spec("ray") else 0
    found: list[dict[str, Any]] = [{"way": "ray", "moments": [draw.random() for _ in range(on_ray)]}] if on_ray else []
    for number in range(count - on_ray):
        name, rank = names[number // 2 % len(names)], number % 2
        way = "change" if rank == 0 and number % 4 else "moment"  # only the first process changes files
        at = draw.randint(1, ground.known[name]["changes"]) if way == "change" else draw.random()
        found.append({"way": way, "run": name, "rank": rank, "at": at, "ended": number % 3 > 0})
    return found


def attempt(case: dict[str, Any], folder: Path, ground: Ground) -> Iterator[Trial]:
    """Kill one of two, let the same command continue, and compare with an undisturbed run."""
    if case["way"] == "ray":
        yield from on_ray(case["moments"], folder)
        return
    what = ", ".join(f"{key} {value}" for key, value in case.items())
    yield Trial(SEVERAL, what, in_two(case, folder))


def in_two(case: dict[str, Any], folder: Path) -> str:
    """Kill one process of a launch. The other is ended as by a launcher, or notices; the run must stay intact."""
    name, rank, run = case["run"], case["rank"], fresh(folder / "run")
    expected, seconds = undisturbed(name, folder)
    command = ["run", "-d", run, *options(name)]
    processes = launch(command, folder, {rank: at_change(case["at"], run)} if case["way"] == "change" else {})
    if case["way"] == "moment":
        time.sleep(case["at"] * seconds)
        os.kill(processes[rank], signal.SIGKILL)
    killed = wait(processes[rank], log(folder, rank))
    if killed.code and (case["ended"] or not run.exists()):  # before they have met, neither notices
        time.sleep(0.1)  # the interval at which torchrun looks
        os.kill(processes[1 - rank], signal.SIGTERM)
    other = wait(processes[1 - rank], log(folder, 1 - rank), PATIENCE_S)
    if killed.code not in (-signal.SIGKILL, 0):
        return f"not killed: {killed.kind}"
    said = other.code == 2 and "Another process of this run has ended." in other.text
    if not (said or other.code in (0, 143, -signal.SIGTERM)) or other.traceback:  # -15: before it handles signals
        return f"the other one: {other.kind}"
    again = all_of(launch(command, folder), folder)
    broken = [ended.kind for ended in again if ended.code]
    return f"continued: {', '.join(broken)}" if broken else fault(run, expected)


@cache
def undisturbed(name: str, folder: Path) -> tuple[dict[str, object], float]:
    """Return results and seconds of an undisturbed run in two processes."""
    run, began = fresh(folder / "two"), time.monotonic()
    command = ["run", "-d", run, *options(name)]
    broken = [ended.text for ended in all_of(launch(command, folder), folder) if ended.code]
    if broken:
        raise SystemExit(f"The run {name} in two processes fails undisturbed: {broken[0]}")
    return results(run), time.monotonic() - began


def launch(
    arguments: Sequence[object], folder: Path, hooks: Mapping[int, Hook] | None = None, count: int = 2
) -> list[int]:
    """Start a command in several processes with their ranks set as by torchrun; each calls its hook first."""
    port = free_port()

    def placed(rank: int) -> Hook:
        def hook() -> None:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
            os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")
            (hooks or {}).get(rank, lambda: None)()

        return hook

    return [spawn(arguments, log(folder, rank), placed(rank)) for rank in range(count)]


def free_port() -> int:
    """Return a free port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def log(folder: Path, rank: int) -> Path:
    """Return the file that receives the output of a process of a launch."""
    return folder / f"rank-{rank}"


def all_of(processes: Sequence[int], folder: Path) -> list[Ended]:
    """Wait for all processes of a launch."""
    return [wait(process, log(folder, rank)) for rank, process in enumerate(processes)]


def on_ray(moments: list[float], folder: Path) -> Iterator[Trial]:
    """Kill a cluster's node the given seconds after a run has begun there; the grid's results must not change."""
    from ray.cluster_utils import Cluster

    grid = folder / "grid.yaml"
    grid.write_text(json.dumps(GRID))
    alone = call(["reproduce", grid, *places(fresh(folder / "alone"))], folder / "log")
    if alone.code:
        raise SystemExit(f"The grid fails undisturbed: {alone.text}")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        for moment in moments:
            node = cluster.add_node(**NODE)
            lose = lambda node=node: cluster.remove_node(node, allow_graceful=False)  # noqa: E731
            raylet = node.all_processes["raylet"][0].process.pid
            problem = one_lost(grid, cluster.address, fresh(folder / "ray"), raylet, moment, lose)
            yield Trial(SEVERAL, f"ray, {moment:.2f} s", problem or differing(folder / "ray", folder / "alone"))
    finally:
        cluster.shutdown()


def one_lost(grid: Path, address: str, folder: Path, raylet: int, moment: float, lose: Callable[[], None]) -> str:
    """Perform a grid and lose a node while it works on a run; return what went wrong, or an empty text."""
    command = [sys.executable, "-m", "lora_drop", "reproduce", str(grid), *places(folder)]
    driver = subprocess.Popen(
        [*command, "--engine", "ray", "--address", address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    end = time.monotonic() + PATIENCE_S
    while not any(_parent(each.pid) == raylet for path in folder.rglob(".lock") if (each := locks.owner(path))):
        if driver.poll() is not None or time.monotonic() > end:
            driver.kill()
            return f"the second node had no run: {driver.communicate()[0][-300:]}"
        time.sleep(0.02)
    time.sleep(moment)
    lose()
    said, _ = driver.communicate(timeout=240)
    ended = Ended(driver.returncode, said)
    return ended.kind if ended.code or ended.traceback else ""


def places(folder: Path) -> list[str]:
    """Return the options for the folders of a grid's runs and results."""
    return ["--runs", str(folder / "runs"), "--results", str(folder / "results")]


def differing(folder: Path, other: Path) -> str:
    """Return how the runs of one grid differ from those of another."""
    ours, theirs = ({path.name: path for path in each.glob("runs/*/*/")} for each in (folder, other))
    if ours.keys() != theirs.keys() or not ours:
        return f"other runs: {', '.join(sorted(ours.keys() ^ theirs.keys()))}"
    found = {name: fault(run, results(theirs[name])) for name, run in ours.items()}
    return "; ".join(f"{name}: {problem}" for name, problem in found.items() if problem)


def _parent(process: int) -> int | None:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(process).ppid()
    return None


PARTS = (Part(SEVERAL, 20, cases, attempt),)
