"""The result of one run, complete in one JSON file of `results/EXPERIMENT/BACKBONE/`. Tables and figures are made from these alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lora_drop.config import WHERE_KEYS, Config, config_hash, from_dict, to_dict
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Planned, slug
from lora_drop.runs import Run, read_json, write_json
from lora_drop.tasks import get_task

VERSION = 2
STAGE_KEYS = (
    *(
        "seconds",
        "peak_memory_mb",
        "commit",
        "versions",
        "device",
        "threads",
        "precision",
        "weights",
        "data",
        "limited",
    ),
    *("computed", "losses", "sources", "shared_from", "resumed"),
)
"""What a record keeps of a stage's entry in `run.json`."""


@dataclass(frozen=True)
class Record:
    """What one run gave, what it cost, and everything needed to repeat it."""

    experiment: str
    """Name of the experiment (`table1`)."""
    row: str
    """Row of the experiment (`lora_drop`)."""
    layout: dict[str, Any]
    """Of the experiment: titles of all its rows, in order, tasks, seeds, columns, metrics, figures (`grid.Experiment.layout`)."""
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
    """What was asked for over the experiment's own configuration; empty: as published."""
    deviations: dict[str, list[Any]]
    """Keys whose value differs from the experiment's own: `[there, here]`."""
    limited: dict[str, int]
    """Rows the run was limited to (`train`, `eval`); empty: all rows."""
    stages: dict[str, dict[str, Any]]
    """What each stage cost and was computed with: `seconds`, `peak_memory_mb`, `commit`, `versions`, `device`, `threads`, `precision`, `weights` (the
    identity of the backbone's), `data` (hashes of the rows read), `limited`; `computed`, how batches were (packed, or padded and why);
    `losses` of the warm-up, mean of its first and its last quarter; `sources`, the files or the commit of the Hub that backbone and rows are from;
    `shared_from` where a run with the same inputs had done it already; `resumed` where a killed process was continued, whose cost is not in it."""
    primary: str = ""
    """The metric that the table shows."""
    percent: bool = True
    """Whether metrics are fractions that tables show times 100; BLEU and ROUGE are from 0 to 100 already."""
    split: str = ""
    examples: int = 0
    """Rows of `split` that were evaluated."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the epoch that was kept; empty if the experiment ends before training."""
    baseline: dict[str, float] = field(default_factory=dict)
    """What the most frequent label scores when it is predicted for every row; empty for texts, and in records older than this field."""
    select_epoch: str = ""
    """`best` or `last`: which epoch was kept."""
    kept_epoch: float = 0.0
    epochs: list[dict[str, float]] = field(default_factory=list)
    """Loss and metrics after each epoch."""
    best: dict[str, float] = field(default_factory=dict)
    """`epoch` and primary `score` of the best epoch on `split`; empty where epochs were not evaluated."""
    last: dict[str, float] = field(default_factory=dict)
    """The same of the last epoch."""
    parameters: dict[str, int] = field(default_factory=dict)
    """Trainable parameters: `adapter` and `head`."""
    sampled: int = 0
    """Rows of the sample; 0 in records older than this field."""
    warmup_steps: int = 0
    """Optimizer steps of the warm-up."""
    scores: list[dict[str, Any]] = field(default_factory=list)
    """Per LoRA `projection`, `layer`, `score`, `importance`, after the warm-up."""
    selection: dict[str, Any] = field(default_factory=dict)
    """What was retained and shared; the content of `selection.json`."""
    norms: list[dict[str, Any]] = field(default_factory=list)
    """Per LoRA `projection`, `layer` and ‖ΔW x‖² of each example of the sample, if kept."""
    stability: dict[str, Any] = field(default_factory=dict)
    """The bootstrap of the importances, if made."""
    trained_scores: list[dict[str, Any]] = field(default_factory=list)
    """As `scores`, of the trained adapter, if made."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How the metrics of texts were counted."""
    version: int = VERSION
    """Of this format."""


def record_path(results: Path, planned: Planned) -> Path:
    """Return where the result of a run belongs."""
    return results / planned.experiment.name / slug(planned.config.backbone) / f"{planned.name}.json"


def is_done(results: Path, planned: Planned) -> bool:
    """Whether the result of a run is there: a record of an equal configuration.

    Configurations are compared, not their hashes: a key that did not exist when the record was written has today's default.
    """
    return bool(_equal_records(results, planned))


def join_record(results: Path, planned: Planned) -> None:
    """Let a run that was done under other overrides, which come to the same configuration, stand among those asked for now as well."""
    same = _equal_records(results, planned)
    if not any(read_json(path)["overrides"] == planned.overrides for path in same):
        changed = {"overrides": planned.overrides, "deviations": planned.deviations}
        write_json(record_path(results, planned), {**read_json(same[0]), **changed})


