"""Run directories as files alone, without any training."""

import random
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from lora_drop.config.identity import to_yaml
from lora_drop.config.schema import Config, MethodConfig
from lora_drop.files import read_json, write_json, write_text
from lora_drop.pruning.scores import Scored, Scores, normalise
from lora_drop.pruning.selection import rule_of, select

WIDTHS = {"query": (32, 32), "value": (32, 48)}
HEAD = {"base_model.model.classifier.weight": (2, 32), "base_model.model.classifier.bias": (2,)}
RANK = 4


def scores(layers: int = 12, seed: int = 0, projections=tuple(WIDTHS)) -> list[Scored]:
    """Importances with ties and zeros among them."""
    draw = random.Random(seed)
    rows = []
    for projection in projections:
        values = {layer: draw.choice([0.0, 1.0, 1.0, draw.expovariate(1)]) for layer in range(layers)}
        shares = normalise({**values, 0: 0.5})
        for layer, share in shares.items():
            name = f"bert.encoder.layer.{layer}.attention.self.{projection}"
            rows.append(Scored(name, projection, layer, share, share, RANK * sum(WIDTHS[projection])))
    return rows


def pair(row: Scored) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA, under PEFT's names."""
    inputs, outputs = WIDTHS[row.projection]
    shapes = {"lora_A": (RANK, inputs), "lora_B": (outputs, RANK)}
    return {f"base_model.model.{row.name}.{half}.weight": torch.zeros(shape) for half, shape in shapes.items()}


def head() -> dict[str, torch.Tensor]:
    """The tensors of the task's head."""
    return {name: torch.zeros(shape) for name, shape in HEAD.items()}


def entry(seconds: float = 1.0, **facts) -> dict:
    """What `run.json` says of a stage."""
    fixed = {"inputs": "", "settings": "", "outputs": {}, "note": "a note", "peak_memory_mb": 500, "limited": {}}
    return {**fixed, "seconds": seconds, "versions": {"torch": "2"}, "commit": None, **facts}


def write_run(folder: Path, rows=None, seed: int = 0, score: float | None = 0.9, losses=(), **method) -> Path:
    """Write a run that was selected and, with a score, trained and evaluated."""
    settings = MethodConfig(**method)
    config = replace(Config(), backbone="tiny:bert", seed=seed, method=settings)
    stages = {"sample": entry()}
    parameters = 10_000
    if settings.name == "lora_drop":
        rows = rows or scores(seed=seed)
        chosen = select(rows, **rule_of(asdict(settings)), seed=seed)
        parameters = chosen.trainable_parameters
        (folder / "warmup").mkdir(parents=True, exist_ok=True)
        Scores(tuple(rows), 90, 900).save(folder / "scores.json")
        write_json(folder / "selection.json", chosen.to_json())
        write_json(folder / "warmup" / "losses.json", {"losses": list(losses) or [1 - 0.01 * n for n in range(40)]})
        tensors = {name: tensor for row in rows for name, tensor in pair(row).items()} | head()
        save_file(tensors, folder / "warmup" / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(folder / "warmup" / "adapter_config.json", {"r": RANK, "lora_alpha": 2 * RANK, "use_rslora": False})
        stages |= {"score": entry(), "select": entry()}
    if score is not None:
        epochs = [{"epoch": n, "loss": 1 / n, "accuracy": score - 0.1 + n / 20} for n in (1.0, 2.0)]
        counted = {"adapter": parameters, "head": 770}
        stages |= {"train": entry(60.0, trainable_parameters=counted, epochs=epochs), "eval": entry()}
        content = {"task": config.task, "split": "validation", "examples": 400, "primary": "accuracy"}
        write_json(folder / "metrics.json", {**content, "metrics": {"accuracy": score}, "baseline": {"accuracy": 0.5}})
    write_text(folder / "config.yaml", to_yaml(config))
    write_json(folder / "run.json", {"format": 2, "status": "done", "stages": stages})
    return folder


def write_own_run(folder: Path, path: str, content: str | None, **given) -> Path:
    """Write a run on own data whose rows have this content; of earlier versions it is not known."""
    run = write_run(folder, **given)
    config = (run / "config.yaml").read_text(encoding="utf-8").replace("  path: null", f"  path: {path}")
    write_text(run / "config.yaml", config.replace("toy-nli", "own"))
    manifest = read_json(run / "run.json")
    if content is not None:
        source = {"file": path, "content": content}
        manifest["stages"]["train"]["sources"] = {"train": source, "validation": source}
    write_json(run / "run.json", manifest)
    return run
