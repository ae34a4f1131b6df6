"""A task, a method and a figure of one's own: one file each, no change to the package."""

import json
import shutil
from pathlib import Path

import pytest

from lora_drop.cli import app as cli
from lora_drop.errors import UserError
from lora_drop.plugins import load_plugin
from lora_drop.registry import FIGURES, METHODS, SELECTING, TASKS

PLUGIN = """
from dataclasses import replace

from datasets import Dataset

from lora_drop.methods.lora import METHOD as LORA
from lora_drop.tasks.base import Task

WORDS = ("good", "bad")


def load(source, split):
    rows = range(40 if split == "train" else 10)
    texts = [f"a {WORDS[row % 2]} one, number {row}" for row in rows]
    return Dataset.from_dict({"id": [str(row) for row in rows], "text": texts, "label": [row % 2 for row in rows]})


MINE = Task(
    name="mine",
    version=1,
    kind="classification",
    description="two words",
    load=load,
    strata=lambda rows: [str(label) for label in rows["label"]],
    metrics=("accuracy",),
    primary="accuracy",
    labels=WORDS,
)
SMALL = replace(LORA, name="small_lora", title="Small LoRA")
"""


@pytest.fixture
def registries(monkeypatch):
    """What a plugin adds is gone after the test."""
    for registry in (TASKS, METHODS, FIGURES):
        monkeypatch.setattr(registry, "added", {})


@pytest.fixture
def plugin(tmp_path, registries):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.slow
def test_a_plugins_task_and_method_run_from_start_to_end(plugin, tmp_path, capsys):
    chosen = ["task=mine", "method.name=small_lora", "backbone=tiny:bert", "train.epochs=1"]
    command = ["run", "-d", str(tmp_path / "run"), "--device", "cpu", "--quiet", "--json"]
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", str(plugin), *command, *(part for each in chosen for part in ("-o", each))])
    assert end.value.code == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"][0]["method"] == "Small LoRA" and said["results"][0]["n"] == 10


FIGURE = """
from lora_drop.experiments.plots import Figure, panels


def draw(table, records):
    figure, axes = panels(1, 1, width=4, height=3)
    axes[0][0].plot([record.seed for record in records], [record.parameters["adapter"] for record in records], "o")
    return figure


SIZES = Figure("sizes", reads=lambda record: record.parameters, draw=draw)
NOTHING = Figure("nothing", reads=lambda record: record.norms, draw=draw)
"""


def test_a_plugins_figures_are_drawn_where_there_is_something_to_draw(tmp_path, registries, capsys):
    (tmp_path / "figure.py").write_text(FIGURE)
    folder = tmp_path / "results" / "readme" / "packaged-minilm-l6"
    shutil.copytree(Path(__file__).parent.parent / "results" / "readme" / "packaged-minilm-l6", folder)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        content["layout"]["figures"] = ["sizes", "nothing"]
        path.write_text(json.dumps(content))
    command = ["report", "--results", str(tmp_path / "results"), "-q"]
    with pytest.raises(SystemExit) as end:
        cli.main(command)
    assert end.value.code == 2 and "Unknown figure 'sizes'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", str(tmp_path / "figure.py"), *command])
    assert end.value.code == 0 and (folder / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "sizes.pdf").is_file() and not (folder / "nothing.png").exists()


def test_a_plugins_names_are_listed_and_meant(plugin):
    load_plugin(plugin)
    assert TASKS.names()[-1] == "mine" and METHODS.names()[-1] == "small_lora"
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        TASKS.get("min")
    with pytest.raises(UserError, match="There is a task 'mine' already"):
        load_plugin(plugin)


@pytest.mark.parametrize(
    ("content", "text"), [("x = 1", "defines no Task, Method, Figure"), (None, "is not a Python file")]
)
def test_what_is_no_plugin_is_said(content, text, tmp_path, registries):
    path = tmp_path / "plugin.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=text):
        load_plugin(path)


def test_a_method_says_in_both_places_that_it_needs_a_selection():
    assert tuple(name for name in METHODS.own if METHODS.get(name).needs_selection) == SELECTING
