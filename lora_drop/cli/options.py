"""The options that commands share, each defined once, with the configuration key that it sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from lora_drop.errors import UserError

if TYPE_CHECKING:
    from lora_drop.config.schema import Config

Command = TypeVar("Command", bound=Callable[..., None])
ConfigFiles = Annotated[
    list[str] | None, typer.Option("--config", "-c", help="YAML file, or packaged name (glue/rte); later ones win.")
]
RunDir = Annotated[Path, typer.Option("--run-dir", "-d", help="Folder of the run: artefacts, checkpoints, manifest.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", "-o", metavar="KEY=VALUE", help="Override one key (see: lora-drop config).")
]
DataDir = Annotated[
    str | None, typer.Option("--data-dir", help="Folder with the official files; else $LORA_DROP_DATA, else the Hub.")
]
Offline = Annotated[bool, typer.Option("--offline", help="Never contact the Hub.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Use N rows only, stratified; the run is marked as limited.")]
Budget = Annotated[
    float | None,
    typer.Option(help="Retain what fits this share of LoRA's parameters (0.5: half) instead of method.threshold."),
]
Bootstrap = Annotated[
    int | None,
    typer.Option(
        min=1, help="Also resample the scored examples N times: intervals, and how often each layer is retained."
    ),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,…",
        help="Score by this criterion (output, output_relative, gradient, fisher, activation, weight, random); further "
        "ones are compared with the first.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Repeat stages that are already done.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one line of JSON, and nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]

Backbone = Annotated[
    str | None,
    typer.Option(
        "--backbone", "-b", help="A Hub id (or id@revision), a folder, packaged:NAME, shape:NAME or tiny:NAME."
    ),
]
DataPath = Annotated[
    str | None,
    typer.Option("--data", metavar="PATH", help="Your data: csv, tsv, json, jsonl, parquet, a folder, org/name (Hub)."),
]
Text = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="COLUMN", help="Column to read; twice for a pair; or a template '{title}: {body}'."),
]
Label = Annotated[list[str] | None, typer.Option("--label", metavar="COLUMN", help="Column to predict.")]
Kind = Annotated[
    str | None,
    typer.Option(help="classification, regression, multilabel or generation, if it is not detected correctly."),
]
Validation = Annotated[
    str | None, typer.Option(metavar="WHICH", help="Rows to evaluate: a share (0.1), a file, or a split.")
]
Metric = Annotated[list[str] | None, typer.Option(metavar="NAME", help="Metric; the first chooses the best epoch.")]
Template = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Text to read, or prompt, with columns in braces: '{title}: {body}'.")
]
DatasetInfo = Annotated[
    str | None, typer.Option("--dataset-info", metavar="FILE", help="LLaMA-Factory's dataset_info.json, with --name.")
]
Name = Annotated[str | None, typer.Option("--name", help="Data set in --dataset-info.")]


class Shared(NamedTuple):
    """An option of several commands."""

    type: Any
    default: Any = None
    key: str = ""
    """The configuration key that it sets; empty if it sets none."""


SHARED = {
    "config": Shared(ConfigFiles),
    "overrides": Shared(Overrides),
    "backbone": Shared(Backbone, key="backbone"),
    "data": Shared(DataPath, key="data.path"),
    "text": Shared(Text, key="data.text"),
    "label": Shared(Label, key="data.label"),
    "kind": Shared(Kind, key="data.kind"),
    "validation": Shared(Validation, key="data.validation"),
    "metric": Shared(Metric, key="data.metric"),
    "template": Shared(Template, key="data.template"),
    "dataset_info": Shared(DatasetInfo, key="data.dataset_info"),
    "name": Shared(Name, key="data.name"),
    "budget": Shared(Budget, key="method.budget"),
    "bootstrap": Shared(Bootstrap, key="score.bootstrap"),
    "criterion": Shared(Criterion, key="score.criterion"),
    "data_dir": Shared(DataDir, key="data_dir"),
    "limit_train": Shared(Limit, key="limit.train"),
    "limit_eval": Shared(Limit, key="limit.eval"),
    "seed": Shared(Seed, key="seed"),
    "device": Shared(Device, key="device"),
    "offline": Shared(Offline, False, "offline"),
    "force": Shared(Force, False),
    "quiet": Shared(Quiet, False),
    "as_json": Shared(Json, False),
    "debug": Shared(Debug, False),
}


def options(*names: str) -> Callable[[Command], Command]:
    """Give a command these shared options after its own; it receives their values by name in `**given`."""

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        parameters = [each for each in own.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        for name in names:
            annotation, default, _ = SHARED[name]
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def flags(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that shared options give to configuration keys; None leaves a key as it is.

    Raises UserError for an empty value: an empty path would mean the current folder.
    """
    for name, value in given.items():
        if SHARED[name].key and value in ("", [""]):
            raise UserError(
                f"--{name.replace('_', '-')} is empty. A shell variable may be unset. Give a value, or leave the "
                "option out."
            )
    keys = {SHARED[name].key: value for name, value in given.items() if SHARED[name].key}
    if keys.get("data.label"):  # a list, so that typer does not drop all but the last
        label, *more = keys["data.label"]
        if more:
            raise UserError(
                f"--label names {len(more) + 1} columns, but one is predicted. If a row has several labels, put their "
                "names into one column, such as angry;rude."
            )
        keys["data.label"] = label
    if keys.get("score.criterion"):  # the first of the list selects; the others are compared with it
        first, *others = [name.strip() for name in keys["score.criterion"].split(",")]
        keys |= {"score.criterion": first, "score.compare": others or None}
    return {key: None if value is False else value for key, value in keys.items()}


def configuration(given: Mapping[str, Any], run_dir: Path | None = None) -> Config:
    """Return the configuration from files, or else the run directory, then -o, then the flags; later ones win."""
    from lora_drop.config.identity import OWN
    from lora_drop.config.loading import load_config

    own = given.get("data") or given.get("dataset_info")
    found = flags(given)
    stored = None
    if run_dir is not None and not given["config"]:
        from lora_drop.runs.store import stored_config

        stored = stored_config(run_dir)
    files = given["config"] or ([OWN] if own and stored is None else [])
    if own:  # flags for own data decide the task, whatever a configuration file names
        found["task"] = OWN
    return load_config(files, given["overrides"] or [], found, stored)


def is_set(key: str, given: Mapping[str, Any]) -> bool:
    """Return True if a command sets a top-level key by a flag, by -o, or in a file."""
    from lora_drop.config.files import read_config
    from lora_drop.config.strict import key_of

    by_option = given.get(key) or key in map(key_of, given["overrides"] or [])
    return bool(by_option) or any(key in read_config(name) for name in given["config"] or [])


def own_run_dir(given: Mapping[str, Any]) -> Path:
    """Return the default folder of a run on the user's own data: `runs/reviews` for `reviews.csv`.

    Raises UserError if the name of the data cannot be the name of a folder in `runs`.
    """
    name = given["name"] or _place_of_data(given["data"]).expanduser().absolute().stem
    if name in ("", ".", "..") or Path(name).name != name:
        raise UserError(f"{name!r} cannot name a folder in runs. Name the folder of the run with --run-dir DIR.")
    return Path("runs") / name


def _place_of_data(data: str) -> Path:
    """Return the path of the data, or its name on the Hub without configuration and revision."""
    from lora_drop.config.identity import HUB

    on_the_hub = None if Path(data).expanduser().exists() else HUB.fullmatch(data)
    return Path(on_the_hub["name"] if on_the_hub else data)
