"""A task, a method and a kind of backbone of one's own: one file each, no change to the package."""

import json

import pytest

from lora_drop.cli import app as cli
from lora_drop.errors import UserError
from lora_drop.models.backbones import load_meta_model, locate
from lora_drop.plugins import load_plugin
from lora_drop.registry import BACKBONES, METHODS, SELECTING, TASKS

PLUGIN = """
from dataclasses import replace

from datasets import Dataset
from transformers import AutoConfig

from lora_drop.methods.lora import METHOD as LORA
from lora_drop.models.base import Backbone
from lora_drop.models.untrained import TINY_KIND, tiny_tokenizer
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


def config(backbone):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return AutoConfig.for_model("bert", vocab_size=len(tiny_tokenizer()), pad_token_id=0, **sizes)


NARROW = replace(
    TINY_KIND,
    name="narrow",
    models={"bert": "two layers"},
    locate=lambda name, request: Backbone(name, "", "narrow/1"),
    config=config,
)
"""


@pytest.fixture
def registries(monkeypatch):
    """What a plugin adds is gone after the test."""
    for registry in (TASKS, METHODS, BACKBONES):
        monkeypatch.setattr(registry, "added", {})


@pytest.fixture
def plugin(tmp_path, registries):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.slow
def test_a_plugins_task_method_and_backbone_run_from_start_to_end(plugin, tmp_path, capsys):
    chosen = ["task=mine", "method.name=small_lora", "backbone=narrow:bert", "train.epochs=1"]
    command = ["run", "-d", str(tmp_path / "run"), "--device", "cpu", "--quiet", "--json"]
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", str(plugin), *command, *(part for each in chosen for part in ("-o", each))])
    assert end.value.code == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"][0]["method"] == "Small LoRA" and said["results"][0]["n"] == 10
    assert said["results"][0]["parameters"] == 2 * 2 * 8 * (16 + 16)  # layers, projections, rank, widths


def test_a_plugins_names_are_listed_and_meant(plugin):
    load_plugin(plugin)
    assert TASKS.names()[-1] == "mine" and METHODS.names()[-1] == "small_lora"
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        TASKS.get("min")
    with pytest.raises(UserError, match="There is a task 'mine' already"):
        load_plugin(plugin)


def test_a_plugins_kind_of_backbone_is_asked_for_by_its_prefix(plugin):
    load_plugin(plugin)
    assert locate("narrow:bert").identity == "narrow/1"
    model = load_meta_model(locate("narrow:bert"), TASKS.get("mine"))
    assert (model.config.hidden_size, model.config.num_labels) == (16, 2)
    with pytest.raises(UserError, match=r"Did you mean 'narrow:bert'\? Known: narrow:bert$"):
        locate("narrow:brt")
    with pytest.raises(UserError, match="There is a kind of backbone 'narrow' already"):
        BACKBONES.add("narrow", None)


@pytest.mark.parametrize(("content", "text"), [("x = 1", "defines no Task"), (None, "is not a Python file")])
def test_what_is_no_plugin_is_said(content, text, tmp_path, registries):
    path = tmp_path / "plugin.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=text):
        load_plugin(path)


def test_a_method_says_in_both_places_that_it_needs_a_selection():
    assert tuple(name for name in METHODS.own if METHODS.get(name).needs_selection) == SELECTING
