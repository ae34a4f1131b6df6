"""Results that count: those of the same rows and of today's versions; older ones if so asked."""

import shutil
from dataclasses import asdict, replace

import pytest
from small_files import write_small_files

from lora_drop.config.identity import config_hash, to_dict
from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, load_experiment
from lora_drop.experiments.records import Record, versions_of
from lora_drop.experiments.report import report
from lora_drop.experiments.results import Results
from lora_drop.files import read_json, write_json
from lora_drop.registry import CRITERIA, METHODS, TASKS
from lora_drop.runs.stages import BY_NAME
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
    with pytest.raises(UserError, match=r"several configurations: at seed 0 train.epochs is .*, at seed 1 7.0"):
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
    assert len(told) == 1 and "stray.json is a result of" in told[0] and "Move it to" in told[0]
