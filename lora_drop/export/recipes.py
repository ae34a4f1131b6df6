"""`--to config`, axolotl, llamafactory and trl: the retained layers as a configuration for training elsewhere.

PEFT's configuration cannot express that layers share a LoRA. The recipes therefore adapt only the retained layers (the
paper's ablation "w/o share"). The recipe for TRL also makes the others share one.
"""

from __future__ import annotations

import json
from typing import Any

from lora_drop.config.identity import as_yaml
from lora_drop.errors import UserError
from lora_drop.export.source import ExportedRun
from lora_drop.files import read_json
from lora_drop.runs import words

LONG = 10**6
"""A line of YAML that is never broken: the list of target modules stays readable for other tools."""
ALONE = "The layers that lora-drop retained. All others have no LoRA: a configuration cannot say that they share one."


def config(source: ExportedRun) -> str:
    """Return the JSON of a PEFT LoraConfig on the retained modules."""
    return json.dumps(lora_config(source), indent=2, sort_keys=True) + "\n"


def lora_config(source: ExportedRun) -> dict[str, Any]:
    """Return the warm-up's LoRA configuration for the retained modules only. Raises UserError without a selection."""
    source.run.require("selection.json", "select")
    source.run.require("warmup/adapter_config.json", "score")
    stored: dict[str, Any] = read_json(source.facts.whole("warmup/adapter_config.json"))
    stored |= {"target_modules": source.facts.retained_modules, "inference_mode": False}
    return stored | {"base_model_name_or_path": source.base, "revision": source.revision}


def axolotl(source: ExportedRun) -> str:
    """Return the part of an Axolotl configuration for the model and its LoRA."""
    found = _of_a_language_model(source, "Axolotl")
    content = {
        "base_model": source.base,
        "adapter": "lora",
        "lora_r": found["r"],
        "lora_alpha": found["lora_alpha"],
        "lora_dropout": found["lora_dropout"],
        "lora_target_modules": found["target_modules"],
        "sequence_len": source.run.config.train.max_length,
    }
    content |= {"peft_use_rslora": True} if found["use_rslora"] else {}
    content |= {"revision_of_model": source.revision} if source.revision else {}
    return f"# {ALONE}\n# Add your data sets and hyper-parameters.\n{as_yaml(content, LONG)}"


def llamafactory(source: ExportedRun) -> str:
    """Return the part of a LLaMA-Factory configuration for the model and its LoRA."""
    found = _of_a_language_model(source, "LLaMA-Factory")
    content = {
        "model_name_or_path": source.base,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": found["r"],
        "lora_alpha": found["lora_alpha"],
        "lora_dropout": found["lora_dropout"],
        "lora_target": ",".join(found["target_modules"]),
        "cutoff_len": source.run.config.train.max_length,
    }
    content |= {"use_rslora": True} if found["use_rslora"] else {}
    content |= {"model_revision": source.revision} if source.revision else {}
    return f"# {ALONE}\n# Add your data sets and hyper-parameters.\n{as_yaml(content, LONG)}"


def trl(source: ExportedRun) -> str:
    """Return a script for TRL's SFTTrainer in which the low-importance layers share a LoRA."""
    found = _of_a_language_model(source, "TRL's SFTTrainer")
    assert source.facts.selection is not None
    selection = words.quoted(json.dumps(source.facts.selection.to_json()))
    modules = "".join(f"    {words.quoted(row.name)},\n" for row in source.facts.scored)
    return TRL.format(
        base=words.quoted(source.base),
        rank=found["r"],
        alpha=found["lora_alpha"],
        dropout=found["lora_dropout"],
        rslora=", use_rslora=True" if found["use_rslora"] else "",
        revision=f", revision={words.quoted(source.revision)}" if source.revision else "",
        modules=modules,
        selection=selection,
    )


def _of_a_language_model(source: ExportedRun, what: str) -> dict[str, Any]:
    """Return `lora_config`. Raises UserError if a recipe cannot say it, or if it is not for a language model."""
    found = lora_config(source)
    if found["task_type"] == "SEQ_CLS":
        raise UserError(
            f"{what} trains language models, but {source.facts.subject} needs no generated texts. Use --to config, "
            "for PEFT."
        )
    for key in ("rank_pattern", "alpha_pattern"):
        if found.get(key):
            raise UserError(
                f"The scored adapter has a {key}, which the configuration of {what} cannot say. Use --to config, for PEFT."
            )
    return found


TRL = '''"""LoRA-drop in TRL: retained layers have a LoRA of their own, the others of a projection share one."""

import json

import lora_drop
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import SFTTrainer

MODULES = [
{modules}]
SELECTION = lora_drop.Selection.from_json(json.loads({selection}))

model = AutoModelForCausalLM.from_pretrained({base}{revision})
config = LoraConfig(
    r={rank}, lora_alpha={alpha}, lora_dropout={dropout}{rslora}, target_modules=MODULES, task_type="CAUSAL_LM"
)
model = lora_drop.share(get_peft_model(model, config), SELECTION)
trainer = SFTTrainer(model=model, train_dataset=...)  # your rows; no peft_config: the model has its adapter
trainer.train()
'''
