"""Part `scaling`: how the cost of a training step grows with rows, length, layers and rank, and how its operations do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from bench.flops import Rows, shape_of, training_flops
from bench.rounds import interleave, timed
from bench.statistics import exponent, spread
from lora_drop.config.schema import MethodConfig
from lora_drop.registry import METHODS
from lora_drop.training.packing import Packing, prepare

ROUNDS = 5
"""At most: there are many steps, and their times differ by far more than their noise."""


@dataclass(frozen=True)
class Point:
    """One measured step."""

    rows: int = 16
    length: int = 64
    layers: int = 4
    rank: int = 8


@dataclass(frozen=True)
class Scale:
    """The sizes of the model, and the values that each size of a step takes while the others stay as in Point."""

    hidden: int
    axes: Mapping[str, tuple[int, ...]]


AXES = {"rows": (8, 16, 32, 64), "length": (32, 64, 128, 256), "layers": (2, 4, 8, 16), "rank": (4, 16, 64, 256)}
CPU = Scale(256, AXES)
GPU = Scale(1024, {**AXES, "rows": (64, 128, 256, 512), "length": (64, 128, 256, 512)})
QUICK = Scale(32, {"rows": (2, 4, 8, 16), "length": (8, 16, 32, 64), "layers": (1, 2, 3, 4), "rank": (2, 4, 8, 16)})


def measure_scaling(
    device: torch.device, seed: int, rounds: int, quick: bool, tell: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measure a training step (forward, backward, AdamW) of LoRA on a BERT with random weights, packed, at four values of each size.

    Returns per size its values, the median seconds, the exponent of the seconds and that of the operations.
    """
    scale = QUICK if quick else GPU if device.type == "cuda" else CPU
    found, rounds = {}, min(rounds, ROUNDS)
    for number, (axis, values) in enumerate(scale.axes.items()):
        points = [replace(Point(), **{axis: value}) for value in values]
        actions = {str(getattr(point, axis)): timed(_step(scale, point, device, seed), device) for point in points}
        each = len(actions) * (rounds + 1)

        def told(done: int, before: int = number * each, whole: int = len(scale.axes) * each) -> None:
            tell(before + done, whole)

        measured = interleave(actions, rounds, told)
        spreads = [spread(measured.seconds(name)) for name in actions]
        operations = [_operations(scale, point) for point in points]
        found[axis] = {
            "values": list(values),
            "seconds": [asdict(one) for one in spreads],
            "exponent": exponent(values, [one.median for one in spreads]),
            "flops": operations,
            "exponent_of_flops": exponent(values, operations),
            "rounds": measured.to_json(),
        }
    return {"model": {"type": "bert", "hidden": scale.hidden}, "otherwise": asdict(Point()), "axes": found}


def _config(scale: Scale, point: Point) -> Any:
    return AutoConfig.for_model(
        "bert",
        hidden_size=scale.hidden,
        intermediate_size=4 * scale.hidden,
        num_attention_heads=scale.hidden // 16 if scale.hidden < 128 else scale.hidden // 64,
        num_hidden_layers=point.layers,
        vocab_size=1000,
    )


def _operations(scale: Scale, point: Point) -> int:
    shape = shape_of(_config(scale, point), generator=False)
    assert shape is not None
    return training_flops(shape, Rows([point.length] * point.rows), point.rank).needed


def _step(scale: Scale, point: Point, device: torch.device, seed: int) -> Callable[[], Callable[[], object]]:
    """Return what prepares a step; the model is built once and kept, as it is small."""
    torch.manual_seed(seed)
    backbone = AutoModelForSequenceClassification.from_config(_config(scale, point))
    model = METHODS.get("lora").build(backbone, MethodConfig(rank=point.rank), seed, None).to(device).train()
    optimizer = torch.optim.AdamW(weight for weight in model.parameters() if weight.requires_grad)
    ids = torch.randint(1, 1000, (point.rows, point.length), device=device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}
    packing, _ = prepare(model, {name: tensor[:2] for name, tensor in batch.items()})
    return lambda: lambda: _train(model, packing, optimizer, batch)


def _train(
    model: nn.Module, packing: Packing | None, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor]
) -> None:
    with packing.over(batch) if packing else nullcontext():
        model(**batch).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
