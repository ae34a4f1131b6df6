"""The facts in a run directory, finished or not, for listings, comparisons and pages.

Reads only JSON, YAML and the headers of weight files. Imports neither torch nor a model, and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lora_drop.config.files import SEAL, read_sealed, read_yaml
from lora_drop.config.identity import OWN, WHERE_KEYS, subject, without
from lora_drop.config.strict import leaves
from lora_drop.errors import UserError
from lora_drop.files import digest, file_digest, read_json
from lora_drop.pruning.scores import Scored, Scores
from lora_drop.pruning.selection import RULE, Selection
from lora_drop.registry import TITLES
from lora_drop.runs.locks import LOCK, is_held
from lora_drop.runs.store import read_manifest

TRAINED = ("task", "seed", "backbone", "quantization", "limit.train", "train.", "method.")
SELECTED = ("method.threshold", "method.budget", "method.policy", "method.share")
"""Settings of the selection; the selection itself is compared instead."""
MADE = ("sample.json", "scores.json", "selection.json", "metrics.json", "adapter")
"""Outputs by which a run directory is known that has lost its records."""
AGAIN = "`lora-drop run` with the same directory makes it again."


@dataclass(frozen=True)
class Facts:
    """The contents of a run directory."""

    path: Path
    config: dict[str, Any]
    """The resolved configuration, nested."""
    manifest: dict[str, Any]
    """`run.json`."""

    @property
    def task(self) -> str:
        """The task."""
        return str(self.config["task"])

    @property
    def subject(self) -> str:
        """The task's name for people."""
        return subject(self.task, self.config.get("data") or {})

    @property
    def data_path(self) -> str:
        """Path of own data, as given in the configuration; empty for other tasks."""
        data = self.config.get("data") or {}
        return str(data.get("path") or data.get("dataset_info") or "")

    @property
    def contents(self) -> dict[str, str]:
        """Content hash or commit of own data's rows, by split; empty for other tasks.

        The rows are those that the training read or, before training, any other stage.
        """
        stages = [self.stages["train"]] if "train" in self.stages else self.stages.values()
        sources = {split: source for stage in stages for split, source in stage.get("sources", {}).items()}
        known = {split: sources.get(split, {}) for split in ("train", "validation") if self.task == OWN}
        found = {split: source.get("content") or source.get("commit") for split, source in known.items()}
        return {split: content for split, content in found.items() if content}

    def of_other_rows(self, other: Facts) -> bool:
        """Return True if this run is known to have read other rows of own data than another run."""
        theirs = other.contents
        return any(theirs.get(split, content) != content for split, content in self.contents.items())

    @property
    def backbone(self) -> str:
        """The backbone."""
        return str(self.config["backbone"])

    @property
    def method(self) -> str:
        """The name of the method."""
        return str(self.config["method"]["name"])

    @property
    def title(self) -> str:
        """The method's name in tables; a plugin's method keeps its own name."""
        return TITLES.get(self.method, self.method)

    @property
    def seed(self) -> int:
        """The seed of the training; before training, the configured one."""
        return int(self.trained_with.get("seed", self.config["seed"]))

    @property
    def trained_with(self) -> dict[str, Any]:
        """Settings that the model was trained with (`training_settings`).

        Empty before training, and for runs of earlier versions.
        """
        return self.stages.get("train", {}).get("trained_with", {})

    @property
    def stages(self) -> dict[str, dict[str, Any]]:
        """The manifest's entries of the finished stages."""
        return self.manifest.get("stages", {})

    @cached_property
    def status(self) -> str:
        """The status: done, failed, running or interrupted. A run is also interrupted if its process was killed."""
        stored = str(self.manifest.get("status", "new"))
        return "interrupted" if stored == "running" and not is_held(self.path / LOCK) else stored

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers of trainable parameters, as `adapter` and `head`; empty before training."""
        return self.stages.get("train", {}).get("trainable_parameters", {})

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The content of `metrics.json`; empty before the evaluation, and if it is no longer of this adapter."""
        return self._json("metrics.json") if "eval" in self.stages else {}

    @property
    def primary(self) -> str:
        """Name of the primary metric; empty before the evaluation."""
        return str(self.metrics.get("primary", ""))

    @property
    def score(self) -> float | None:
        """Value of the primary metric; None before the evaluation."""
        try:
            return self.metrics["metrics"][self.primary] if self.metrics else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.path / 'metrics.json'} holds no metrics. {AGAIN}") from error

    @cached_property
    def scored(self) -> tuple[Scored, ...]:
        """The rows of `scores.json`; empty if nothing was scored."""
        path = self.whole("scores.json")
        return Scores.load(path).rows if path.is_file() else ()

    @cached_property
    def selection(self) -> Selection | None:
        """The selection of layers; None if there is none."""
        path = self.whole("selection.json")
        return Selection.load(path) if path.is_file() else None

    @property
    def trained_as_selected(self) -> bool:
        """False if the selection has changed since the training, which would then be repeated."""
        trained = self.stages.get("train", {})
        if "selection" in trained:
            return bool(trained["selection"] == file_digest(self.path / "selection.json"))
        chosen = self.selection.trainable_parameters if self.selection else None  # earlier versions record nothing else
        return chosen is None or self.parameters.get("adapter", chosen) == chosen

    @property
    def trained_as_configured(self) -> bool:
        """False if a training setting has changed since the training, which would then be repeated."""
        now = training_settings(self.config)
        return all(now.get(key, value) == value for key, value in self.trained_with.items())

    @property
    def retained_modules(self) -> list[str]:
        """Names of the modules that retain their own LoRA, in model order; empty without a selection."""
        chosen = self.selection.projections if self.selection else {}
        kept = {(name, layer) for name, layers in chosen.items() for layer in layers.retained}
        return [row.name for row in self.scored if (row.projection, row.layer) in kept]

    @cached_property
    def stability(self) -> dict[str, Any]:
        """The content of `stability.json`; empty if it belongs to earlier scores or another selection rule."""
        content, method = self._json("stability.json"), self.config["method"]
        resampled = [(row["projection"], row["layer"], row["importance"]) for row in content.get("modules", [])]
        if resampled != [(row.projection, row.layer, row.importance) for row in self.scored]:
            return {}
        rule = {key: method.get(key) for key in RULE}
        found = {"policy": "threshold", **content}  # the only policy of earlier versions
        return content if all(found.get(key) == value for key, value in rule.items()) else {}

    @cached_property
    def criteria(self) -> dict[str, Any]:
        """The content of `criteria.json`; empty if it belongs to earlier scores."""
        content = self._json("criteria.json")
        rows = content["criteria"][content["chosen"]]["modules"] if content else []
        return content if rows == [asdict(row) for row in self.scored] else {}

    @cached_property
    def warmup_losses(self) -> list[float]:
        """Loss of each warm-up step; empty if none is recorded."""
        return self._json("warmup/losses.json").get("losses", [])

    @property
    def constant_loss(self) -> float | None:
        """Loss of a constant prediction on the warm-up's rows; None for text tasks and runs of earlier versions."""
        return self.stages.get("score", {}).get("constant_loss")

    @property
    def epochs(self) -> list[dict[str, float]]:
        """Loss and metrics of each epoch of the training."""
        return self.stages.get("train", {}).get("epochs", [])

    @property
    def seconds(self) -> float:
        """Total seconds of all stages."""
        return float(sum(entry.get("seconds", 0.0) for entry in self.stages.values()))

    @property
    def limited(self) -> dict[str, int]:
        """Number of rows used, for each part that was limited."""
        return {part: rows for entry in self.stages.values() for part, rows in entry.get("limited", {}).items()}

    @property
    def cut(self) -> list[str]:
        """Distinct sentences about rows that were cut or left out."""
        told = [note for entry in self.stages.values() for notes in entry.get("cut", {}).values() for note in notes]
        return list(dict.fromkeys(told))

    @cached_property
    def group(self) -> str:
        """Hash of what was computed, without the seed: runs of one group are repetitions."""
        return digest(without(self.config, (*WHERE_KEYS, "seed")))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.whole(name)
        return read_json(path) if path.is_file() else {}

    def whole(self, name: str) -> Path:
        """Return the path of a file. Raises UserError if it has changed since its stage wrote it."""
        output = name.partition("/")[0]
        made = [entry["outputs"][output] for entry in self.stages.values() if output in entry.get("outputs", {})]
        if made and file_digest(self.path / output) not in made:
            raise UserError(
                f"{self.path / output} has changed since the run wrote it: it is damaged or was edited. {AGAIN}"
            )
        return self.path / name


