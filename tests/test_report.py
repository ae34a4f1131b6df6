"""Tables from records: means, flags, and published values."""

import csv
import io
from dataclasses import replace

import pytest
from measured import cells, record

from lora_drop.errors import UserError
from lora_drop.evaluation.metrics.classification import constant_baseline
from lora_drop.experiments.agreement import warm_ups_by_task
from lora_drop.experiments.grid import load_experiment
from lora_drop.experiments.latex import to_latex
from lora_drop.experiments.learnt import MAJORITY, nothing_learnt
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.spreadsheet import to_csv
from lora_drop.experiments.table import build_tables
from lora_drop.registry import TASKS
from lora_drop.tasks.base import Source


def test_a_cell_is_the_mean_over_seeds_beside_the_published_value():
    tables = build_tables([record("full", "mrpc", seed, score) for seed, score in enumerate((0.90, 0.91, 0.92))])
    cell = cells(tables)["full", "mrpc"]
    assert (cell.mean, cell.deviation) == pytest.approx((91.0, 1.0))
    assert (cell.published, cell.difference) == pytest.approx((90.2, 0.8))
    assert (cell.best, cell.last) == pytest.approx((91.0, 90.0))
    assert cell.flags == "" and cell.seeds == (0, 1, 2)
    text = to_markdown(tables)
    assert "| Full-FT | 294,912 |  | 91.0 ± 1.0 (3) |" in text and "*+0.8*" in text and "*90.2*" in text
    assert "the experiment's own configuration" in text and "†" not in text


def test_columns_are_the_papers_and_what_was_not_measured_stays_empty():
    tables = build_tables([record("lora", "rte", seed, 0.8) for seed in range(3)])
    header = next(line for line in to_markdown(tables).splitlines() if line.startswith("|"))
    assert header == "|  | parameters | RTE | MRPC | STS-B | CoLA | SST-2 | QNLI | MNLI | QQP | Avg |"
    assert "| LoRA | 294,912 | 80.0 ± 0.0 (3) |  |  |  |  |  |  |  |  |" in to_markdown(tables)
    assert tables[0].rows[1].average is None


def test_the_average_needs_every_column():
    tasks = load_experiment("table1").tasks
    tables = build_tables([record("lora", task, 0, 0.8 + number / 100) for number, task in enumerate(tasks)])
    (row,) = [row for row in tables[0].rows if row.cells]
    assert row.average == pytest.approx(83.5) and row.average_flags == "s"
    assert "83.5 †s" in to_markdown(tables)


def test_the_average_leaves_out_what_was_not_learnt():
    """RTE's validation split has 146 of 277 rows of one label: 52.7 %, and two standard errors are 6 points."""
    tasks = load_experiment("table1").tasks
    lora = [record("lora", task, 0, 0.8) for task in tasks if task != "rte"]
    full = [record("full", task, 0, 0.9) for task in tasks if task != "rte"]
    at_chance = [record("lora", "rte", 0, 0.58), record("full", "rte", 0, 0.40)]
    tables = build_tables([*lora, *full, *at_chance])
    averages = {row.name: row.average for row in tables[0].rows if row.cells}
    assert averages == {"lora": pytest.approx(80), "full": pytest.approx(90)}
    assert [column.key for column in tables[0].columns if not column.learnt] == ["rte"]
    assert all(row.difference is None for row in tables[0].rows)  # the paper's average is over all columns
    text = to_markdown(tables)
    assert "Nothing was learnt in RTE: no run is more than 2 standard errors above a constant prediction" in text
    assert "; Avg leaves it out." in text and "% Nothing was learnt in RTE" in to_latex(tables)

    one_learns = build_tables([*lora, *full, record("lora", "rte", 0, 0.60), at_chance[1]])
    averages = {row.name: row.average for row in one_learns[0].rows if row.cells}
    assert averages == {"lora": pytest.approx(77.5), "full": pytest.approx(83.75)}
    assert "Nothing was learnt" not in to_markdown(one_learns)


@pytest.mark.parametrize(
    ("changes", "learnt"),
    [
        ({"metrics": {"accuracy": 0.70}, "baseline": {"accuracy": 0.68}}, False),
        ({"metrics": {"accuracy": 0.75}, "baseline": {"accuracy": 0.68}}, True),
        ({"metrics": {"accuracy": 0.75}, "baseline": {"accuracy": 0.68}, "examples": 100}, False),
        ({"metrics": {"accuracy": 0.40}, "split": "test"}, True),  # not known, so not said
        ({"metrics": {"matthews_correlation": 0.06}, "examples": 1043}, False),
        ({"metrics": {"matthews_correlation": 0.07}, "examples": 1043}, True),
        ({"metrics": {"spearman": -0.4}, "examples": 1500}, False),
        ({"metrics": {"sacrebleu": 0.0}}, True),
        ({"metrics": {"f1": 0.81}, "baseline": {"f1": 0.81}}, True),  # its standard error is not known
        ({"metrics": {"matthews_correlation": 0.2}, "examples": 101}, False),  # at the bound
        ({"metrics": {"matthews_correlation": 0.25}, "examples": 101}, True),
    ],
)
def test_when_nothing_was_learnt(changes, learnt):
    (metric,) = changes["metrics"]
    assert nothing_learnt([record("lora", "rte", 0, 0.5, **changes)], metric) == (not learnt)