def _equal_records(results: Path, planned: Planned) -> list[Path]:
    pattern = f"{slug(planned.row)}-{planned.config.task}-s{planned.config.seed}-*.json"
    found = sorted(record_path(results, planned).parent.glob(pattern))
    return [path for path in found if _same(path, planned.config)]


def _same(path: Path, config: Config) -> bool:
    where = {key: getattr(config, key) for key in WHERE_KEYS}
    try:
        return from_dict({**read_json(path)["config"], **where}) == config
    except UserError:  # a key that does not exist any more
        return False


def write_record(results: Path, planned: Planned, run: Run, stages: Sequence[str]) -> None:
    """Gather what the given stages of a run have left and write it to its place."""
    write_json(record_path(results, planned), asdict(gather(planned, run, stages)))


def gather(planned: Planned, run: Run, performed: Sequence[str]) -> Record:
    """Read a run directory, of which another experiment may have needed more stages."""
    manifest, config = run.manifest, run.config
    task = get_task(config.task)
    entries = {name: manifest["stages"][name] for name in performed}
    stages = {name: {key: entry[key] for key in STAGE_KEYS if key in entry} for name, entry in entries.items()}
    return Record(
        experiment=planned.experiment.name,
        row=planned.row,
        layout=planned.experiment.layout,
        task=config.task,
        task_title=task.title or task.name,
        backbone=config.backbone,
        method=config.method.name,
        seed=config.seed,
        config_hash=config_hash(config),
        config={key: value for key, value in to_dict(config).items() if key not in WHERE_KEYS},
        overrides=planned.overrides,
        deviations=planned.deviations,
        limited={part: rows for entry in stages.values() for part, rows in entry["limited"].items()},
        stages=stages,
        **_layers(run, performed),
        **(_trained(run, task.kind) if "eval" in performed else {}),
    )


def _layers(run: Run, performed: Sequence[str]) -> dict[str, Any]:
    """What is known of the layers, where a stage has looked at them."""

    def modules(stage: str, name: str, *keys: str) -> list[dict[str, Any]]:
        rows = read_json(run.file(name))["modules"] if stage in performed else []
        return [{key: row[key] for key in keys} for row in rows]

    def whole(stage: str, name: str) -> dict[str, Any]:
        return read_json(run.file(name)) if stage in performed else {}

    importances = ("projection", "layer", "score", "importance")
    return {
        "sampled": read_json(run.file("sample.json"))["size"] if "sample" in performed else 0,
        "warmup_steps": run.manifest["stages"]["score"]["warmup_steps"] if "score" in performed else 0,
        "scores": modules("score", "scores.json", *importances),
        "selection": whole("select", "selection.json"),
        "norms": _rounded(modules("norms", "norms.json", "projection", "layer", "norms")),
        "stability": whole("stability", "stability.json"),
        "trained_scores": modules("trained", "scores_trained.json", *importances),
    }


def _rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Six digits are enough to draw, and keep the file small."""
    return [{**row, "norms": [float(f"{value:.6g}") for value in row["norms"]]} for row in rows]


def _trained(run: Run, kind: str) -> dict[str, Any]:
    metrics, trained = read_json(run.file("metrics.json")), run.manifest["stages"]["train"]
    primary, epochs = metrics["primary"], trained["epochs"]
    evaluated = [{"epoch": entry["epoch"], "score": entry[primary]} for entry in epochs if primary in entry]
    return {
        "primary": primary,
        "percent": kind != "generation",
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
        "parameters": trained["trainable_parameters"],
    }


def read_records(folder: Path) -> list[Record]:
    """Read the results of one experiment on one backbone, in a fixed order. Raises UserError for a file of another format."""
    return list(_read_all(folder))


def _read_all(folder: Path) -> Iterator[Record]:
    known = {item.name for item in fields(Record)}
    for path in sorted(folder.glob("*.json")):
        content = _upgraded(read_json(path))
        if not isinstance(content, dict) or content.get("version") != VERSION or set(content) - known:
            raise UserError(
                f"{path} is not a result of this version of lora-drop (format {VERSION}). Remove it, and repeat the run with lora-drop reproduce."
            )
        yield Record(**content)


def _upgraded(content: Any) -> Any:
    """Return a record of format 1, which said once for all stages what they were computed with, in today's format."""
    if not isinstance(content, dict) or content.get("version") != 1:
        return content
    git = content.pop("git", None)
    common = {"commit": git["commit"] + "+altered" * git["dirty"]} if git and git["commit"] else {}
    common |= {key: content.pop(key) for key in ("versions", "device", "threads", "data", "weights") if key in content}
    stages = {name: {**common, "limited": content["limited"], **entry} for name, entry in content["stages"].items()}
    return {**content, "stages": stages, "version": VERSION}
