"""Results that count: those of the same rows and of today's versions; older ones if so asked."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
from run_folders import scores, write_run
from small_files import write_small_files

from lora_drop.config.identity import config_hash, to_dict, what_is_computed
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.experiments.records import Record, gather, read_record, read_records, versions_of
from lora_drop.experiments.report import report
from lora_drop.experiments.results import Results
from lora_drop.files import read_json, write_json
from lora_drop.pruning.scores import Scores
from lora_drop.registry import CRITERIA, METHODS, TASKS
from lora_drop.runs.stages import BY_NAME
from lora_drop.runs.store import Run
from lora_drop.tasks.base import Source

STAGES = ("sample", "score", "select", "picture", "train", "eval")


@pytest.fixture
def planned():
    (run,) = expand(load_experiment("table6"), Choice(backbone="tiny:bert", seeds=[0], rows=["t0.90"]))
    return run


def store(results, planned, **changes):
    config = planned.config
    known = {"task": config.task, "backbone": config.backbone, "method": config.method.name, "seed": config.seed}
    told = {"experiment": "table6", "row": planned.row, "task_title": "", "limited": {}}
    told["layout"] = planned.experiment.layout
    asked = {"overrides": planned.overrides, "deviations": planned.deviations}
    made_by = versions_of(config.task, config.method.name, STAGES)
    whole = {"config": to_dict(config), "config_hash": config_hash(config), "stages": {name: {} for name in STAGES}}
    record = Record(**known, **told, **asked, **whole, made_by=made_by)
    path = results.path(planned)
    write_json(path, asdict(replace(record, **changes)))
    return path


def versions(**changes):
    return versions_of("toy-nli", "lora_drop", STAGES) | {name.replace("_", " ", 1): n for name, n in changes.items()}


def test_a_result_of_todays_versions_is_done(planned, tmp_path):
    results = Results(tmp_path)
    assert not results.has(planned) and results.notices([planned]) == []
    store(results, planned)
    assert results.has(planned) and results.notices([planned]) == []


def test_a_result_is_of_the_rows_that_the_official_file_had(tmp_path):
    """A folder may hold a part of the rows, under the same names as the whole."""
    part, whole = tmp_path / "part", tmp_path / "whole"
    write_small_files(part, train=16)
    write_small_files(whole)
    found = {folder: Source.resolve(str(folder)) for folder in (part, whole)}
    for source in found.values():
        TASKS.get("rte").load(source, "train")
    choice = Choice(backbone="tiny:bert", tasks=["rte"], seeds=[0], rows=["t0.90"])
    runs = {
        folder: expand(load_experiment("table6"), replace(choice, flags={"data_dir": str(folder)}))[0]
        for folder in found
    }
    results = Results(tmp_path / "results")
    known = {"train": {"sources": found[part].origins}}
    store(results, runs[part], stages={name: known.get(name, {}) for name in STAGES})
    assert results.has(runs[part]) and not results.has(runs[whole])
    shutil.rmtree(part / "glue")  # the rows come from elsewhere now, and nothing is known against them
    assert results.has(runs[part])


@pytest.mark.parametrize(
    ("older", "named", "now"),
    [
        ({"stage_score": 0}, "stage score", BY_NAME["score"].version),
        ({"task_toy-nli": 0}, "task toy-nli", TASKS.get("toy-nli").version),
        ({"criterion_output": 0}, "criterion output", 1),
        ({"method_lora_drop": 0}, "method lora_drop", METHODS.get("lora_drop").version),
    ],
)
def test_a_result_of_an_older_version_is_not_done_unless_it_is_kept(older, named, now, planned, tmp_path):
    results, keeping = Results(tmp_path), Results(tmp_path, keep_old=True)
    store(results, planned, made_by=versions(**older))
    assert not results.has(planned) and keeping.has(planned)
    (told,), (kept,) = results.notices([planned]), keeping.notices([planned])
    assert f"1 results are of an older version ({named}: 0, now {now})" in told and "--keep-old" in told
    assert kept.endswith("they are kept")


def test_versions_are_those_on_which_numbers_rest():
    """A drawing has none, and an experiment that ends before training does not rest on the method."""
    found = versions_of("toy-nli", "lora_drop", ["sample", "score", "select", "picture"])
    assert found.keys() == {"stage sample", "stage score", "stage select", "task toy-nli", "criterion output"}
    assert {"stage train", "method lora_drop"} <= versions().keys()


@pytest.mark.parametrize(
    ("until", "trained", "last"),
    [("", False, "eval"), ("", True, "trained"), ("eval", True, "eval"), ("select", False, "select")],
)
def test_a_result_that_ends_before_the_last_stage_wanted_now_is_not_done(until, trained, last, planned, tmp_path):
    config = replace(planned.config, score=replace(planned.config.score, trained=trained))
    run = replace(planned, config=config, experiment=replace(planned.experiment, until=until))
    results, stages = Results(tmp_path), [*STAGES, "trained"]
    stages = stages[: stages.index(last) + 1]
    for performed in (stages[:-1], stages):
        made_by = versions_of(config.task, "lora_drop", performed)
        store(results, run, stages={name: {} for name in performed}, made_by=made_by)
        assert results.has(run) == (performed == stages)


def test_a_result_without_versions_counts_and_is_told_once(planned, tmp_path):
    results = Results(tmp_path)
    store(results, planned, made_by={})
    assert results.has(planned)
    assert results.notices([planned, planned]) == ["2 results do not say which versions made them; they count as done"]


def test_asked_for_in_another_way_only_a_result_that_counts_is_joined(planned, tmp_path):
    results, other = Results(tmp_path), replace(planned, overrides={"train.weight_decay": 0.2})
    store(results, planned)
    store(results, other, made_by=versions(stage_score=0))
    results.join(other)
    assert read_json(results.path(other))["made_by"] == versions() and results.has(other)
    assert read_json(results.path(other))["overrides"] == other.overrides


def test_a_result_that_stands_in_the_table_already_is_not_replaced_by_that_of_another_one(planned, tmp_path):
    results = Results(tmp_path)
    other = replace(planned, overrides={"train.weight_decay": 0.2}, deviations={"train.weight_decay": [0.1, 0.2]})
    kept = [store(results, run, examples=number) for number, run in enumerate((planned, other))]
    for run in (planned, other):
        results.join(run)
    assert [read_json(path)["examples"] for path in kept] == [0, 1]
    kept[1].unlink()
    results.join(other)
    joined = read_json(kept[1])
    assert (joined["overrides"], joined["deviations"], joined["examples"]) == (other.overrides, other.deviations, 0)


def test_a_new_result_takes_the_place_of_an_equal_one_in_its_own_table_alone(planned, tmp_path):
    results, other = Results(tmp_path), replace(planned, overrides={"train.weight_decay": 0.2})
    elsewhere = store(results, other)
    path = store(results, planned)
    older = path.rename(path.with_name(path.name.replace(config_hash(planned.config), "0" * 12)))
    content = read_json(older)
    results.write(planned, {**content, "examples": 7})
    assert not older.exists() and elsewhere.exists() and read_json(path)["examples"] == 7


def test_a_record_that_knows_no_criterion_is_of_the_papers_first_version(planned, tmp_path, monkeypatch):
    results = Results(tmp_path)
    made_by = {name: version for name, version in versions().items() if not name.startswith("criterion")}
    config = to_dict(planned.config)
    del config["score"]["criterion"], config["score"]["compare"]
    store(results, planned, made_by=made_by, config=config)
    assert results.has(planned)
    monkeypatch.setitem(CRITERIA.added, "output", replace(CRITERIA.get("output"), version=2))
    assert not results.has(planned) and "criterion output: 1, now 2" in results.notices([planned])[0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"claims": {"x": {"says": 5, "row": "lora", "against": "lora"}}}, "says = 5: must be a text"),
        ({"claims": {"x": {"says": "y", "against": "lora"}}}, "needs says, row and against"),
        ({"claims": []}, "layout.claims is not what it should be"),
        ({"rows": {"lora": "LoRA"}}, "layout.rows lacks its row"),
        ({"rows": {"t0.95": 5}}, "a title that is not a text"),
    ],
)
def test_a_record_whose_experiment_is_damaged_is_left_out(fault, said, planned, tmp_path):
    store(Results(tmp_path), planned)
    store(Results(tmp_path), replace(planned, row="t0.95"), row="t0.95", layout={**planned.experiment.layout, **fault})
    told = []
    (tables,) = report(tmp_path, figures=False, tell=told.append).values()
    assert [record.row for record in tables[0].records] == ["t0.90"]
    assert len(told) == 1 and said in told[0]


def test_a_folder_without_a_table_stops_no_other(planned, tmp_path):
    """Two results of one cell would be averaged as if they were two seeds."""
    path = store(Results(tmp_path), planned)
    other = tmp_path / "other" / "tiny-bert"
    other.mkdir(parents=True)
    for name in ("a", "b"):
        write_json(other / f"{name}.json", {**read_json(path), "experiment": "other"})
    told = []
    assert list(report(tmp_path, figures=False, tell=told.append)) == [path.parent]
    assert len(told) == 1 and "There are two results for t0.90" in told[0]
    with pytest.raises(UserError, match="There are two results"):
        report(tmp_path, ["other"], figures=False, tell=told.append)


def test_seeds_of_a_row_have_one_configuration(planned, tmp_path):
    """An experiment's file may be edited between two seeds, whose mean would then be of nothing."""
    results = Results(tmp_path)
    path = store(results, planned)
    later = replace(planned, config=replace(planned.config, seed=1))
    results.check([later])
    edited = replace(later, config=replace(later.config, train=replace(later.config.train, epochs=7.0)))
    with pytest.raises(UserError, match=r"seed 0, with another configuration: train.epochs is .* there, 7.0 now"):
        results.check([edited])
    store(results, edited)
    with pytest.raises(UserError, match=r"several configurations: train.epochs is .* at seed 0, and 7.0 at seed 1"):
        report(tmp_path, figures=False)
    assert path.is_file()


