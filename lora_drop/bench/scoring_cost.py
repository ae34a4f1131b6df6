"""Part `score`: what the importance of every LoRA costs beyond a forward pass over the same batches, padded and packed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_drop import importance
from lora_drop.adapters import loras
from lora_drop.bench.rounds import interleave, timed
from lora_drop.bench.statistics import ratios
from lora_drop.bench.workload import Subject
from lora_drop.encoding import batches
from lora_drop.packing import Packing
from lora_drop.training import find_packing

REPEATS = 2
"""Rounds for each of the other parts': a pass is short, and the difference that is looked for is small."""
ROWS = 192
"""At most so many rows are scored in a pass."""


def measure_scoring(subject: Subject) -> dict[str, Any]:
    """Measure `importance.score` and a plain forward pass without gradients, in eval mode, on the same batches: both padded, then both packed.

    Packed, the forward pass computes every token in every layer, as the score needs it.
    """
    rows = subject.workloads()[0].rows
    rows = rows.select(range(min(len(rows), ROWS)))
    model = trained(subject.lora())
    inputs = [batch for _, batch in batches(rows, subject.data.collate, subject.data.batch_size)]
    packing, _ = find_packing(model, rows, subject.data.collate, subject.config.train, subject.data.kind.loss(0.0))
    ways = {"": None, **({"packed ": packing} if packing else {})}
    actions: dict[str, Any] = {}
    for name, way in ways.items():
        actions[f"{name}forward"] = timed(partial(_forward, model, inputs, subject.device, way), subject.device)
        actions[f"{name}score"] = timed(partial(_scoring, model, inputs, way), subject.device)
    count = subject.settings.rounds * (1 if subject.settings.quick else REPEATS)
    total = len(actions) * (count + 1)
    rounds = interleave(actions, count, lambda done: subject.report.advance(done, total))
    found = {}
    for name in ways:
        scored, plain = f"{name}score", f"{name}forward"
        found[name.strip() or "padded"] = {
            "ratio": asdict(ratios(rounds.seconds(scored), rounds.seconds(plain))),
            "more_memory_mb": (rounds.memory_mb[scored] or 0) - (rounds.memory_mb[plain] or 0),
        }
    return {"rows": len(rows), "ways": found, "rounds": rounds.to_json()}


def trained(model: nn.Module) -> nn.Module:
    """Give every B values that are not zero: a LoRA that was never trained has no importance."""
    for lora in loras(model).values():
        nn.init.normal_(lora.layer.lora_B[lora.adapter].weight, std=0.01)
    return model


def _scoring(model: nn.Module, inputs: list[dict[str, Tensor]], packing: Packing | None) -> Callable[[], object]:
    return lambda: importance.score(model, inputs, packing=packing)


def _forward(
    model: nn.Module, inputs: list[dict[str, Tensor]], device: torch.device, packing: Packing | None
) -> Callable[[], object]:
    model.eval()

    def work() -> None:
        with torch.no_grad():
            for batch in inputs:
                given = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
                with packing.over(given, whole=True) if packing else nullcontext():
                    model(**given)

    return work
