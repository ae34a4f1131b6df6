"""The result of one run, complete in one JSON file of `results/EXPERIMENT/BACKBONE/`.

Tables and figures are made from these files alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_drop.config.identity import OWN, config_hash, what_is_computed
from lora_drop.config.loading import from_dict
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Planned, slug, title_of
from lora_drop.experiments.record_checks import MODULE, fault_of
from lora_drop.files import read_json
from lora_drop.pruning.criteria.base import PAPER
from lora_drop.registry import CRITERIA, METHODS, TASKS
from lora_drop.runs.stages import BY_NAME
from lora_drop.runs.stages.base import HELD_OUT
from lora_drop.runs.store import Run
from lora_drop.tasks.own import OWN_VERSION

VERSION = 2
STAGE_KEYS = (
    *("seconds", "peak_memory_mb", "commit", "versions", "device", "threads", "precision", "weights", "data"),
    *("limited", "cut", "sources", "computed", "losses", "shared_from", "resumed"),
)
"""Keys of a stage's entry in `run.json` that a record keeps."""


@dataclass(frozen=True)
class Record:
    """The result of one run, its cost, and everything needed to repeat it."""

    experiment: str
    """Name of the experiment (`table1`)."""
    row: str
    """Row of the experiment (`lora_drop`)."""
    layout: dict[str, Any]
    """The experiment's layout (`grid.Experiment.layout`): titles of rows, tasks, seeds, columns, metrics, figures."""
    task: str
    task_title: str
    """The task's name in tables (`STS-B`)."""
    backbone: str
    method: str
    seed: int
    config_hash: str
    """Identifies what the run computes."""
    config: dict[str, Any]
    """The resolved configuration, without where it ran: running it again repeats the run."""
    overrides: dict[str, Any]
    """Settings that a command changed in the experiment's own configuration; empty: as published."""
    deviations: dict[str, list[Any]]
    """Keys whose value differs from the experiment's own: `[there, here]`."""
    limited: dict[str, int]
    """Rows the run was limited to (`train`, `eval`); empty: all rows."""
    stages: dict[str, dict[str, Any]]
    """Cost and circumstances of each stage: `seconds`, `peak_memory_mb`, `commit`, `versions`, `device`, `threads`,
    `precision`, `weights` (the identity of the backbone's weights), `data` (hashes of the rows read), `limited`, `cut`
    (notices of rows cut or left out), `sources` (origins of the backbone and of each split's rows: official files, or a
    commit of the Hub), `computed` (the way batches were computed: packed, or padded and why), `losses` (means of the
    first and last quarter of the warm-up), `shared_from` (the run that had already done it from the same inputs), and
    `resumed` (it continued a killed process; the cost of that one is not included)."""
    primary: str = ""
    """Name of the primary metric."""
    percent: bool = True
    """True if metrics are fractions, which tables show times 100; BLEU and ROUGE are from 0 to 100 already."""
    split: str = ""
    examples: int = 0
    """Number of rows of `split` that were evaluated."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the epoch that was kept; empty if the experiment ends before training."""
    baseline: dict[str, float] = field(default_factory=dict)
    """Scores of predicting the most frequent label for every row; empty for texts and in older records."""
    select_epoch: str = ""
    """The rule that chose the epoch: `best`, `last` or `held_out`."""
    kept_epoch: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Loss and metrics after each epoch."""
    best: dict[str, float] = field(default_factory=dict)
    """`epoch` and primary `score` of the best epoch on `split`; empty if epochs were not evaluated."""
    last: dict[str, float] = field(default_factory=dict)
    """The same for the last epoch."""
    held_out: dict[str, float] = field(default_factory=dict)
    """The same for the epoch that is best on the rows held out of training; empty without such rows."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Numbers of trainable parameters: `adapter` and `head`."""
    sampled: int = 0
    """Number of rows of the sample; 0 in records older than this field."""
    warmup_steps: int = 0
    """Optimizer steps of the warm-up."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """`projection`, `layer`, `score` and `importance` of each LoRA after the warm-up."""
    selection: dict[str, Any] = field(default_factory=dict)
    """Retained and shared layers; the content of `selection.json`."""
    norms: list[dict[str, Any]] = field(default_factory=list)
    """`projection`, `layer` and ‖ΔW x‖² of each example of the sample, for each LoRA, if kept."""
    stability: dict[str, Any] = field(default_factory=dict)
    """The bootstrap of the importances, if it was made."""
    trained_scores: list[dict[str, Any]] = field(default_factory=list)
    """The same as `scores` for the trained adapter, if computed."""
    signatures: dict[str, str] = field(default_factory=dict)
    """The protocol by which each text metric was computed."""
    made_by: dict[str, int] = field(default_factory=dict)
    """Versions of the stages, task, method and criterion (`{"stage score": 2, …}`); empty in older records."""
    version: int = VERSION
    """Version of this format."""

    @property
    def unit(self) -> float:
        """The factor by which tables and figures multiply metrics."""
        return 100.0 if self.percent else 1.0

    @property
    def own(self) -> bool:
        """True for LoRA-drop as in the paper, False for other methods and for its ablations."""
        settings = self.config.get("method", {})
        whole = settings.get("policy", "threshold") == "threshold" and settings.get("share", True)
        return self.method == "lora_drop" and whole


def versions_of(task: str, method: str, stages: Iterable[str], criterion: str = PAPER) -> dict[str, int]:
    """Return the versions that the numbers of these stages depend on: of the stages, task, method and criterion."""
    found = {f"stage {name}": BY_NAME[name].version for name in stages if name in BY_NAME and not BY_NAME[name].draws}
    found[f"task {task}"] = OWN_VERSION if task == OWN else TASKS.get(task).version
    if "score" in stages:
        found[f"criterion {criterion}"] = CRITERIA.get(criterion).version
    if "train" in stages:
        found[f"method {method}"] = METHODS.get(method).version
    return found


def gather(planned: Planned, run: Run, performed: Sequence[str]) -> Record:
    """Read the performed stages of a run directory, which may have more stages for another experiment."""
    manifest, config = run.manifest, run.config
    entries = {name: manifest["stages"][name] for name in performed}
    stages = {name: {key: entry[key] for key in STAGE_KEYS if key in entry} for name, entry in entries.items()}
    return Record(
        experiment=planned.experiment.name,
        row=planned.row,
        layout=planned.experiment.layout,
        task=config.task,
        task_title=title_of(config.task),
        backbone=config.backbone,
        method=config.method.name,
        seed=config.seed,
        config_hash=config_hash(config),
        config=what_is_computed(config),
        overrides=planned.overrides,
        deviations=planned.deviations,
        limited={part: rows for entry in stages.values() for part, rows in entry["limited"].items()},
        stages=stages,
        made_by=versions_of(config.task, config.method.name, performed, config.score.criterion),
        **_layers(run, performed),
        **(_trained(run) if "eval" in performed else {}),
    )


def _layers(run: Run, performed: Sequence[str]) -> dict[str, Any]:
    """Return what the performed stages recorded about the layers."""

    def modules(stage: str, name: str, *keys: str) -> list[dict[str, Any]]:
        rows = read_json(run.file(name))["modules"] if stage in performed else []
        return [{key: row[key] for key in keys} for row in rows]

    def whole(stage: str, name: str) -> dict[str, Any]:
        return read_json(run.file(name)) if stage in performed else {}

    return {
        "sampled": read_json(run.file("sample.json"))["size"] if "sample" in performed else 0,
        "warmup_steps": run.manifest["stages"]["score"]["warmup_steps"] if "score" in performed else 0,
        "scores": modules("score", "scores.json", *MODULE),
        "selection": whole("select", "selection.json"),
        "norms": _rounded(modules("norms", "norms.json", "projection", "layer", "norms")),
        "stability": whole("stability", "stability.json"),
        "trained_scores": modules("trained", "scores_trained.json", *MODULE),
    }


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with norms of six digits, which are enough to draw and keep the file small."""
    return [{**row, "norms": [float(f"{value:.6g}") for value in row["norms"]]} for row in rows]


