"""Expand an experiment, which is data, into the configurations of its runs: rows × tasks × seeds.

A file `configs/experiments/NAME.yaml` gives the fields of `Experiment`. A row is a `title` and the keys that it changes.
Precedence, later wins: the task's configuration, `backbone`, `set`, `task_set`, files of `-c`, the row, `-o` and flags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from lora_drop.config.files import config_folders, find_config, read_config, read_yaml
from lora_drop.config.identity import OWN, WHERE_KEYS, config_hash, to_dict
from lora_drop.config.loading import from_dict, layer, override
from lora_drop.config.schema import Config
from lora_drop.config.strict import build, key_of, leaves, merge, put
from lora_drop.errors import UserError, closest
from lora_drop.experiments.record_checks import mistakes_of_claim
from lora_drop.files import digest
from lora_drop.registry import FIGURES, TASKS, needs_selection
from lora_drop.runs.stages import BY_NAME

COLUMNS = ("retained", "agreement")
TOY = {"classification": "toy-nli", "generation": "toy-nlg"}
"""Generated tasks for a `tiny:` backbone: random weights learn nothing from real text in reasonable time."""


@dataclass(frozen=True)
class Experiment:
    """One table or figure of the paper."""

    name: str = ""
    """Its name, by default that of its file."""
    title: str = ""
    """Heading of its tables."""
    backbone: str = ""
    """The paper's model."""
    config: str = "{task}"
    """The packaged configuration of a task, with `{task}` in its name (`glue/{task}`)."""
    tasks: tuple[str, ...] = ()
    """Tasks in the order of the paper's columns."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds, each with one run of every row and task."""
    set: dict[str, Any] = field(default_factory=dict)
    """Keys set in every run."""
    task_set: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Keys set in the runs of a task, by task."""
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rows by name, each with its `title` and the keys that it changes."""
    until: str = ""
    """The last stage performed (`select` if only importances are wanted); empty: all stages."""
    columns: tuple[str, ...] = ()
    """Shown beside the scores: `retained` (layers per projection), `agreement` (of the seeds' rankings of layers)."""
    metrics: tuple[str, ...] = ()
    """Metrics shown for each task; empty: its primary one."""
    figures: tuple[str, ...] = ()
    """Figures that `report` draws, by their names in `registry.FIGURES`."""
    claims: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Claims by name, each with a sentence `says`, a `row`, and the row that it is compared `against`. With a `margin`,
    in points, the row is claimed to be worse by less than that; without, to be better. See `claims.py`."""
    published: str = ""
    """The entry of `published.yaml` that the results are compared with."""

    @property
    def size(self) -> int:
        """The number of runs."""
        return len(self.tasks) * len(self.seeds) * len(self.rows)

    @property
    def layout(self) -> dict[str, Any]:
        """The part of the experiment that tables and figures need; stored with every result."""
        rows = {row: str(keys.get("title", row)) for row, keys in self.rows.items()}
        tasks = {name: title_of(name) for name in self.tasks}
        parts = ("title", "backbone", "columns", "metrics", "figures", "claims", "published", "seeds")
        return {"rows": rows, "tasks": tasks, **json.loads(json.dumps({name: getattr(self, name) for name in parts}))}


@dataclass(frozen=True)
class Planned:
    """One run of a grid."""

    experiment: Experiment
    row: str
    config: Config
    deviations: dict[str, list[Any]]
    """Keys whose value differs from the experiment's own: `[there, here]`."""
    overrides: dict[str, Any]
    """Settings that a command changes in the experiment; runs with different overrides are never mixed."""

    @property
    def name(self) -> str:
        """The run's unique name within its experiment, for people and for files."""
        asked = f"-{digest(self.overrides)[:6]}" if self.overrides else ""
        return f"{slug(self.row)}-{slug(self.config.task)}-s{self.config.seed}-{config_hash(self.config)}{asked}"

    @property
    def last_stage(self) -> str:
        """The name of the last stage that it performs."""
        scored_after = self.config.score.trained and needs_selection(self.config.method.name)
        return self.experiment.until or ("trained" if scored_after else "eval")