def test_the_shares_of_the_most_frequent_label_are_those_of_the_official_files(data_dir):
    for name, share in MAJORITY.items():
        rows = TASKS.get(name).load(Source(data_dir, offline=True), "validation")
        found = constant_baseline(TASKS.get(name), list(rows["label"]))
        assert found["accuracy"] == pytest.approx(share)


def test_every_limit_is_flagged_and_told():
    limited = record(
        "lora", "rte", 0, 0.6, limited={"train": 500}, deviations={"limit.train": [None, 500], "train.epochs": [80, 3]}
    )
    tables = build_tables([limited])
    assert cells(tables)["lora", "rte"].flags == "res"
    text = to_markdown(tables)
    assert "60.0 (1) †res" in text and "RTE 500 train" in text and "RTE 3 instead of 80" in text
    assert "r = fewer rows, e = fewer epochs, s = fewer seeds" in text
    assert r"60.0 (1)$^{\dagger res}$" in to_latex(tables)


def test_runs_with_other_overrides_are_not_mixed():
    asked = {"overrides": {"train.epochs": 3}, "deviations": {"train.epochs": [80, 3]}}
    records = [record("lora", "rte", 0, 0.8), record("lora", "rte", 0, 0.6, **asked)]
    whole, limited = build_tables(records)
    assert cells([whole])["lora", "rte"].mean == 80 and cells([limited])["lora", "rte"].mean == 60
    assert "`train.epochs = 3`" in to_markdown([limited])


def test_another_backbone_is_not_compared():
    tables = build_tables([record("full", "mrpc", 0, 0.9, backbone="tiny:roberta")])
    assert cells(tables)["full", "mrpc"].difference is None
    text = to_markdown(tables)
    assert "not comparable with this backbone" in text and "*difference*" not in text


def test_the_agreement_of_seeds_is_kendalls_tau_of_every_two():
    def scores(*importances):
        rows = [
            (projection, layer, value) for projection in ("query", "value") for layer, value in enumerate(importances)
        ]
        return [
            {"projection": name, "layer": layer, "score": value, "importance": value} for name, layer, value in rows
        ]

    layout = load_experiment("figure9").layout | {"columns": ["agreement"]}
    config = {"warmup": {"batch_size": 8}, "train": {"batch_size": 256}}
    common = {"experiment": "figure9", "metrics": {}, "config": config, "sampled": 249, "warmup_steps": 96}
    runs = [scores(0.1, 0.2, 0.3, 0.4), scores(0.1, 0.2, 0.4, 0.3), scores(0.4, 0.3, 0.2, 0.1)]
    records = [replace(record("lora", "rte", seed, 0, **common), scores=run) for seed, run in enumerate(runs)]
    records = [replace(entry, layout=layout) for entry in records]
    line = "| LoRA after the warm-up | RTE | 249 | 8 | 96 | 0 1 2 | 0.67 -1.00 -0.67 | 0.67 -1.00 -0.67 |"
    assert line in to_markdown(build_tables(records))
    assert "every two seeds" not in to_markdown(build_tables(records[:1]))
    without = [replace(entry, layout=layout | {"columns": []}) for entry in records]
    assert "every two seeds" not in to_markdown(build_tables(without))


def test_what_rows_retain_at_different_thresholds_is_not_compared():
    """The warm-ups of a task are those of one row, here of the one with most runs."""
    layout = load_experiment("mpnet").layout

    def run(row, task, seed):
        rows = [{"projection": "query", "layer": layer, "score": 1.0, "importance": 0.25} for layer in range(4)]
        chosen = {"projections": {"query": {"retained": [0], "shared": [1, 2, 3]}}}
        found = record(row, task, seed, 0.7, experiment="mpnet", method="lora_drop", selection=chosen)
        return replace(found, layout=layout, scores=rows)

    runs = [run("lora_drop", "rte", seed) for seed in (0, 1, 3)] + [run("lora_drop", "mrpc", 0)]
    runs += [run("half", task, seed) for task in ("rte", "cola") for seed in (0, 1, 2)]
    (table,) = build_tables(runs)
    found = {task: [(each.row, each.seed) for each in taken] for task, taken in warm_ups_by_task(table).items()}
    of_half = [("half", seed) for seed in (0, 1, 2)]
    assert found == {"CoLA": of_half, "RTE": of_half, "MRPC": [("lora_drop", 0)]}


