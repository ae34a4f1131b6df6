"""An experiment is data: rows × tasks × seeds, and what each row changes. This module turns it into the configurations of its runs.

A file `configs/experiments/NAME.yaml` says:

| key | meaning |
|---|---|
| `title` | what it is |
| `backbone` | the model of the paper |
| `config` | the packaged configuration of a task, with `{task}` in its name (`glue/{task}`) |
| `tasks`, `seeds` | in the order of the paper's columns |
| `set` | keys over every run |
| `task_set` | by task: keys over its runs |
| `rows` | by name: `title`, and the keys that the row changes |
| `until` | `select`: stop before training, where only importances are wanted |
| `columns` | beside the scores: `retained` (mean number of retained layers per projection), `agreement` (how far seeds rank the layers alike) |
| `metrics` | metrics shown of each task; empty: the task's primary one |
| `figures` | names of figures that `report` draws |
| `published` | the entry of `published.yaml` beside which it is put |

Precedence, later wins: configuration of the task, `backbone`, `set`, `task_set`, files of `-c`, the row, `-o` and flags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lora_drop.config import (
    WHERE_KEYS,
    Config,
    config_folders,
    config_hash,
    find_config,
    from_dict,
    override,
    read_yaml,
    to_dict,
)
from lora_drop.errors import UserError, closest
from lora_drop.runs import digest
from lora_drop.strict import build, leaves, merge, put

STAGES = ("sample", "score", "select", "train", "eval")
COLUMNS = ("retained", "agreement")
FIGURES = ("tradeoff", "importance", "distribution", "sharing", "ratios")
"""What an experiment may name; `plots.py` draws them."""
TOY = {"classification": "toy-nli", "generation": "toy-nlg"}
"""What a `tiny:` backbone is given to learn: random weights learn nothing from real text in reasonable time."""


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper."""

    name: str = ""
    """The file's name."""
    title: str = ""
    """What it is."""
    backbone: str = ""
    """The paper's model."""
    config: str = "{task}"
    """Packaged configuration of a task."""
    tasks: tuple[str, ...] = ()
    """In the order of the paper's columns."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run each."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys over every run."""
    task_set: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys over the runs of one task."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each row changes."""
    until: str = ""
    """The last stage performed; empty: all."""
    columns: tuple[str, ...] = ()
    """Columns beside the scores."""
    metrics: tuple[str, ...] = ()
    """Metrics shown."""
    figures: tuple[str, ...] = ()
    """Figures drawn."""
    published: str = ""
    """Entry of published.yaml."""

    @property
    def layout(self) -> dict[str, Any]:
        """What a table or figure of the results needs to know of the experiment; stored with every result."""
        from lora_drop.tasks import get_task

        rows = {row: str(keys.get("title", row)) for row, keys in self.rows.items()}
        tasks = {name: get_task(name).title or name for name in self.tasks}
        parts = ("title", "backbone", "columns", "metrics", "figures", "published", "seeds")
        return {"rows": rows, "tasks": tasks, **json.loads(json.dumps({name: getattr(self, name) for name in parts}))}


@dataclass(frozen=True)
class Planned:
    """One run of a grid."""

    experiment: Experiment
    row: str
    config: Config
    deviations: dict[str, list[Any]]
    """Keys whose value is not the experiment's own: `[there, here]`."""
    overrides: dict[str, Any]
    """What was asked for over the experiment, the same for all runs of one command: runs with other overrides are never mixed."""

    @property
    def name(self) -> str:
        """Identifies the run within its experiment, for people and as a file name."""
        asked = f"-{digest(self.overrides)[:6]}" if self.overrides else ""
        return f"{slug(self.row)}-{self.config.task}-s{self.config.seed}-{config_hash(self.config)}{asked}"


@dataclass(frozen=True)
class Choice:
    """What a command wants of an experiment; empty means all."""

    backbone: str | None = None
    tasks: Sequence[str] = ()
    rows: Sequence[str] = ()
    seeds: Sequence[int] = ()
    files: Sequence[str] = ()
    overrides: Sequence[str] = ()
    """`key=value`, from -o."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted key, over the overrides; None says nothing."""


def experiment_names() -> list[str]:
    """Return the names of the packaged experiments."""
    return sorted(path.stem for folder in config_folders() for path in (folder / "experiments").glob("*.yaml"))


def load_experiment(name: str) -> Experiment:
    """Read an experiment: a packaged name (`table1`) or the path of a file. Raises UserError that lists every mistake in it."""
    path = Path(name)
    if not path.is_file():
        if name not in experiment_names():
            raise UserError(
                f"No experiment {name!r}.{closest(name, experiment_names())} Known: {', '.join(experiment_names())}"
            )
        path = find_config(f"experiments/{name}")
    errors: list[str] = []
    experiment = build(Experiment, {"name": path.stem, **read_yaml(path)}, errors)
    errors += [] if errors else _mistakes(experiment, packaged=path != Path(name))
    if errors:
        raise UserError(f"{path}:\n" + "\n".join(f"  {error}" for error in errors))
    return experiment