@dataclass(frozen=True)
class Choice:
    """The part of an experiment that a command asks for; empty means all."""

    backbone: str | None = None
    tasks: Sequence[str] = ()
    rows: Sequence[str] = ()
    seeds: Sequence[int] = ()
    files: Sequence[str] = ()
    overrides: Sequence[str] = ()
    """`key=value`, from -o."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """Values by dotted key, applied after the overrides; None leaves a key as it is."""


def experiment_names() -> list[str]:
    """Return the names of the packaged experiments."""
    return sorted(path.stem for folder in config_folders() for path in (folder / "experiments").glob("*.yaml"))


def load_experiment(name: str) -> Experiment:
    """Read an experiment: a packaged name (`table1`) or the path of a file.

    Raises a UserError that lists every mistake in it.
    """
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
    """Return the mistakes in values that are of the right type."""
    from lora_drop.experiments.published import load_published

    if not (experiment.rows and experiment.tasks):
        return ["an experiment needs rows and tasks"]
    if slug(experiment.name) != experiment.name:
        return [f"name = {experiment.name!r}: it names a folder, so only letters, digits, '.', '_' and '-' are allowed"]
    known: dict[str, tuple[Iterable[str], Iterable[str]]] = {
        "tasks": (experiment.tasks, [*TASKS.names(), OWN]),
        "task_set": (experiment.task_set, experiment.tasks),
        "until": ([experiment.until] if experiment.until else [], BY_NAME),
        "columns": (experiment.columns, COLUMNS),
        "figures": (experiment.figures, FIGURES.names()),
        "published": ([experiment.published] if experiment.published else [], load_published()),
    }
    errors = [
        f"{key} = {name!r}: must be one of {', '.join(allowed)}.{closest(name, list(allowed))}"
        for key, (names, allowed) in known.items()
        for name in names
        if name not in allowed
    ]
    titles = [str(row.get("title", name)) for name, row in experiment.rows.items()]
    for key, values in (("tasks", experiment.tasks), ("seeds", experiment.seeds), ("the titles of rows", titles)):
        twice = [value for number, value in enumerate(values) if value in values[:number]]
        if twice:
            errors.append(f"{key}: {twice[0]!r} is there twice")
    given = {**experiment.set, **experiment.task_set.get(OWN, {})}
    if OWN in experiment.tasks and not given.keys() & {"data.path", "data.dataset_info"}:
        errors.append("tasks = 'own' means your own data: name the file with set: {data.path: FILE}")
    for name, claim in experiment.claims.items():
        errors += mistakes_of_claim(f"claims.{name}", claim, list(experiment.rows))
    if not packaged and experiment.name in experiment_names():
        errors.append(
            f"{experiment.name} is the name of a packaged experiment, and its results would be mixed with these: "
            "rename the file"
        )
    return errors


def expand(experiment: Experiment, choice: Choice) -> list[Planned]:
    """Return the runs of an experiment by task, seed and row, so that rows that share a warm-up follow each other.

    Raises UserError for a task, row or key that does not exist.
    """
    tasks = [name if name == OWN else TASKS.get(name).name for name in choice.tasks] or _tasks(experiment, choice)
    rows = _rows(experiment, choice.rows)
    _check_metrics(experiment)
    planned = [
        _planned(experiment, row, task, seed, choice)
        for task in dict.fromkeys(tasks)
        for seed in dict.fromkeys(choice.seeds or experiment.seeds)
        for row in rows
    ]
    # a key that changes no run is not an override; one that does has the same value in all of the command's runs
    effective = {key: run.deviations[key][1] for key in _asked(choice) for run in planned if key in run.deviations}
    return [replace(run, overrides=effective) for run in planned]


def _check_metrics(experiment: Experiment) -> None:
    """Raise UserError for a metric that no task of the experiment has.

    This imports the tasks, which listing experiments must not do.
    """
    known: list[str] = []
    for name in experiment.tasks if experiment.metrics else ():
        if name == OWN:
            from lora_drop.tasks.own.task import ALLOWED

            known += chain.from_iterable(ALLOWED.values())
        else:
            known += TASKS.get(name).metrics
    for metric in experiment.metrics:
        if metric not in known:
            allowed = list(dict.fromkeys(known))
            raise UserError(
                f"{experiment.name}: metrics = {metric!r}: must be one of "
                f"{', '.join(allowed)}.{closest(metric, allowed)}"
            )


def title_of(task: str) -> str:
    """Return the name of a task in tables."""
    return "own data" if task == OWN else TASKS.get(task).title or task


def slug(text: str) -> str:
    """Return a text in a form that is safe as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "x"