def test_csv_is_unrounded_and_latex_is_balanced():
    tables = build_tables([record("full", "mrpc", seed, 0.9 + seed / 300) for seed in range(3)])
    (line,) = csv.DictReader(io.StringIO(to_csv(tables)))
    assert float(line["mean"]) == pytest.approx(100 * (0.9 + 1 / 300)) and line["n_seeds"] == "3"
    assert line["published"] == "90.2" and line["head_parameters"] == "592130"
    latex = to_latex(tables)
    body = [row for row in latex.splitlines() if row.endswith(r"\\")]
    assert len({row.count("&") for row in body}) == 1 and r"90.3 $\pm$ 0.3 (3)" in latex


def test_csv_has_the_layers_of_runs_that_end_with_the_selection():
    kept = {"projections": {"query": {"retained": [0, 2], "shared": [1]}}}
    (line,) = csv.DictReader(
        io.StringIO(to_csv(build_tables([record("lora", "rte", 0, 0, metrics={}, selection=kept)])))
    )
    assert (line["row"], line["retained"], line["mean"]) == ("lora", "query:2", "")


def test_rows_that_are_held_out_are_told():
    config = {"task": "rte", "seed": 0, "train": {"held_out": 0.1}}
    assert "Held out of training (train.held_out): 10% of" in to_markdown(
        build_tables([record("lora", "rte", 0, 0.8, config=config)])
    )
    assert "Held out" not in to_markdown(build_tables([record("lora", "rte", 0, 0.8)]))


def test_text_metrics_are_not_percent():
    tables = build_tables([record("lora", "rte", 0, 43.4, percent=False)])
    assert cells(tables)["lora", "rte"].mean == 43.4


def test_table6_shows_retained_layers_beside_the_papers():
    def selection(query, value):
        layers = {"query": query, "value": value}
        return {"projections": {name: {"retained": list(range(count))} for name, count in layers.items()}}

    records = [
        record("t0.90", task, 0, 0.8, experiment="table6", selection=selection(5, count), overrides={})
        for task, count in zip(("rte", "cola", "qnli", "qqp"), (6, 7, 7, 8), strict=True)
    ]
    records.append(record("t1.00", "rte", 0, 0.8, experiment="table6"))  # has no selection
    tables = build_tables(records)
    assert [line["retained"] for line in csv.DictReader(io.StringIO(to_csv(tables))) if line["task"] == "rte"] == [
        "",
        "query:5 value:7",
    ]
    text = to_markdown(tables)
    assert "| T = 0.9 | 294,912 | 5.0 | 7.0 | 80.0 (1) †s |" in text
    assert "| *published* |  | *5* | *7* | *81.9* | *63.1* | *93.2* | *90.2* | *82.1* |" in text


def test_rows_that_an_experiment_gained_later_are_shown():
    """The first record was written when the experiment had one row and one seed."""
    layout = load_experiment("table1").layout
    old = {**layout, "rows": {"adalora": "AdaLoRA"}, "seeds": [0], "tasks": {"rte": "RTE"}}
    tables = build_tables([record("adalora", "rte", 0, 0.7, layout=old), record("lora_drop", "rte", 0, 0.8)])
    assert cells(tables).keys() == {("adalora", "rte"), ("lora_drop", "rte")}
    assert [row.name for row in tables[0].rows if row.cells] == ["adalora", "lora_drop"]  # the order of the experiment
    assert all(cell.flags == "s" for cell in cells(tables).values())
    assert len(tables[0].columns) == 8


def test_several_metrics_of_one_task_have_no_average():
    metrics = {"char_bleu4": 40.0, "rouge_chinese_l": 30.0, "sacrebleu": 20.0, "rouge_l": 10.0}
    written = record(
        "lora", "dialogsum", 0, 0, experiment="table2", metrics=metrics, primary="sacrebleu", percent=False
    )
    tables = build_tables([written])
    assert tables[0].rows[1].average is None
    text = to_markdown(tables)
    assert "| Avg |" not in text and "DialogSum char_bleu4, rouge_chinese_l, sacrebleu, rouge_l on validation" in text
    assert "*46.27*" in text  # as printed


