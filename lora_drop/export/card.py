"""The model card of an export (README.md): description, measurements, and loading code."""

from __future__ import annotations

from typing import Any

from lora_drop.config.identity import as_yaml
from lora_drop.export.source import ExportedRun
from lora_drop.runs import words
from lora_drop.runs.facts import with_compared

LOADING = {
    "peft": """from peft import PeftModel
from transformers import {auto}

model = {auto}.from_pretrained({base}{labels})
model = PeftModel.from_pretrained(model, "FOLDER")""",
    "compact": """import lora_drop  # pip install lora-drop; PEFT alone does not read this form
from transformers import {auto}

model = {auto}.from_pretrained({base}{labels})
model = lora_drop.load_adapter(model, "FOLDER")""",
    "merged": """from transformers import {auto}, AutoTokenizer

model, tokenizer = {auto}.from_pretrained("FOLDER"), AutoTokenizer.from_pretrained("FOLDER")""",
}


def card(source: ExportedRun, target: str, said: str) -> str:
    """Return the card of an export; `said` is the text about its size."""
    facts, task = source.facts, source.task
    generates = task.kind == "generation"
    auto = "AutoModelForCausalLM" if generates else "AutoModelForSequenceClassification"
    labels = "" if generates else f", num_labels={task.outputs}"
    if not generates and target != "merged" and source.replaces_head:
        labels += ", ignore_mismatched_sizes=True"
    if source.revision:
        labels += f", revision={words.quoted(source.revision)}"
    base = source.base if target != "merged" else source.known or f"the folder `{source.run.config.backbone}`"
    loading = LOADING[target].format(auto=auto, base=words.quoted(base), labels=labels)
    head = as_yaml(_front(source, target))
    parts = [f"---\n{head}---\n", f"# {facts.title} for {task.title or facts.subject} on {base}\n"]
    if facts.selection is not None and facts.trained_as_selected:
        parts.append(words.answer(facts) + "\n")
    parts += [f"Form: {target}; {said}.\n", f"```python\n{loading}\n```\n", "## Measured\n", _measured(source)]
    if (task.center, task.spread) != (0.0, 1.0):
        unit = "`lora_drop` in config.json has both numbers"
        parts.append(f"The value is output × {task.spread:.10g} + {task.center:.10g} ({unit}).\n")
    doubts = words.doubted(facts)
    if doubts:
        parts.append("Mind:\n\n" + "".join(f"- {doubt}.\n" for doubt in doubts))
    parts.append("## Made with\n\n" + _made(source))
    return "\n".join(parts)


def _front(source: ExportedRun, target: str) -> dict[str, Any]:
    facts, task = source.facts, source.task
    front: dict[str, Any] = {
        **({"base_model": source.known} if source.known else {}),
        "library_name": {"peft": "peft", "compact": "lora-drop", "merged": "transformers"}[target],
        "pipeline_tag": "text-generation" if task.kind == "generation" else "text-classification",
        "tags": ["lora", facts.method.replace("_", "-")],
    }
    rows = task.hub.split()[:1]  # `nyu-mll/glue (rte)`
    if rows and "/" in rows[0]:
        front["datasets"] = rows
    return front


def _measured(source: ExportedRun) -> str:
    facts = source.facts
    if not facts.metrics:
        return "Nothing was measured: the run was not evaluated.\n"
    metrics = ", ".join(f"{name} {words.number(value)}" for name, value in facts.metrics["metrics"].items())
    rows = [
        f"- {metrics}, on {facts.metrics['examples']:,} rows of {facts.metrics['split']}, seed {facts.seed}",
        f"- trainable parameters: {facts.parameters['adapter']:,} in the adapter, {facts.parameters['head']:,} in the head",
    ]
    verdict = words.verdict(words.compared(with_compared(facts)))
    return "\n".join([*rows, *([f"- {verdict}"] if verdict else []), ""])


def _made(source: ExportedRun) -> str:
    train = source.facts.stages.get("train", {})
    versions = ", ".join(f"{name} {version}" for name, version in train.get("versions", {}).items())
    commit = f", commit {train['commit'][:12]}" if train.get("commit") else ""
    text = f"lora-drop ({versions}{commit}), after [LoRA-drop](https://arxiv.org/abs/2402.07721)."
    if source.run.config.backbone != source.known:
        text += f" The backbone that was trained on: `{source.run.config.backbone}`"
        text += f", weights sha256 {train['weights'][:16]}." if train.get("weights") else "."
    if source.run.config.quantization != "none":
        text += f" It was trained on {source.run.config.quantization} weights."
    return text + "\n"
