"""A task, a method, a kind of backbone and a figure of one's own: one file each, no change to the package."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from lora_drop.cli import app as cli
from lora_drop.cli.inspection import count_methods
from lora_drop.config.explained import explained
from lora_drop.config.identity import config_hash, to_dict
from lora_drop.config.loading import from_dict, load_config
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.files import read_json
from lora_drop.models.backbones import load_meta_model, locate
from lora_drop.plugins import load_plugin
from lora_drop.registry import BACKBONES, CRITERIA, FIGURES, METHODS, SELECTING, TASKS, Registry
from lora_drop.runs.store import Run

PLUGIN = """
from __future__ import annotations

from dataclasses import dataclass, replace

from datasets import Dataset
from transformers import AutoConfig

from lora_drop.config.strict import one_of, positive
from lora_drop.methods.base import options_of
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


@dataclass(frozen=True)
class Options:
    factor: int = positive(1)
    '''The rank is so many times method.rank.'''
    start: str = one_of("plain", "plain", "zero")


def build(backbone, config, seed, selection):
    rank = (config.rank or 8) * options_of(config, Options).factor
    return LORA.build(backbone, replace(config, rank=rank), seed, selection)


SMALL = replace(LORA, name="small_lora", title="Small LoRA", build=build, options=Options)


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
    for registry in (TASKS, METHODS, CRITERIA, BACKBONES, FIGURES):
        monkeypatch.setattr(registry, "added", {})


@pytest.fixture
def plugin(tmp_path, registries):
    path = tmp_path / "plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.mark.slow
def test_a_plugins_task_method_and_backbone_run_from_start_to_end(plugin, tmp_path, capsys):
    chosen = ["task=mine", "method.name=small_lora", "backbone=narrow:bert", "train.epochs=1"]
    chosen += ["method.options.factor=2"]
    command = ["run", "-d", str(tmp_path / "run"), "--device", "cpu", "--quiet", "--json", "--compare", "lora"]
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", str(plugin), *command, *(part for each in chosen for part in ("-o", each))])
    assert end.value.code == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["results"][0]["method"] == "Small LoRA" and said["results"][0]["n"] == 10
    assert said["results"][0]["parameters"] == 2 * 2 * 16 * (16 + 16)  # layers, projections, rank, widths
    assert said["results"][1]["parameters"] == 2 * 2 * 8 * (16 + 16)
    as_lora = [*chosen[:1], "method.name=lora", *chosen[2:4]]
    assert Run(tmp_path / "run" / "compare" / "lora").config == load_config([], as_lora)