def test_a_metric_stands_only_beside_the_tasks_that_have_it():
    texts = {"sacrebleu": 40.0, "rouge_l": 30.0}
    options = {"experiment": "generation", "primary": "sacrebleu", "percent": False}
    written = [
        record("lora", "e2e", 0, 0, metrics={**texts, "slots": 84.0}, **options),
        record("lora", "dialogsum", 0, 0, metrics=texts, **options),
    ]
    shown = [(column.task, column.metric) for column in build_tables(written)[0].columns]
    assert shown == [("e2e", "sacrebleu"), ("e2e", "rouge_l"), ("e2e", "slots")] + [
        ("dialogsum", name) for name in texts
    ]


def test_the_average_is_compared_where_only_it_is_published():
    tables = build_tables([record("lora_drop", task, 0, 0.872) for task in load_experiment("table1").tasks])
    assert "*+1.0*" in to_markdown(tables)
    (average,) = [line for line in csv.DictReader(io.StringIO(to_csv(tables))) if line["task"] == "average"]
    assert (average["published"], float(average["difference"])) == ("86.2", pytest.approx(1.0))


def test_derived_cells_are_marked_and_other_papers_stand_apart():
    text = to_markdown(build_tables([record("full", "rte", 0, 0.787), record("lora_drop", "rte", 0, 0.8)]))
    assert "≈ 78.7" in text and "*90.2*" in text and "≈: not printed there." in text
    assert "LoRA-drop: the cells as quoted by arXiv 2505.18738, Table 1" in text and "*81.4*" in text
    assert "Others on FacebookAI/roberta-base, in settings of their own:" in text
    assert "| BitFit |  | 81.5 | 92.7 | 90.8 | 62 | 93.7 | 91.8 |  |  | arXiv 2505.18738, Table 1 |" in text
    toy = build_tables([record("full", "toy-nli", 0, 0.8, task_title="toy-nli", backbone="tiny:roberta")])
    assert "Others on" not in to_markdown(toy)


def test_two_results_of_a_cell_are_refused_also_if_their_configurations_differ():
    with pytest.raises(UserError, match="There are two results for lora, rte, seed 0"):
        build_tables([record("lora", "rte", 0, 0.8), record("lora", "rte", 0, 0.7, config_hash="other")])


def test_parameters_and_retained_layers_are_means_over_seeds_and_then_over_tasks():
    def run(task, seed, size, count):
        chosen = {"projections": {"query": {"retained": list(range(count)), "shared": []}}}
        return record(
            "t0.90", task, seed, 0.8, experiment="table6", selection=chosen, parameters={"adapter": size, "head": 1}
        )

    (found,) = build_tables([run("rte", 0, 100, 2), run("rte", 1, 100, 2), run("cola", 0, 400, 5)])
    (row,) = [row for row in found.rows if row.cells]
    assert (row.parameters, row.head, row.retained) == (250, 1, {"query": 3.5})


def test_one_limited_seed_limits_the_cell_and_more_than_asked_for_is_no_limit():
    runs = [record("lora", "rte", seed, 0.8, limited={"train": 9} if seed == 1 else {}) for seed in range(3)]
    assert cells(build_tables(runs))["lora", "rte"].flags == "r"
    more = [record("lora", "rte", seed, 0.8, deviations={"train.epochs": [10, 20]}) for seed in range(4)]
    assert cells(build_tables(more))["lora", "rte"].flags == ""


def test_the_best_epoch_is_shown_beside_the_primary_metric_alone():
    written = record("lora", "dialogsum", 0, 20.0, experiment="table2", metrics={"sacrebleu": 20.0, "rouge_l": 10.0},
                     primary="sacrebleu", percent=False)  # fmt: skip
    found = cells(build_tables([written]))
    assert found["lora", "dialogsum.sacrebleu"].best == 20.0 and found["lora", "dialogsum.rouge_l"].best is None


def test_rows_have_the_titles_of_the_layout_with_most_rows():
    layout = load_experiment("table1").layout
    old = {**layout, "rows": {"lora": "an older title"}}
    for records in ([record("lora", "rte", 0, 0.7, layout=old), record("full", "rte", 0, 0.8)],) * 2:
        titles = {row.name: row.title for row in build_tables(records)[0].rows}
        assert titles["lora"] == layout["rows"]["lora"] != "an older title"
        records.reverse()


def test_a_column_that_the_average_leaves_out_does_not_flag_it():
    tasks = load_experiment("table1").tasks
    runs = [record("lora", task, seed, 0.8) for task in tasks if task != "rte" for seed in range(3)]
    limited = [record("lora", "rte", seed, 0.5, limited={"train": 9}) for seed in range(3)]
    (row,) = [row for row in build_tables([*runs, *limited])[0].rows if row.cells]
    assert row.average == pytest.approx(80) and row.average_flags == "" and row.cells["rte"].flags == "r"
