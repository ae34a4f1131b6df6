"""Comparisons of training and of scoring, each a set of named numbers with median and quartiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from bench.products import Products, why_no_switch
from bench.rounds import Action, Spread, clock, interleave
from bench.subject import Subject
from bench.training import Training, Variant, check_fair
from lora_drop.data.sentences import batches
from lora_drop.pruning import importance
from lora_drop.pruning.adapters import loras
from lora_drop.training.way import HALF, Way, find_way, why_slow

STOCK, SWITCHED, GROUPED, OURS = Variant("stock"), Variant("stock", switched=True), Variant("grouped"), Variant("ours")
STOCK_16, GROUPED_16, OURS_16 = (Variant(side, "bf16") for side in ("stock", "grouped", "ours"))
SMALL = (STOCK, GROUPED, SWITCHED, OURS, Variant("ours", upper=True), STOCK_16, GROUPED_16, OURS_16)
BASE = (GROUPED, OURS, GROUPED_16, OURS_16)
SCORED_ROWS, SCORE_ROUNDS = 192, 2
"""Rows of a scoring pass, and its rounds for each round of training: a pass is short and the difference small."""


def measure_training(
    subject: Subject, variants: Sequence[Variant], rounds: int, limit: float = math.inf, epochs: int = 1
) -> dict[str, Any]:
    """Train in every variant, beside the machine's matrix products on the model's shapes.

    There are fewer rounds if they would take more than `limit` seconds. Of several epochs, the last is measured. The
    ratios of whole calls, which include what happens once per training, are then numbers as well.

    Returns:
        `numbers`: speeds, the fraction of the fastest product that each variant reaches, and how many times as fast
        ours is as each other variant; `absent`: variants that this machine cannot run, and why; and the facts that a
        reader needs to judge them.

    Raises:
        UnfairComparison: if the variants did not do the same work.
    """
    absent = {str(one): why for one in variants if (why := why_absent(one, subject))}
    variants = [one for one in variants if str(one) not in absent]
    trainings = {str(one): Training(subject, one, epochs) for one in variants}
    rows, tokens = len(subject.lengths), sum(subject.lengths)
    at_a_time = tokens * min(rows, subject.setup.train.batch_size) // rows
    products = {
        f"products {precision}": Products(at_a_time, subject.shapes, HALF.get(precision, torch.float32), subject.device)
        for precision in dict.fromkeys(one.precision for one in variants)
    }
    measured = interleave({**products, **trainings}, rounds, subject.report.advance, limit)
    evidence = {name: one.evidence for name, one in trainings.items() if one.evidence is not None}
    check_fair(evidence)
    numbers = {f"{name}, samples/s": measured.rate(name, rows) for name in trainings}
    numbers |= {f"{name}, tokens/s": measured.rate(name, tokens) for name in trainings}
    whole = replace(measured, seconds={name: one.whole_calls[1:] for name, one in trainings.items()})  # no warm-up
    for name, one in trainings.items():
        others = [other for other in trainings if other != name] if one.variant.side == "ours" else []
        numbers |= {f"{name} / {other}": measured.ratio(other, name) for other in others}
        if epochs > 1:
            numbers |= {f"{name} / {other}, whole call": whole.ratio(other, name) for other in others}
        if not one.variant.upper:  # the upper half has fewer operations
            roof = measured.ratio(f"products {one.variant.precision}", name)
            numbers[f"{name}, of the product"] = {key: value * subject.flops for key, value in roof.items()}
    return {
        "subject": subject.describe(),
        "epochs": epochs,
        "numbers": numbers,
        "absent": absent,
        "computed": {name: one.computed for name, one in trainings.items()},
        "gpu_memory_mb": {name: one.gpu_memory_mb for name, one in trainings.items()},
        "evidence": {name: asdict(one) for name, one in evidence.items()},
        "products": {"tokens": at_a_time, "shapes": subject.shapes}
        | {name: {"flops_per_second": one.fastest} for name, one in products.items()},
        "rounds": {**measured.to_json(), "whole_calls": whole.seconds},
    }


def why_absent(variant: Variant, subject: Subject) -> str:
    """Return the reason why a variant cannot be measured on this machine; empty if it can."""
    return why_no_switch() if variant.switched else why_no_time(variant.precision, subject)


def why_no_time(precision: str, subject: Subject) -> str:
    """Return the reason why this CPU would take hours in a precision; empty if it would not, and on a GPU."""
    return "" if subject.settings.quick or subject.device.type != "cpu" else why_slow(subject.device, precision)


def measure_scoring(subject: Subject, rounds: int, limit: float = math.inf) -> dict[str, Any]:
    """Measure `importance.score` against a plain forward pass over the same batches, in eval mode, without gradients.

    Both are measured in fp32 and, where the machine multiplies it, bf16, padded and packed; the worse of the two ratios
    is the number of a precision. When packed, the forward pass computes every token in every layer, as scoring needs it.
    """
    rows = subject.rows.select(range(min(len(subject.rows), SCORED_ROWS)))
    model = with_values(subject.lora()).eval()
    found = [dict(batch) for _, batch in batches(rows, subject.data.collate, subject.data.batch_size)]
    inputs = [{name: one.to(subject.device) for name, one in batch.items() if name != "labels"} for batch in found]
    actions: dict[str, Action] = {}
    computed = {}
    slow = {precision: why_no_time(precision, subject) for precision in ("fp32", "bf16")}
    for precision in [name for name, why in slow.items() if not why]:
        train, loss = subject.config(precision).train, subject.data.kind.loss(0.0)
        packed = find_way(model, rows, subject.data.collate, train, loss)
        padded = find_way(model, rows, subject.data.collate, replace(train, packing="never"), loss)
        computed[precision] = str(packed)
        for name, way in {"padded": padded, **({"packed": packed} if packed.packing else {})}.items():
            for work in (forward, importance.score):
                given = partial(work, model, inputs, packing=way)
                actions[f"{work.__name__} {precision} {name}"] = partial(clock, given, subject.device)
    count = rounds if subject.settings.quick else SCORE_ROUNDS * rounds
    measured = interleave(actions, count, subject.report.advance, limit)
    numbers: dict[str, Spread] = {}
    for precision in computed:
        plain = [name for name in actions if name.startswith(f"forward {precision}")]
        each = {name: measured.ratio(name.replace("forward", "score"), name) for name in plain}
        worst = max(each.values(), key=lambda one: one["median"])
        numbers |= {f"score / {name}": one for name, one in each.items()} | {f"score / forward {precision}": worst}
    absent = {f"forward {precision}": why for precision, why in slow.items() if why}
    return {
        "rows": len(rows),
        "numbers": numbers,
        "absent": absent,
        "computed": computed,
        "rounds": measured.to_json(),
    }


def with_values(model: nn.Module) -> nn.Module:
    """Give every B nonzero values: an untrained LoRA has no importance."""
    for lora in loras(model).values():
        nn.init.normal_(lora.layer.lora_B[lora.adapter].weight, std=0.01)
    return model


def forward(model: nn.Module, inputs: Sequence[dict[str, torch.Tensor]], packing: Way) -> None:
    """Compute all batches and do nothing else."""
    with torch.no_grad():
        for batch in inputs:
            with packing.over(batch, whole=True):
                model(**batch)