def _trained(run: Run) -> dict[str, Any]:
    from lora_drop.runs.load import trained_task  # imports torch, which tables do not need

    metrics, trained = read_json(run.file("metrics.json")), run.manifest["stages"]["train"]
    primary, epochs = metrics["primary"], trained["epochs"]
    evaluated = [{"epoch": entry["epoch"], "score": entry[primary]} for entry in epochs if primary in entry]
    aside = [entry for entry in epochs if HELD_OUT in entry]
    chosen = max(aside, key=lambda entry: entry[HELD_OUT]) if aside else {}
    return {
        "primary": primary,
        "percent": trained_task(run).kind != "generation",
        "split": metrics["split"],
        "examples": metrics["examples"],
        "metrics": metrics["metrics"],
        "baseline": metrics.get("baseline", {}),
        "signatures": metrics.get("signatures", {}),
        "select_epoch": trained["select_epoch"],
        "kept_epoch": trained["kept_epoch"],
        "epochs": epochs,
        "best": max(evaluated, key=lambda entry: entry["score"]) if evaluated else {},
        "last": evaluated[-1] if evaluated else {},
        "held_out": {"epoch": chosen["epoch"], "score": chosen[primary]} if chosen else {},
        "parameters": trained["trainable_parameters"],
    }


def read_records(folder: Path, tell: Callable[[str], None] | None = None) -> list[Record]:
    """Read the results of one experiment on one backbone, in the order of their file names.

    A file that is not a record of this version, or not of this experiment and backbone, is left out and reported to
    `tell`; without `tell`, raises UserError.
    """
    records = []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(Record(**read_record(path)))
        except UserError as error:
            if tell is None:
                raise
            tell(f"left out: {error}")
    return records


def settings_today(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's configuration with today's defaults, or unchanged if it has a key that no longer exists.

    A key that did not exist when the record was written has today's default, so that records of any age compare.
    """
    try:
        return what_is_computed(from_dict(record["config"]))
    except UserError:
        return dict(record["config"])


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of a record's file in today's format.

    Raises UserError if it is not a record, or lies in the folder of another experiment or backbone, whose tables it
    would distort.
    """
    content = read_json(path)
    try:
        content = _upgraded(content)
    except (TypeError, KeyError, AttributeError):
        content = None
    fault = fault_of(content, Record, VERSION)
    if fault:
        raise UserError(
            f"{path} is not a result of this version of lora-drop: {fault}. "
            "Remove it, and repeat the run with lora-drop reproduce."
        )
    place = f"{content['experiment']}/{slug(content['backbone'])}"
    if f"{path.absolute().parent.parent.name}/{path.absolute().parent.name}" != place:
        raise UserError(
            f"{path} is a result of {content['experiment']} on {content['backbone']}, but lies in another folder than "
            f"{place}. Move it there, or out of the results."
        )
    return content


def _upgraded(content: Any) -> Any:
    """Return a record in today's format. In format 1, the circumstances were stated once for all stages."""
    if not isinstance(content, dict) or content.get("version") != 1:
        return content
    git = content.pop("git", None)
    common = {"commit": git["commit"] + "+altered" * git["dirty"]} if git and git["commit"] else {}
    common |= {key: content.pop(key) for key in ("versions", "device", "threads", "data", "weights") if key in content}
    stages = {name: {**common, "limited": content["limited"], **entry} for name, entry in content["stages"].items()}
    return {**content, "stages": stages, "version": VERSION}
