"""Convert a selection to PEFT's LoraConfig, for tools that take one.

PEFT matches modules by names and patterns and silently ignores a pattern that matches nothing. So the modules that a
configuration matches by PEFT's own rules are compared with the intended ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn

from lora_drop.errors import UserError
from lora_drop.pruning.places import all_places, transposed
from lora_drop.pruning.tensor_names import PREFIX

if TYPE_CHECKING:
    from peft import LoraConfig

    from lora_drop.pruning.selection import Selection


def lora_config(
    selection: Selection, base: nn.Module, rank: int = 8, low_rank: int | None = None, **options: Any
) -> LoraConfig:
    """Return the configuration; see `Selection.to_lora_config`."""
    from peft import LoraConfig

    if "r" in options:
        raise UserError(
            "to_lora_config: give the rank as rank=8, not as r. The scaling and low_rank are derived from it."
        )
    places = {(place.projection, place.layer): place for place in all_places(base)}
    if low_rank is None:
        low_rank = rank if selection.share else 0
    wanted = {
        (name, layer): low_rank if layer in layers.shared else rank
        for name, layers in selection.projections.items()
        for layer in layers.all
    }
    missing = [key for key in wanted if key not in places]
    if missing:
        raise UserError(
            f"The model has no {missing[0][0]} in layer {missing[0][1]}, which the selection names. Use the model "
            "that was scored."
        )
    if rank < 1 or low_rank < 0:
        raise UserError(f"Ranks must be at least 1 (low_rank: at least 0), but are {rank} and {low_rank}.")
    ranks = {place.name: wanted[key] for key, place in places.items() if key in wanted}  # in the order of the model
    adapted = [name for name, own in ranks.items() if own]
    others = [name for name in adapted if ranks[name] != rank]
    alpha = options.pop("lora_alpha", 2 * rank)
    power = 0.5 if options.get("use_rslora") else 1  # keeps the scaling the same for all ranks
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": adapted,
        "exclude_modules": [name for name, own in ranks.items() if not own] or None,
        "rank_pattern": {exactly(name): ranks[name] for name in others},
        "alpha_pattern": {exactly(name): alpha * (ranks[name] / rank) ** power for name in others},
        "fan_in_fan_out": not hasattr(base, "peft_config") and transposed(base, (places[key] for key in wanted)),
    }
    config = LoraConfig(**{**settings, **options})
    _check(config, base, set(adapted), set(others))
    return config


def exactly(name: str) -> str:
    """Return the PEFT pattern that matches only this module."""
    return f"^{re.escape(name)}"


def _check(config: Any, base: nn.Module, adapted: set[str], smaller: set[str]) -> None:
    """Raise UserError unless the configuration matches exactly `adapted`, and its patterns exactly `smaller`."""
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

    names = {name.removeprefix(PREFIX) for name, _ in base.named_modules()}
    hit = {name for name in names if _is_match(check_target_module_exists(config, name))}
    _equal("target_modules", hit, adapted)
    for what, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        matches = {key: {name for name in hit if get_pattern_key([key], name) == key} for key in patterns}
        dead = [key for key, found in matches.items() if not found]
        if dead:
            raise UserError(f"{what}: {dead[0]} matches no module of the LoRA, and PEFT would ignore it.")
        _equal(what, set().union(*matches.values()), smaller)


def _is_match(found: Any) -> bool:
    return bool(found) and type(found).__name__ != "_ExcludedModule"


def _equal(what: str, hit: set[str], meant: Iterable[str]) -> None:
    different = sorted(hit ^ set(meant))
    if different:
        side = "is matched but should not be" if different[0] in hit else "is not matched but should be"
        raise UserError(f"PEFT would not apply {what} to the modules that the selection needs: {different[0]} {side}.")