def _mistakes(experiment: Experiment, packaged: bool) -> list[str]:
    """Return what is wrong with values that are of the right type."""
    from lora_drop.experiments.published import load_published
    from lora_drop.tasks import task_names

    if not (experiment.rows and experiment.tasks):
        return ["an experiment needs rows and tasks"]
    known: dict[str, tuple[Iterable[str], Iterable[str]]] = {
        "tasks": (experiment.tasks, task_names()),
        "task_set": (experiment.task_set, experiment.tasks),
        "until": ([experiment.until] if experiment.until else [], STAGES),
        "columns": (experiment.columns, COLUMNS),
        "figures": (experiment.figures, FIGURES),
        "published": ([experiment.published] if experiment.published else [], load_published()),
    }
    errors = [
        f"{key} = {name!r}: allowed is one of {', '.join(allowed)}.{closest(name, list(allowed))}"
        for key, (names, allowed) in known.items()
        for name in names
        if name not in allowed
    ]
    if not packaged and experiment.name in experiment_names():
        errors.append(
            f"the name {experiment.name} is that of a packaged experiment, whose results it would join: rename the file"
        )
    return errors


def expand(experiment: Experiment, choice: Choice) -> list[Planned]:
    """Return the runs of an experiment: task by task, seed by seed, row by row, so that rows which share a warm-up follow each other.

    Raises UserError for a task, row or key that does not exist.
    """
    from lora_drop.tasks import get_task

    tasks = [get_task(name).name for name in choice.tasks] or _tasks(experiment, choice)
    rows = _rows(experiment, choice.rows)
    asked = _asked(choice)
    planned = [
        _planned(experiment, row, task, seed, choice)
        for task in tasks
        for seed in (choice.seeds or experiment.seeds)
        for row in rows
    ]
    # what changes no run of the command is no override
    effective = {key: value for key, value in asked.items() if any(key in run.deviations for run in planned)}
    return [replace(run, overrides=effective) for run in planned]


def slug(text: str) -> str:
    """Return a text as a part of a file name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "x"


def _tasks(experiment: Experiment, choice: Choice) -> list[str]:
    from lora_drop.tasks import get_task

    if (choice.backbone or "").startswith("tiny:"):
        kind = get_task(experiment.tasks[0]).kind
        return [TOY["generation" if kind == "generation" else "classification"]]
    return list(experiment.tasks)


def _rows(experiment: Experiment, wanted: Sequence[str]) -> list[str]:
    """Return the rows named, by their own name or that of their method."""
    if not wanted:
        return list(experiment.rows)
    chosen = []
    for name in wanted:
        found = [row for row, keys in experiment.rows.items() if name in (row, keys.get("method.name"))]
        if not found:
            raise UserError(
                f"{experiment.name} has no row {name!r}.{closest(name, list(experiment.rows))} Rows: {', '.join(experiment.rows)}"
            )
        chosen += found
    return [row for row in experiment.rows if row in chosen]


def _asked(choice: Choice) -> dict[str, Any]:
    """Return what a command asks for over the experiment, flat, but for seeds and where it runs."""
    errors: list[str] = []
    nested: dict[str, Any] = {"backbone": choice.backbone} if choice.backbone else {}
    for name in choice.files:
        merge(nested, read_config(name))
    override(nested, choice.overrides, choice.flags, errors)
    for key in ("seed", "task"):
        if any(text.split("=")[0].strip() == key for text in choice.overrides):
            errors.append(f"{key}: an experiment has several; choose with --{key}s")
    values = leaves(to_dict(from_dict(nested, errors)))  # 7e-4 is a text to YAML, and a number here
    return {key: values[key] for key in leaves(nested) if key not in (*WHERE_KEYS, "seed", "task")}


def _planned(experiment: Experiment, row: str, task: str, seed: int, choice: Choice) -> Planned:
    own = {key: value for key, value in experiment.rows[row].items() if key != "title"}

    def resolved(choice: Choice) -> Config:
        errors: list[str] = []
        values = read_config(_task_config(experiment, task))
        merge(values, {"backbone": experiment.backbone} if experiment.backbone else {})
        for key, value in {**experiment.set, **experiment.task_set.get(task, {})}.items():
            put(values, key, value)
        for name in choice.files:
            merge(values, read_config(name))
        for key, value in own.items():
            put(values, key, value)
        override(values, choice.overrides, choice.flags, errors)
        merge(values, {"task": task, "seed": seed, **({"backbone": choice.backbone} if choice.backbone else {})})
        return from_dict(values, errors)

    published = leaves(to_dict(resolved(Choice())))
    config = resolved(choice)
    deviations = {
        key: [published[key], value]
        for key, value in leaves(to_dict(config)).items()
        if key not in WHERE_KEYS and value != published[key]
    }
    return Planned(experiment, row, config, deviations, {})


def _task_config(experiment: Experiment, task: str) -> str:
    by_task = "{task}" in experiment.config
    return f"toy/{task}" if task in TOY.values() and by_task else experiment.config.format(task=task)


def read_config(name: str) -> dict[str, Any]:
    """Return the content of a configuration file, by path or packaged name."""
    return read_yaml(find_config(name))
