"""Criteria in runs: on the command line, as inputs of stages, in grids."""

import json
import shutil
from pathlib import Path

import pytest
from edits import accept_outputs, edit_config, edit_stages
from models import trained_lora
from test_pipeline import SMALL, Told, run

from lora_drop.cli import app as cli
from lora_drop.cli.perform import perform_stages
from lora_drop.config.identity import config_hash, to_dict
from lora_drop.config.loading import from_dict, load_config
from lora_drop.errors import UserError
from lora_drop.files import file_digest, read_json, write_json
from lora_drop.registry import CRITERIA
from lora_drop.runs.job import Job
from lora_drop.runs.store import Run

pytestmark = pytest.mark.slow
SMALLEST = [*SMALL, "limit.train=40", "sample.ratio=0.5", "warmup.epochs=1"]
OPTIONS = [part for each in SMALLEST for part in ("-o", each)]


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A run that was scored by the paper's criterion and selected."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    at(folder, stages=["sample", "score", "select"])
    return folder


@pytest.fixture
def copy(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "copy"))


def at(folder, *overrides, stages=("score",)) -> Told:
    told = Told()
    perform_stages(folder, load_config([], [*SMALLEST, *overrides]), list(stages), False, told, [])
    return told


def command(*arguments) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 0


def scores(folder) -> list[float]:
    return [row["score"] for row in read_json(folder / "scores.json")["modules"]]


def test_several_criteria_are_scored_on_one_warm_up_and_compared(copy, capsys):
    warmup, before = file_digest(copy / "warmup"), scores(copy)
    names = list(CRITERIA.own)
    command("score", "-d", copy, "--criterion", ",".join(names), "--json")
    last = json.loads(capsys.readouterr().out)
    content = read_json(copy / "criteria.json")
    assert list(content["criteria"]) == names and content["chosen"] == "output"
    assert file_digest(copy / "warmup") == warmup and scores(copy) == before
    assert [row["score"] for row in content["criteria"]["output"]["modules"]] == before
    assert len(last["agreement"]) == 2 * 21 and last["agreement"] == content["agreement"]
    assert (copy / "criteria.png").read_bytes()[:4] == b"\x89PNG"
    assert read_json(copy / "run.json")["stages"]["criteria"]["settings"]
    assert at(copy, f"score.compare=[{','.join(names[1:])}]").skipped == ["score", "criteria"]


def test_another_criterion_scores_the_warm_up_that_is_there_again(copy):
    warmup = file_digest(copy / "warmup")
    with pytest.raises(UserError, match=r"scores\.json was made with another configuration"):
        at(copy, "score.criterion=gradient", stages=["select"])
    assert at(copy, "score.criterion=gradient").done == ["score"]
    assert read_json(copy / "scores.json")["criterion"] == "gradient"
    entry = read_json(copy / "run.json")["stages"]["score"]
    assert "from the existing warm-up" in entry["note"] and entry["warmup_steps"] == 3
    assert file_digest(copy / "warmup") == warmup
    assert at(copy, "score.criterion=gradient", stages=["select"]).done == ["select"]
    with pytest.raises(UserError, match=r"scores\.json was made with another configuration"):
        at(copy, stages=["select"])
    assert at(copy).done == ["score"]  # the paper's criterion again, on the same warm-up
    assert file_digest(copy / "warmup") == warmup


def test_scores_of_a_criterion_are_the_same_with_a_warm_up_of_their_own(copy, tmp_path):
    at(copy, "score.criterion=gradient")
    at(tmp_path / "own", "score.criterion=gradient", stages=["sample", "score"])
    assert (copy / "scores.json").read_bytes() == (tmp_path / "own" / "scores.json").read_bytes()


def test_a_new_version_of_a_criterion_makes_its_scores_anew(copy, monkeypatch):
    from dataclasses import replace

    at(copy, "score.criterion=weight")
    assert at(copy, "score.criterion=weight").skipped == ["score"]
    for name, overrides in (("weight", ["score.criterion=weight"]), ("output", [])):
        monkeypatch.setitem(CRITERIA.added, name, replace(CRITERIA.get(name), version=2))
        assert at(copy, *overrides).done == ["score"]
        assert at(copy, *overrides).skipped == ["score"]


def test_a_run_of_an_earlier_version_counts_as_output(copy):
    edit_stages(copy, lambda name, entry: entry.pop("warmup_made_from", None))
    content = read_json(copy / "scores.json")
    del content["criterion"]
    write_json(copy / "scores.json", content)
    accept_outputs(copy, "score", "scores.json")
    unknown = ("  criterion:", "  compare:", "  adapter:")
    edit_config(copy, lambda text: "".join(line for line in text.splitlines(True) if not line.startswith(unknown)))
    assert at(copy).skipped == ["score"]
    assert at(copy, "score.criterion=random").done == ["score"]
    assert "from the existing warm-up" in read_json(copy / "run.json")["stages"]["score"]["note"]


