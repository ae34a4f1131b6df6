"""The machine: what it is, what its matrix products reach, and what others do on it meanwhile."""

from __future__ import annotations

import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import torch

_CPU, _STAT = Path("/proc/cpuinfo"), Path("/proc/stat")


def describe(device: torch.device) -> dict[str, Any]:
    """Return what a reader must know of the machine to judge a number."""
    found: dict[str, Any] = {
        "device": device.type,
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "openmp": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND") if name in os.environ},
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
        found["cuda"] = torch.version.cuda
    return found


def _cpu_model() -> str:
    if _CPU.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", _CPU.read_text(encoding="utf-8"), re.MULTILINE)
        if names:
            return str(names[0])
    return platform.processor() or platform.machine()


class LoadMeter:
    """Counts, from when it is made, how many cores other processes keep busy."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def others(self) -> float | None:
        """Return the cores that others kept busy since then, None where the system does not say."""
        busy = _busy_seconds()
        if busy is None or self.busy is None:
            return None
        used = busy - self.busy - (_own_seconds() - self.own)
        return round(max(0.0, used) / max(time.perf_counter() - self.began, 1e-9), 3)


def _busy_seconds() -> float | None:
    """Return the seconds that all cores together have worked since the system started; waiting for a disk is no work."""
    if not _STAT.exists():
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(
        int, _STAT.read_text(encoding="utf-8").split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    """Return the seconds that this process, and its children that have ended, have worked."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
