"""The machine (name, instruction sets, threads, libraries), and the switch for the library of fp32 products."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lora_drop.provenance import versions

INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "amx_fp16", "sve", "bf16")
"""Instruction sets that decide the speed of products, the oldest first."""


def describe(device: torch.device) -> dict[str, Any]:
    """Return the facts that a reader needs to judge a number."""
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    gpu = {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda} if device.type == "cuda" else {}
    return {
        "cpu": capable.get("cpu_name") or platform.processor() or platform.machine(),
        "generation": generation(),
        "instructions": [name for name in INSTRUCTIONS if capable.get(name)],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "openmp": {name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_PROC_BIND") if name in os.environ},
        "versions": versions(),
        **gpu,
    }


def generation(facts: Path = Path("/proc/cpuinfo")) -> str:
    """Return family and model of the CPU; empty except on Linux, x86.

    Virtual machines give CPUs of different speed the same name.
    """
    text = facts.read_text(encoding="utf-8") if facts.exists() else ""
    found = [re.search(rf"^{key}\s*:\s*(\d+)$", text, re.MULTILINE) for key in ("cpu family", "model")]
    return "" if None in found else "family {} model {}".format(*(one[1] for one in found if one))


def title(machine: dict[str, Any]) -> str:
    """Return a short name of the machine, which also names its files."""
    cpu = " ".join(filter(None, [machine["cpu"], machine.get("generation"), *machine["instructions"][-1:]]))
    return machine.get("gpu") or f"{cpu}, {machine['threads']} threads"


def switch() -> Any:
    """Return torch's switch that sends fp32 products on a CPU to oneDNN; None if this torch has none."""
    return getattr(torch.backends.mkldnn, "matmul", None) if torch.backends.mkldnn.is_available() else None


@contextmanager
def fp32_products(onednn: bool) -> Iterator[None]:
    """Compute fp32 products in oneDNN while the block runs, or in MKL, torch's default."""
    found = switch()
    if found is None:
        assert not onednn, "this torch has no switch for oneDNN"
        yield
        return
    before, found.fp32_precision = found.fp32_precision, "bf16" if onednn else "none"
    try:
        yield
    finally:
        found.fp32_precision = before
