"""Experiments as data, and the runs they become."""

import math
import re

import pytest

from lora_drop.errors import UserError
from lora_drop.experiments.grid import Choice, expand, experiment_names, load_experiment, slug
from lora_drop.registry import FIGURES


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_becomes_runs_as_published(name):
    planned = expand(load_experiment(name), Choice())
    assert planned and all(not run.deviations and not run.overrides for run in planned)
    assert len({run.name for run in planned}) == len(planned)


def test_table1_is_the_published_setting():
    planned = {
        (run.row, run.config.task, run.config.seed): run.config for run in expand(load_experiment("table1"), Choice())
    }
    assert len(planned) == 7 * 8 * 3
    lora = planned["lora", "cola", 2]
    assert (lora.backbone, lora.train.epochs, lora.train.learning_rate, lora.train.batch_size) == (
        "FacebookAI/roberta-base",
        80,
        4e-4,
        64,
    )
    assert planned["vera", "rte", 0].method.rank == 512 and planned["tied_lora", "rte", 0].method.rank == 56
    assert planned["lora_drop", "rte", 0].method.threshold == 0.9


def test_what_is_asked_for_wins_over_the_row_and_the_row_over_files(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {epochs: 4, learning_rate: 0.01}\n")
    choice = Choice(
        backbone="tiny:bert",
        tasks=["cola"],
        seeds=[5],
        files=[str(tmp_path / "mine.yaml")],
        overrides=["train.batch_size=8", "device=cpu", "train.weight_decay=1e-2"],
    )
    planned = {run.row: run for run in expand(load_experiment("table1"), choice)}
    full, lora = planned["full"].config.train, planned["lora"].config.train
    assert (full.epochs, full.learning_rate, full.batch_size) == (10, 2e-5, 8)
    assert (lora.epochs, lora.learning_rate, lora.batch_size) == (4, 0.01, 8)
    assert planned["lora"].deviations == {
        "backbone": ["FacebookAI/roberta-base", "tiny:bert"],
        "train.epochs": [80, 4],
        "train.learning_rate": [4e-4, 0.01],
        "train.batch_size": [64, 8],
        "train.weight_decay": [0.1, 0.01],
    }
    assert planned["lora"].overrides == planned["full"].overrides  # the same for all runs of a command
    assert planned["lora"].overrides["train.epochs"] == 4 and "device" not in planned["lora"].overrides
    assert planned["lora"].overrides["train.weight_decay"] == 0.01


def test_a_tiny_backbone_gets_toy_data_unless_tasks_are_named():
    experiment = load_experiment("table7")
    assert {run.config.task for run in expand(experiment, Choice(backbone="tiny:roberta"))} == {"toy-nli"}
    (own, *_) = expand(load_experiment("demo"), Choice(backbone="tiny:roberta"))  # toy data are what this one is about
    assert own.config.sample.ratio == 0.25 and own.config.limit.train is None
    assert {run.config.task for run in expand(experiment, Choice(backbone="tiny:roberta", tasks=["rte"]))} == {"rte"}


def test_what_is_asked_for_twice_is_run_once():
    experiment = load_experiment("table1")
    once, twice = (expand(experiment, Choice(tasks=["rte"] * n, rows=["lora"], seeds=[0] * n)) for n in (1, 2))
    assert len(once) == len(twice) == 1


def test_rows_are_chosen_by_name():
    experiment = load_experiment("table1")
    rows = [run.row for run in expand(experiment, Choice(tasks=["rte"], seeds=[0], rows=["lora_drop", "full"]))]
    assert rows == ["full", "lora_drop"]  # in the table's order
    alone = expand(load_experiment("mpnet"), Choice(tasks=["rte"], seeds=[0], rows=["lora"]))
    assert [run.row for run in alone] == ["lora"]  # not the others of its method, such as rank4
    with pytest.raises(UserError, match=r"no row 'lorra'.*Did you mean 'lora'"):
        expand(experiment, Choice(rows=["lorra"]))


def test_a_row_with_a_threshold_has_no_budget_of_the_experiment(tmp_path):
    rows = "rows: {half: {title: A}, most: {title: B, method.threshold: 0.7}}\ntasks: [rte]\nseeds: [0]\n"
    (tmp_path / "mine.yaml").write_text(f"config: glue/{{task}}\nset: {{method.budget: 0.5}}\n{rows}")
    half, most = (run.config.method for run in expand(load_experiment(str(tmp_path / "mine.yaml")), Choice()))
    assert half.budget == 0.5 and (most.threshold, most.budget) == (0.7, None)


def test_a_threshold_that_removes_a_rows_budget_is_an_override_even_if_it_is_the_default():
    asked = Choice(tasks=["rte"], rows=["half", "lora_drop"], seeds=[0], overrides=["method.threshold=0.9"])
    for run in expand(load_experiment("mpnet"), asked):
        assert run.config.method.budget is None and run.overrides == {"method.budget": None}


def test_every_sample_ratio_of_figure11_takes_the_same_number_of_steps():
    """Those of three epochs over a tenth of RTE's 2,490 rows, in the batches of its warm-up."""
    configs = [run.config for run in expand(load_experiment("figure11"), Choice())]
    assert [config.sample.ratio for config in configs] == [number / 10 for number in range(1, 11)]
    assert {config.warmup.steps for config in configs} == {3 * math.ceil(249 / configs[0].warmup.batch_size)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("title: [", "not readable YAML"),
        ("[1]", "must hold keys and values"),
        ("tasks: [rte]\nrow: {a: {}}", "row: no such key. Did you mean 'rows'"),
        ("tasks: [rte]", "needs rows and tasks"),
        ("rows: {a: {}}\ntasks: [rte]\nseeds: [x]", "a list of whole numbers"),
        ("rows: {a: 1}\ntasks: [rte]", "keys and values"),
        ("rows: {a: {}}\ntasks: [rte]\nuntil: selct", "Did you mean 'select'"),
        ("rows: {a: {}}\ntasks: [rte]\nfigures: [importanc]", "Did you mean 'importance'"),
        ("rows: {a: {}}\ntasks: [rte]\ncolumns: [retaind]", "Did you mean 'retained'"),
        ("rows: {a: {}}\ntasks: [rte]\npublished: tabel1", "Did you mean 'table1'"),
        ("rows: {a: {}}\ntasks: [rte]\ntask_set: {rt: {}}", "Did you mean 'rte'"),
        ("rows: {a: {}}\ntasks: [rte]\nclaims: {x: {says: 5, row: a, against: a}}", "says = 5: must be a text"),
        ("rows: {a: {}}\ntasks: [rte]\nclaims: {x: {says: y, row: a, against: b}}", "must be one of a"),
        ("rows: {a: {}}\ntasks: [rte]\nclaims: {x: {says: y, row: a, against: a}}", "row and against are both a"),
        ("rows: {a: {}}\ntasks: [rte, rte]", "tasks: 'rte' is there twice"),
        ("rows: {a: {}}\ntasks: [rte]\nseeds: [0, 1, 0]", "seeds: 0 is there twice"),
        ("rows: {a: {title: A}, b: {title: A}}\ntasks: [rte]", "titles of rows: 'A' is there twice"),
    ],
)
def test_mistakes_in_an_experiment_are_told(content, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_experiment(str(path))


def test_a_metric_that_no_task_has_is_told(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rows: {a: {}}\ntasks: [rte]\nmetrics: [acuracy]")
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        expand(load_experiment(str(path)), Choice())


def test_a_name_of_the_package_is_not_taken(tmp_path):
    (tmp_path / "table1.yaml").write_text("rows: {a: {}}\ntasks: [rte]\n")
    with pytest.raises(UserError, match="packaged experiment"):
        load_experiment(str(tmp_path / "table1.yaml"))


def test_what_changes_nothing_is_no_override():
    asked = {
        "tasks": ["cola"],
        "rows": ["lora"],
        "backbone": "FacebookAI/roberta-base",
        "overrides": ["train.epochs=80"],
    }
    (run, *_) = expand(load_experiment("table1"), Choice(**asked))
    assert (
        run.overrides == {}
        and run.name == expand(load_experiment("table1"), Choice(tasks=["cola"], rows=["lora"]))[0].name
    )


def test_overrides_are_to_fit_the_experiment_and_not_the_defaults(tmp_path):
    asked = Choice(overrides=["train.select_epoch=held_out", "train.learning_rate=7e-4"])
    for run in expand(load_experiment("second"), asked):
        assert run.config.train.held_out and run.config.train.select_epoch == "held_out"
        assert run.overrides["train.learning_rate"] == 7e-4
    with pytest.raises(UserError, match=r"set train\.held_out, for example to 0\.1"):
        expand(load_experiment("table1"), asked)
    (tmp_path / "mine.yaml").write_text("tasks: [own]\nset: {data.path: r.csv}\nrows: {a: {title: A}}\nseeds: [0]\n")
    (run,) = expand(load_experiment(str(tmp_path / "mine.yaml")), Choice(overrides=["data.metric=accuracy"]))
    assert run.overrides == {"data.metric": ["accuracy"]} and run.config.data.metric == ("accuracy",)


def test_every_mistake_in_what_is_asked_for_is_told_at_once():
    with pytest.raises(UserError, match="3 errors") as caught:
        expand(load_experiment("table1"), Choice(overrides=["seed=5", "train.epochs=0", "train.epoch=3"]))
    for text in ("choose with --seeds", "train.epochs = 0", "Did you mean 'train.epochs'"):
        assert text in str(caught.value)


@pytest.mark.parametrize("override", ["seed=5", "task=rte"])
def test_seeds_and_tasks_are_not_overrides(override):
    with pytest.raises(UserError, match="an experiment has several; choose with --"):
        expand(load_experiment("table1"), Choice(overrides=[override]))


def test_every_figure_is_found_by_its_own_name():
    assert [FIGURES.get(name).name for name in FIGURES.names()] == FIGURES.names()


def test_mistakes_in_a_row_name_the_key(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rows: {a: {method.rnk: 3}}\ntasks: [toy-nli]\n")
    with pytest.raises(UserError, match=r"method\.rnk: no such key"):
        expand(load_experiment(str(path)), Choice())


def test_an_unknown_experiment_is_told():
    with pytest.raises(UserError, match="Did you mean 'table1'"):
        load_experiment("tabel1")


def test_slugs_are_file_names():
    assert slug("FacebookAI/roberta-base") == "FacebookAI-roberta-base"
    assert slug("packaged:minilm-l6") == "packaged-minilm-l6" and slug("../..") == "x"


@pytest.mark.parametrize("name", ["table1", "table6", "figure2"])
def test_the_number_of_runs_is_known_without_expanding(name):
    experiment = load_experiment(name)
    assert experiment.size == len(expand(experiment, Choice())) > 0


def test_braces_that_mean_nothing_are_part_of_the_name_of_a_configuration(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rows: {a: {}}\ntasks: [rte]\nconfig: 'glue/{tsk}'")
    with pytest.raises(UserError, match=re.escape("glue/{tsk}")):
        expand(load_experiment(str(path)), Choice())


def test_keys_of_a_task_win_over_those_of_all_and_a_rows_over_both(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "config: 'glue/{task}'\nbackbone: tiny:bert\ntasks: [rte, mrpc]\nseeds: [0]\n"
        "set: {train.epochs: 3, train.batch_size: 16, train.weight_decay: 0.3}\n"
        "task_set: {rte: {train.epochs: 5, train.batch_size: 8}}\n"
        "rows: {a: {title: A}, b: {title: B, train.batch_size: 4, train.weight_decay: 0.4}}\n"
    )
    experiment = load_experiment(str(tmp_path / "mine.yaml"))

    def settings(choice):
        runs = expand(experiment, choice)
        assert {run.config.backbone for run in runs} == {"tiny:bert"}
        trains = {(run.row, run.config.task): run.config.train for run in runs}
        return {place: (train.epochs, train.batch_size, train.weight_decay) for place, train in trains.items()}

    mrpc = {("a", "mrpc"): (3, 16, 0.3), ("b", "mrpc"): (3, 4, 0.4)}
    rte = {("a", "rte"): (5, 8, 0.3), ("b", "rte"): (5, 4, 0.4)}
    assert settings(Choice(tasks=["rte", "mrpc"])) == mrpc | rte
    flags = Choice(tasks=["rte"], flags={"train.epochs": 7, "train.batch_size": None})
    assert settings(flags) == {("a", "rte"): (7, 8, 0.3), ("b", "rte"): (7, 4, 0.4)}
    assert [run.overrides for run in expand(experiment, flags)] == [{"train.epochs": 7}] * 2
    assert expand(experiment, flags)[0].deviations == {"train.epochs": [5, 7]}


def test_a_tiny_decoder_writes_toy_texts_and_own_data_stay(tmp_path):
    assert {run.config.task for run in expand(load_experiment("table2"), Choice(backbone="tiny:llama"))} == {"toy-nlg"}
    own = "tasks: [own]\nmetrics: [f1_macro]\ntask_set: {own: {data.path: r.csv}}\nrows: {a: {title: A}}\nseeds: [0]\n"
    (tmp_path / "mine.yaml").write_text(own)
    (run,) = expand(load_experiment(str(tmp_path / "mine.yaml")), Choice(backbone="tiny:bert"))
    assert (run.config.task, run.config.data.path) == ("own", "r.csv")


def test_layers_are_scored_again_after_training_only_where_they_were_scored_before():
    asked = Choice(tasks=["rte"], seeds=[0], rows=["lora", "lora_drop"], overrides=["score.trained=true"])
    assert {run.row: run.last_stage for run in expand(load_experiment("table1"), asked)} == {
        "lora": "eval",
        "lora_drop": "trained",
    }