def test_the_paper_s_criterion_leaves_the_identity_of_a_configuration_as_it_was():
    assert config_hash(load_config([], [])) == "38fe3611c8ca"
    other = load_config([], ["score.criterion=gradient"])
    assert config_hash(other) != "38fe3611c8ca" and from_dict(to_dict(other)) == other


def test_a_criterion_that_is_a_mean_over_examples_is_bootstrapped(copy):
    assert at(copy, "score.criterion=fisher", "score.bootstrap=20").done == ["score", "norms", "stability"]
    stability, norms = read_json(copy / "stability.json"), read_json(copy / "norms.json")
    for row, kept, one in zip(
        read_json(copy / "scores.json")["modules"], norms["modules"], stability["modules"], strict=True
    ):
        assert sum(kept["norms"]) / norms["examples"] == pytest.approx(row["score"], rel=1e-4)
        assert one["low"] <= one["importance"] <= one["high"]
    with pytest.raises(UserError, match="choose one of output, output_relative, fisher"):
        at(copy, "score.criterion=gradient", "score.bootstrap=20")


def test_a_whole_run_by_another_criterion(tmp_path):
    told, _ = run(tmp_path, "score.criterion=activation", "train.epochs=1", "score.trained=true", "limit.train=40")
    assert told.done == ["sample", "score", "select", "picture", "train", "eval", "trained"]
    assert read_json(tmp_path / "scores_trained.json")["criterion"] == "activation"


def test_unknown_criteria_are_named():
    with pytest.raises(UserError, match=r"score.criterion = 'fischer': .*Did you mean 'fisher'"):
        load_config([], ["score.criterion=fischer"])
    with pytest.raises(UserError, match=r"score.compare = 'nothing'"):
        load_config([], ["score.compare=[output,nothing]"])


def test_a_grid_of_criteria_shares_one_warm_up(tmp_path):
    path = tmp_path / "two.yaml"
    path.write_text(
        "tasks: [toy-nli]\nseeds: [0]\nconfig: toy/toy-nli\nfigures: [criteria]\nrows:\n"
        "  a: {title: A, method.budget: 0.6}\n  b: {title: B, score.criterion: gradient, method.budget: 0.6}\n"
    )
    small = [
        part
        for each in (*SMALLEST, "train.epochs=1", "sample.ratio=0.5")
        for part in ("-o", each)
        if each != "device=cpu"
    ]
    command(
        "reproduce",
        path,
        *small,
        "--device",
        "cpu",
        "--results",
        tmp_path / "results",
        "--runs",
        tmp_path / "runs",
        "-q",
    )
    folders = sorted((tmp_path / "runs").glob("*/toy-nli-*"))
    notes = {Run(folder).config.score.criterion: Run(folder).entry("score")["note"] for folder in folders}
    assert "from the existing warm-up" in notes["gradient"] and "from the existing warm-up" not in notes["output"]
    assert len({file_digest(folder / "warmup") for folder in folders}) == 1
    (figure,) = (tmp_path / "results").glob("two/*/criteria.png")
    assert figure.read_bytes()[:4] == b"\x89PNG"


PLUGIN = """
from lora_drop.pruning.criteria.base import Criterion, Measured


def measure(given):
    return Measured({name: float(lora.up.norm()) for name, lora in given.layers.items()})


MINE = Criterion("size_of_b", "‖B‖", measure, reads=False)
"""


