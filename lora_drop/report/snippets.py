"""Snippets to copy from the page: commands and configurations for the retained layers."""

from __future__ import annotations

import shlex

from lora_drop.files import read_json
from lora_drop.runs import words
from lora_drop.runs.facts import Facts

UNUSUAL = ("use_rslora", "rank_pattern", "alpha_pattern", "lora_bias")
"""Settings of a LoRA that decide ΔW and that only adapters trained elsewhere have."""


def snippets(run: Facts) -> list[tuple[str, str]]:
    """Return the snippets as (title, text)."""
    folder = shlex.quote(str(run.path))
    selection = run.selection
    groups = selection.projections.values() if selection is not None and selection.share else ()
    tied = any(len(layers.shared) > 1 for layers in groups)
    found = []
    if run.parameters:
        found.append(("A PEFT adapter with a model card", f"lora-drop export {folder} --to peft"))
        if tied:
            found.append(("The smallest file: each shared LoRA once", f"lora-drop export {folder} --to compact"))
        found.append(("The whole model, merged", f"lora-drop export {folder} --to merged"))
    return [*found, ("PEFT, for your own training", peft_config(run))]


def at_threshold(run: Facts) -> str:
    """Return the command that trains again with another threshold; the threshold is to be appended."""
    return f"lora-drop run -d {shlex.quote(str(run.path))} -o method.threshold="


def peft_config(run: Facts) -> str:
    """Return Python code for a PEFT LoRA like the scored one, on the retained modules. Sharing needs `lora_drop.share`."""
    stored = read_json(run.whole("warmup/adapter_config.json"))
    more = "".join(f", {key}={stored[key]!r}" for key in UNUSUAL if stored.get(key))
    lines = [f"    {words.quoted(name)}," for name in run.retained_modules]
    return "\n".join(
        [
            "from peft import LoraConfig",
            "",
            "# the retained layers alone; lora_drop.share(model, selection) also lets the others share one",
            f"config = LoraConfig(r={stored['r']}, lora_alpha={stored['lora_alpha']:g}{more}, target_modules=[",
            *lines,
            "])",
        ]
    )