@pytest.mark.slow
def test_the_page_about_plugins_runs_from_a_file_to_a_table(tmp_path, registries, monkeypatch, capsys):
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    (code,), (grid,) = (re.findall(rf"```{kind}\n(.*?)```", page, flags=re.DOTALL) for kind in ("python", "yaml"))
    assert len(code.splitlines()) <= 40
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(code)
    grid = grid.replace("packaged:minilm-l6", "tiny:bert").replace("[0, 1]", "[0]")
    Path("mine.yaml").write_text(f"{grid}set: {{train.epochs: 1, warmup.epochs: 1}}\n")
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", "mine.py", "reproduce", "mine.yaml", "--quiet", "--json"])
    assert end.value.code == 0 and json.loads(capsys.readouterr().out)["performed"] == 3
    records = {path.name.split("-")[0]: read_json(path) for path in Path("results/mine/tiny-bert").glob("*.json")}
    assert records["stretch"]["made_by"]["criterion stretch"] == records["half"]["made_by"]["task words"] == 1
    assert records["half"]["parameters"]["adapter"] * 2 == 4 * 2 * 8 * (32 + 32)  # layers, projections, rank, widths
    assert [row["score"] for row in records["stretch"]["scores"]] != [
        row["score"] for row in records["paper"]["scores"]
    ]
    table = Path("results/mine/tiny-bert/table.md").read_text()
    assert all(title in table for title in ("LoRA-drop by stretch", "LoRA, half the rank", "Words"))


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
    told = " ".join(capsys.readouterr().err.split())
    assert end.value.code == 0 and (folder / "table.md").is_file() and not (folder / "sizes.png").exists()
    assert "the figure 'sizes' is not known, so it was not drawn. Load its plugin with --plugin." in told
    with pytest.raises(SystemExit) as end:
        cli.main(["--plugin", str(tmp_path / "figure.py"), *command])
    assert end.value.code == 0 and (folder / "sizes.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "sizes.pdf").is_file() and not (folder / "nothing.png").exists()


def test_a_plugins_names_are_listed_and_meant(plugin):
    load_plugin(plugin)
    assert TASKS.names()[-1] == "mine" and METHODS.names()[-1] == "small_lora"
    with pytest.raises(UserError, match="Did you mean 'mine'"):
        TASKS.get("min")
    with pytest.raises(UserError, match="There is already a task 'mine'"):
        load_plugin(plugin)


def test_a_method_reads_options_of_its_own(plugin):
    load_plugin(plugin)
    chosen = load_config([], ["method.name=small_lora", "method.options.factor=2"])
    assert (chosen.method.options.factor, chosen.method.options.start) == (2, "plain")
    assert from_dict(yaml.safe_load(explained(chosen))) == chosen
    assert "    # The rank is so many times method.rank.\n    factor: 2\n    start: plain\n" in explained(chosen)
    plain = load_config([], ["method.name=small_lora"])
    assert plain.method.options.factor == 1 and config_hash(plain) != config_hash(chosen)
    parameters = count_methods(replace(chosen, backbone="narrow:bert", task="mine"))["methods"]
    assert parameters["small_lora"]["adapter"] == 2 * parameters["lora"]["adapter"]


def test_mistakes_in_a_methods_options_are_said_like_all_others(plugin):
    load_plugin(plugin)
    wrong = ["factr=1", "factor=0", "start=zer"]
    with pytest.raises(UserError) as caught:
        load_config([], ["method.name=small_lora", "train.epochs=0", *(f"method.options.{text}" for text in wrong)])
    for text in (
        "4 errors",
        "method.options.factr: no such key. Did you mean 'method.options.factor'? Allowed under 'method.options'",
        "method.options.factor = 0: must be a number > 0",
        "method.options.start = 'zer': must be one of plain, zero. Did you mean 'zero'?",
    ):
        assert text in str(caught.value)
    with pytest.raises(UserError, match=r"method\.options: the method lora has no options of its own"):
        load_config([], ["method.name=lora", "method.options.factor=1"])
    with pytest.raises(UserError, match=r"method\.options = 3: needs keys under it \(factor, start\)"):
        load_config([], ["method.name=small_lora", "method.options=3"])


def test_a_grid_takes_options_for_its_rows_and_another_method(plugin, tmp_path):
    load_plugin(plugin)
    rows = "{plain: {title: A, method.name: lora}, mine: {title: B, method.name: small_lora}}"
    (tmp_path / "grid.yaml").write_text(f"config: toy/toy-nli\ntasks: [toy-nli]\nseeds: [0]\nrows: {rows}\n")
    grid = load_experiment(str(tmp_path / "grid.yaml"))
    (run,) = expand(grid, Choice(rows=["mine"], overrides=["method.options.factor=2"]))
    assert run.overrides == {"method.options.factor": 2} and run.config.method.options.factor == 2
    assert run.deviations == {"method.options.factor": [1, 2]}
    (run,) = expand(grid, Choice(rows=["plain"], overrides=["method.name=small_lora"]))
    options = {"method.options.factor": [None, 1], "method.options.start": [None, "plain"]}
    assert run.deviations == {"method.name": ["lora", "small_lora"], **options}
    assert run.overrides == {"method.name": "small_lora"}


def test_methods_without_options_have_no_such_key():
    assert "options" not in to_dict(load_config([], ["method.name=vera"]))["method"]


def test_a_plugins_kind_of_backbone_is_asked_for_by_its_prefix(plugin):
    load_plugin(plugin)
    assert locate("narrow:bert").identity == "narrow/1"
    model = load_meta_model(locate("narrow:bert"), TASKS.get("mine"))
    assert (model.config.hidden_size, model.config.num_labels) == (16, 2)
    with pytest.raises(UserError, match=r"Did you mean 'narrow:bert'\? Known: narrow:bert$"):
        locate("narrow:brt")
    with pytest.raises(UserError, match="There is already a kind of backbone 'narrow'"):
        BACKBONES.add("narrow", None)


def test_an_installed_package_adds_to_a_registry(tmp_path, monkeypatch):
    package = tmp_path / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[lora_drop.backbones]\nmine = theirs_for_a_test:KIND\n")
    (tmp_path / "theirs_for_a_test.py").write_text("KIND = 'a kind'\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("kind of backbone", "lora_drop.backbones", BACKBONES.own)
    assert registry.names() == ["saved", "packaged", "tiny", "shape", "mine"]
    assert "theirs_for_a_test" not in sys.modules and registry.get("mine") == "a kind"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("x = 1", "defines no Task, Method, Criterion, BackboneKind, Figure"),
        (None, "is not a Python file"),
        ("import no_such_module", "cannot be loaded: No module named 'no_such_module'"),
        ("def f(:", "cannot be loaded: invalid syntax"),
        ("import sys; sys.exit(0)", "calls sys.exit when it is loaded"),
    ],
)
def test_what_is_no_plugin_is_said(content, text, tmp_path, registries):
    path = tmp_path / "plugin.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=text):
        load_plugin(path)


def test_a_method_says_in_both_places_that_it_needs_a_selection():
    assert tuple(name for name in METHODS.own if METHODS.get(name).needs_selection) == SELECTING


@pytest.mark.parametrize("spelled", [["--plugin", "mine.py"], ["--plugin=mine.py"]])
def test_a_plugin_is_named_in_one_word_or_two(spelled, tmp_path, registries, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main([*spelled, "tasks", "--json"])
    assert end.value.code == 0 and "mine" in [row["task"] for row in json.loads(capsys.readouterr().out)]