@pytest.mark.parametrize(
    "changes", [{"experiment": "table1"}, {"backbone": "tiny:llama"}], ids=["experiment", "backbone"]
)
def test_a_result_in_the_folder_of_another_experiment_or_backbone_is_left_out(changes, planned, tmp_path):
    path = store(Results(tmp_path), planned)
    content = read_json(path)
    changed = {**content, **changes, "seed": 1, "config": {**content["config"], "seed": 1}}
    changed["config"]["backbone"] = changed["backbone"]
    write_json(path.with_name("stray.json"), changed)
    told = []
    ((table,),) = report(tmp_path, figures=False, tell=told.append).values()
    assert [record.seed for record in table.records] == [0]
    assert len(told) == 1 and "stray.json is a result of" in told[0] and "Move it there" in told[0]


def test_a_record_is_gathered_from_the_stages_of_its_experiment(tmp_path):
    """The run has more of them. Epochs differ in which is kept, the best, the last, and the best on held-out rows."""
    asked = Choice(backbone="tiny:bert", seeds=[0], rows=["t0.90"], overrides=["score.criterion=gradient"])
    (planned,) = expand(load_experiment("table6"), asked)
    folder = write_run(tmp_path / "run")
    stages = read_json(folder / "run.json")["stages"]
    names = ("epoch", "accuracy", "held_out")
    epochs = [dict(zip(names, each, strict=True)) for each in ((1.0, 0.7, 0.9), (2.0, 0.8, 0.6), (3.0, 0.75, 0.8))]
    stages["train"] |= {"epochs": epochs, "select_epoch": "last", "kept_epoch": 2.5, "limited": {"train": 80}}
    stages["eval"]["limited"], stages["score"]["warmup_steps"] = {"eval": 40}, 7
    stages |= dict.fromkeys(("norms", "stability", "trained"), stages["select"])
    write_json(folder / "sample.json", {"size": 24})
    write_json(folder / "stability.json", {"draws": 3})
    norms = {"projection": "query", "layer": 1, "norms": [1 / 3, 2e-7 / 3]}
    write_json(folder / "norms.json", {"modules": [{**norms, "name": "a"}]})
    Scores(tuple(scores(seed=1)), 90, 900).save(folder / "scores_trained.json")
    write_json(folder / "metrics.json", {**read_json(folder / "metrics.json"), "signatures": {"accuracy": "plain"}})
    run = Run(folder, planned.config)
    for name, entry in stages.items():
        run.enter(name, entry)

    whole = gather(planned, run, list(stages))
    assert (whole.best, whole.last) == ({"epoch": 2, "score": 0.8}, {"epoch": 3, "score": 0.75})
    assert whole.held_out == {"epoch": 1, "score": 0.7} and (whole.kept_epoch, whole.select_epoch) == (2.5, "last")
    assert (whole.metrics, whole.baseline) == ({"accuracy": 0.9}, {"accuracy": 0.5}) and whole.epochs == epochs
    assert whole.signatures == {"accuracy": "plain"} and whole.percent
    assert (whole.split, whole.examples) == ("validation", 400)
    assert whole.config == what_is_computed(planned.config) and whole.config_hash == config_hash(planned.config)
    assert whole.limited == {"train": 80, "eval": 40} and (whole.sampled, whole.warmup_steps) == (24, 7)
    keys = ("projection", "layer", "score", "importance")
    for found, expected in ((whole.scores, scores(seed=0)), (whole.trained_scores, scores(seed=1))):
        assert found == [{key: getattr(row, key) for key in keys} for row in expected]
    assert whole.norms == [{**norms, "norms": [0.333333, 6.66667e-08]}] and whole.stability == {"draws": 3}
    assert whole.made_by.keys() >= {"criterion gradient", "method lora_drop", "stage norms"}
    assert (whole.overrides, whole.deviations) == (planned.overrides, planned.deviations) and whole.overrides

    ended = gather(planned, run, ["sample", "score"])
    assert ended.stages.keys() == {"sample", "score"} and "method lora_drop" not in ended.made_by
    assert ended.scores == whole.scores and not (ended.metrics or ended.norms or ended.stability or ended.selection)


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({}, True),
        ({"policy": "random"}, False),
        ({"share": False}, False),
        ({"policy": "threshold", "share": True}, True),
    ],
)
def test_ablations_and_other_methods_are_not_lora_drop_as_in_the_paper(changes, own, planned, tmp_path):
    config = {"task": "toy-nli", "seed": 0, "backbone": "tiny:bert", "method": changes}
    record = read_records(store(Results(tmp_path), planned, config=config).parent)
    assert [each.own for each in record] == [own] and not replace(record[0], method="lora").own


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"metrics": {"accuracy": 0.5}, "primary": "f1"}, "its primary metric is not among its metrics"),
        ({"seed": 5}, "task, seed and backbone are not those of its config"),
        ({"held_out": {"epoch": 1.0}}, "held_out lacks score"),
        ({"trained_scores": [{"projection": "query", "layer": 0, "score": 1.0}]}, "trained_scores lacks"),
        ({"selection": {"projections": {"query": {"retained": [1]}}}}, "query lacks retained or shared"),
        ({"metrics": {"accuracy": float("inf")}}, "metrics is not what it should be"),
        ({"metrics": {"accuracy": True}}, "metrics is not what it should be"),
        ({"examples": True}, "examples is not what it should be"),
        ({"kept_epoch": 10**400}, "kept_epoch is not what it should be"),
    ],
)
def test_a_record_with_a_value_that_cannot_be_is_refused_by_name(changes, fault, planned, tmp_path):
    path = store(Results(tmp_path), planned)
    assert read_record(path)["seed"] == 0
    path.write_text(json.dumps({**read_json(path), **changes}))
    with pytest.raises(UserError, match=fault):
        read_records(path.parent)