def _tasks(experiment: Experiment, choice: Choice) -> list[str]:
    if (choice.backbone or "").startswith("tiny:") and OWN not in experiment.tasks:
        kind = TASKS.get(experiment.tasks[0]).kind
        return [TOY["generation" if kind == "generation" else "classification"]]
    return list(experiment.tasks)


def _rows(experiment: Experiment, wanted: Sequence[str]) -> list[str]:
    """Return the wanted rows, or all if none is named, in the experiment's order. Raises UserError for unknown ones."""
    if not wanted:
        return list(experiment.rows)
    for name in wanted:
        if name not in experiment.rows:
            raise UserError(
                f"{experiment.name} has no row {name!r}.{closest(name, list(experiment.rows))} "
                f"Rows: {', '.join(experiment.rows)}"
            )
    return [row for row in experiment.rows if row in wanted]


def _asked(choice: Choice) -> list[str]:
    """Return the keys that a command changes in the experiment, except seed, task and where it runs.

    Their values are checked in the runs, not here: they may fit an experiment and not the defaults.
    """
    nested: dict[str, Any] = {"backbone": choice.backbone} if choice.backbone else {}
    for name in choice.files:
        merge(nested, read_config(name))
    override(nested, choice.overrides, choice.flags, [])
    keys = [key for key in leaves(nested) if key not in (*WHERE_KEYS, "seed", "task")]
    return [*keys, *["method.budget"] * ("method.threshold" in keys)]  # a threshold removes a row's budget


def _planned(experiment: Experiment, row: str, task: str, seed: int, choice: Choice) -> Planned:
    own = {key: value for key, value in experiment.rows[row].items() if key != "title"}

    def resolved(choice: Choice) -> Config:
        several = [key for key in ("seed", "task") if key in map(key_of, choice.overrides)]
        errors = [f"{key}: an experiment has several; choose with --{key}s" for key in several]
        values = read_config(_task_config(experiment, task))
        merge(values, {"backbone": experiment.backbone} if experiment.backbone else {})
        layer(values, _nested({**experiment.set, **experiment.task_set.get(task, {})}))
        for name in choice.files:
            layer(values, read_config(name))
        layer(values, _nested(own))
        override(values, choice.overrides, choice.flags, errors)
        merge(values, {"task": task, "seed": seed, **({"backbone": choice.backbone} if choice.backbone else {})})
        return from_dict(values, errors)

    published, config = resolved(Choice()), resolved(choice)
    there, here = leaves(to_dict(published)), leaves(to_dict(config))  # a method's options may be in only one
    deviations = {
        key: [there.get(key), here.get(key)]
        for key in {**there, **here}
        if key not in WHERE_KEYS and there.get(key) != here.get(key)
    }
    return Planned(experiment, row, config, deviations, {})


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by dotted key as nested dictionaries."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        put(found, key, value)
    return found


def _task_config(experiment: Experiment, task: str) -> str:
    by_task = "{task}" in experiment.config
    return f"toy/{task}" if task in TOY.values() and by_task else experiment.config.replace("{task}", task)
