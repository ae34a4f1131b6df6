"""Part `train`: three ways to train on the same rows, and how much of the machine each of them uses."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from bench.flops import training_flops
from bench.peak import best_product, product_size
from bench.rounds import Rounds, interleave, timed
from bench.statistics import ratios, spread
from bench.variants import grouped, ours, stock
from bench.workload import LORA, Subject, Workload

VARIANTS = ("stock", "grouped", "ours")
RATIOS = (("ours", "stock"), ("ours", "grouped"), ("grouped", "stock"))


def measure_training(subject: Subject) -> list[dict[str, Any]]:
    """Measure each workload: what was measured, per variant its speed and memory, and the ratios between them."""
    return [_measure(subject, workload) for workload in subject.workloads()]


def _measure(subject: Subject, workload: Workload) -> dict[str, Any]:
    settings, device, paths = subject.settings, subject.device, set[str]()
    size = product_size(device, settings.quick)
    actions = {
        "product": best_product(size, subject.dtype, device),
        "stock": timed(stock(subject, workload), device),
        "grouped": timed(grouped(subject, workload), device),
        "ours": timed(ours(subject, workload, paths), device),
    }
    total = len(actions) * (settings.rounds + 1)
    rounds = interleave(
        actions, settings.rounds, lambda done: subject.report.advance(done, total, f"rows: {workload.name}")
    )
    peaks = [2 * size**3 / seconds for seconds in rounds.seconds("product")]
    return {
        "workload": _describe(workload),
        "path": " + ".join(sorted(paths)),
        "product": {"size": size, "dtype": str(subject.dtype), "flops_per_second": asdict(spread(peaks))},
        **_compare(subject, workload, rounds, peaks),
        "rounds": rounds.to_json(),
    }


def _describe(workload: Workload) -> dict[str, Any]:
    lengths = workload.lengths
    low, median, high = (float(value) for value in np.quantile(lengths, (0, 0.5, 1)))
    return {
        "name": workload.name,
        "rows": len(lengths),
        "tokens": workload.tokens,
        "tokens_if_padded": len(lengths) * workload.padded_to,
        "lengths": {"least": low, "median": median, "most": high},
    }


def _compare(subject: Subject, workload: Workload, rounds: Rounds, peaks: list[float]) -> dict[str, Any]:
    shape = subject.shape
    flops = training_flops(shape, workload.shapes(subject.generates), LORA.rank or 8) if shape else None
    variants: dict[str, Any] = {}
    for name in VARIANTS:
        seconds = rounds.seconds(name)
        variants[name] = {
            "samples_per_second": asdict(spread([len(workload.lengths) / value for value in seconds])),
            "tokens_per_second": asdict(spread([workload.tokens / value for value in seconds])),
            "memory_mb": rounds.memory_mb[name],
        }
        for count, operations in asdict(flops).items() if flops else ():
            reached = [operations / value / peak for value, peak in zip(seconds, peaks, strict=True)]
            variants[name][f"fraction_{count}"] = asdict(spread(reached))
    compared = {f"{one}/{other}": asdict(ratios(rounds.seconds(other), rounds.seconds(one))) for one, other in RATIOS}
    return {"flops": asdict(flops) if flops else None, "variants": variants, "ratios": compared}