def read_facts(path: str | Path) -> Facts:
    """Read a run directory. Raises UserError if the folder is not one, or if its files are damaged."""
    folder = Path(path)
    stored = folder / "config.yaml"
    if not stored.is_file() or not (folder / "run.json").is_file():
        raise UserError(f"{folder} is not a run directory: it has no config.yaml and run.json.")
    config: Any = (read_sealed if SEAL.encode() in stored.read_bytes() else read_yaml)(stored)
    manifest = read_json(folder / "run.json")
    named = isinstance(config, dict) and isinstance(config.get("method"), dict)
    if not named or not {"task", "backbone", "seed"} <= config.keys() or not isinstance(manifest, dict):
        raise UserError(f"{folder} is damaged: its config.yaml or run.json does not describe a run.")
    if damaged := read_manifest(folder)[1]:
        raise UserError(f"{folder / 'run.json'} is damaged in its entry for {', '.join(damaged)}. {AGAIN}")
    return Facts(folder, config, manifest)


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a nested configuration that a trained model depends on, by dotted key."""
    found = leaves(config)
    return {
        key: value for key, value in found.items() if key.startswith(TRAINED) and key not in (*SELECTED, *WHERE_KEYS)
    }


def with_compared(run: Facts) -> list[Facts]:
    """Return a run and the runs that `run --compare` has put into its folder."""
    return [run, *(read_facts(folder) for folder in find_runs(run.path / "compare"))]


def find_runs(folder: Path) -> list[Path]:
    """Return the run directories at or below a folder, sorted by path, including those inside another run."""
    found = [path.parent for path in folder.rglob("run.json") if (path.parent / "config.yaml").is_file()]
    return sorted(found, key=lambda path: path.parts)


def lost_records(folder: Path) -> list[str]:
    """Return a sentence for each run directory at or below a folder that has lost `run.json` or `config.yaml`."""
    unnamed = [path.parent for path in folder.rglob("run.json") if not (path.parent / "config.yaml").exists()]
    unlisted = [
        path.parent
        for path in folder.rglob("config.yaml")
        if not (path.parent / "run.json").exists() and SEAL.encode() in path.read_bytes()
    ]
    lost = [(path, "config.yaml", "Give its configuration with -c FILE to make it again.") for path in unnamed]
    lost += [(path, "run.json", AGAIN) for path in unlisted]
    return [
        f"{path} has no {name}, so its files cannot be identified. {advice}"
        for path, name, advice in sorted(lost)
        if any((path / made).exists() for made in MADE)
    ]


def differences(one: Facts, other: Facts) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two runs, by dotted key, except those of where they ran."""
    first, second = leaves(one.config), leaves(other.config)
    keys = [key for key in (first | second) if key not in WHERE_KEYS]
    return {key: (first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)}


def shapes_of(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of a safetensors file, from its header. Raises UserError if damaged."""
    try:
        with safe_open(path, "numpy") as file:  # numpy avoids importing torch; no tensor is read
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}).") from error