def test_a_plugin_adds_a_criterion(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(CRITERIA, "added", {})
    (tmp_path / "mine.py").write_text(PLUGIN)
    command("--plugin", tmp_path / "mine.py", "score", "-d", copy, "--criterion", "size_of_b,weight", "-q")
    assert read_json(copy / "scores.json")["criterion"] == "size_of_b"
    assert list(read_json(copy / "criteria.json")["criteria"]) == ["size_of_b", "weight"]


def test_an_adapter_trained_elsewhere_is_profiled(tmp_path, capsys):
    from models import backbone, randomise_b
    from peft import LoraConfig, get_peft_model

    base, _ = backbone("tiny:bert")
    model = get_peft_model(base, LoraConfig(target_modules="all-linear", r=4, task_type="SEQ_CLS"))
    randomise_b(model, 0)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**read_json(config), "base_model_name_or_path": None}))
    options = [
        "-d",
        tmp_path / "run",
        "--adapter",
        tmp_path / "adapter",
        "--task",
        "toy-nli",
        "--limit-train",
        40,
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as end:
        cli.main([str(each) for each in ["score", *options]])
    assert end.value.code == 2 and "Name it: --backbone NAME" in capsys.readouterr().err
    config.write_text(json.dumps({**read_json(config), "base_model_name_or_path": "o/bert", "revision": "a" * 40}))
    with pytest.raises(SystemExit) as end:
        cli.main([str(each) for each in ["score", *options, "--offline"]])
    assert end.value.code == 2 and f"o/bert@{'a' * 40}" in capsys.readouterr().err
    command("score", *options, "-o", "backbone=tiny:bert", "--criterion", "output,weight")
    said, told = capsys.readouterr()
    assert "Kendall" in said and "output, weight" in said
    assert "not scored: bert.pooler.dense." in " ".join(told.split())
    content = read_json(tmp_path / "run" / "scores.json")
    assert content["left_out"] == ["bert.pooler.dense"]
    assert content["rank"] == 4 and "layer   3" in said
    assert {row["projection"] for row in content["modules"]} >= {"query", "key", "value", "intermediate.dense"}
    (tmp_path / "adapter" / "README.md").write_text("A model card is no part of the adapter.")
    command("score", *options, "-o", "backbone=tiny:bert", "--criterion", "output,weight")
    told = " ".join(capsys.readouterr().err.split())
    assert "score skipped" in told, told
    command("select", "-d", tmp_path / "run", "--budget", "0.5", "-q")
    assert read_json(tmp_path / "run" / "selection.json")["trainable_parameters"] > 0


def test_what_is_no_adapter_for_the_task_is_said(tmp_path):
    model, _ = trained_lora("tiny:bert")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(UserError, match=r"warmup\.adapter=.* is neither a PEFT adapter"):
        at(tmp_path / "run", f"warmup.adapter={tmp_path / 'nowhere'}", stages=["sample"])
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "task_type": "CAUSAL_LM"}))
    with pytest.raises(UserError, match="was trained as CAUSAL_LM, but this task needs SEQ_CLS"):
        at(tmp_path / "run", f"warmup.adapter={tmp_path / 'adapter'}", stages=["sample"])
    assert not Job(Run(tmp_path / "run", load_config([], SMALLEST))).others()


def test_selecting_by_another_criterion_imports_no_torch(copy, tmp_path):
    from test_cli import HEAVY, imported_by

    model, _ = trained_lora("tiny:bert")
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    for overrides in (
        ["score.criterion=gradient"],
        [f"warmup.adapter={tmp_path / 'adapter'}", "score.criterion=weight"],
    ):
        at(copy, *overrides)
        options = [part for each in (*SMALLEST, *overrides) for part in ("-o", each)]
        assert imported_by("select", "-d", str(copy), "-q", *options, among=HEAVY) == (0, set())


def test_criteria_agree_in_half_precision(copy, tmp_path):
    """Scored in bf16, the same warm-up gives nearly the same numbers."""
    adapter, names = f"warmup.adapter={copy / 'warmup'}", "[output,output_relative,gradient,fisher,activation,weight]"
    found = []
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        overrides = [adapter, "score.criterion=weight", f"score.compare={names}", f"train.precision={precision}"]
        at(folder, *overrides, stages=["sample", "score"])
        criteria = read_json(folder / "criteria.json")["criteria"]
        found.append({name: [row["score"] for row in each["modules"]] for name, each in criteria.items()})
    for name, scores_in_fp32 in found[0].items():
        assert found[1][name] == pytest.approx(scores_in_fp32, rel=0.05), name
    assert found[0]["output"] != found[1]["output"]


def test_the_figure_s_points_are_means_over_seeds_by_parameters():
    from lora_drop.experiments.figures.criteria import points_of
    from lora_drop.experiments.records import Record

    def record(row, criterion, seed, size, value, method="lora_drop"):
        config = to_dict(load_config([], [f"score.criterion={criterion}"]))
        known = {
            "experiment": "x",
            "layout": {},
            "task": "toy-nli",
            "task_title": "",
            "backbone": "",
            "config_hash": "",
        }
        empty = {"overrides": {}, "deviations": {}, "limited": {}, "stages": {}}
        found = {"primary": "accuracy", "metrics": {"accuracy": value}, "parameters": {"adapter": size, "head": 1}}
        return Record(row=row, config=config, seed=seed, method=method, **known, **empty, **found)

    records = [record("b", "fisher", seed, 20, value) for seed, value in enumerate((0.5, 0.7))]
    records += [
        record("a", "fisher", 0, 10, 0.25),
        record("c", "output", 0, 20, 0.5),
        record("l", "output", 0, 40, 1, "lora"),
    ]
    del records[-2].config["score"]["criterion"]  # as in records of earlier versions
    points = points_of(records)
    assert points.keys() == {"fisher", "output"} and points["output"] == [(20, 50, 0)]
    assert points["fisher"][0] == (10, 25, 0) and points["fisher"][1] == pytest.approx((20, 60, 200**0.5))
