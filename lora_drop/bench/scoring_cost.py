"""Part `score`: what the importance of every LoRA costs beyond a forward pass over the same batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from lora_drop import importance
from lora_drop.bench.rounds import interleave, timed
from lora_drop.bench.statistics import ratios
from lora_drop.bench.workload import Subject
from lora_drop.encoding import batches

REPEATS = 3
"""Rounds for each of the other parts': a pass is short, and the difference that is looked for is small."""


def measure_scoring(subject: Subject) -> dict[str, Any]:
    """Measure `importance.score` and a plain forward pass without gradients, in eval mode, on the same batches."""
    workload = subject.workloads()[0]
    model = trained(subject.lora())
    inputs = [batch for _, batch in batches(workload.rows, subject.data.collate, subject.data.batch_size)]
    actions = {
        "forward": timed(lambda: _forward(model, inputs, subject.device), subject.device),
        "score": timed(lambda: _scoring(model, inputs), subject.device),
    }
    count = subject.settings.rounds * (1 if subject.settings.quick else REPEATS)
    total = len(actions) * (count + 1)
    rounds = interleave(actions, count, lambda done: subject.report.advance(done, total))
    return {
        "rows": len(workload.rows),
        "ratio": asdict(ratios(rounds.seconds("score"), rounds.seconds("forward"))),
        "more_memory_mb": (rounds.memory_mb["score"] or 0) - (rounds.memory_mb["forward"] or 0),
        "rounds": rounds.to_json(),
    }


def trained(model: nn.Module) -> nn.Module:
    """Give every B values that are not zero: a LoRA that was never trained has no importance."""
    for layer in importance.lora_layers(model).values():
        for up in layer.lora_B.values():
            nn.init.normal_(up.weight, std=0.01)
    return model


def _scoring(model: nn.Module, inputs: list[dict[str, Tensor]]) -> Callable[[], object]:
    return lambda: importance.score(model, inputs)


def _forward(model: nn.Module, inputs: list[dict[str, Tensor]], device: torch.device) -> Callable[[], object]:
    model.eval()

    def work() -> None:
        with torch.no_grad():
            for batch in inputs:
                model(**{name: tensor.to(device) for name, tensor in batch.items() if name != "labels"})

    return work
