"""Slopes of scores over the importance retained, against cases known exactly."""

from dataclasses import replace

import pytest
from measured import record

from lora_drop.experiments.grid import load_experiment
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.retained import choices, slopes, slopes_told
from lora_drop.experiments.table import build_tables
from lora_drop.registry import FIGURES


def chosen(policy, task, seed, score, coverage, *, budget=0.5, held_out=None):
    """A run of LoRA-drop whose layers hold this share of the importance: of query a tenth more, of value a tenth less."""
    rows = {f"{each} {budget}": each for each in ("threshold", "random", "inverse")}
    parts = {"query": coverage + 0.1, "value": coverage - 0.1}
    kept = {name: {"retained": [1], "shared": [0], "coverage": part} for name, part in parts.items()}
    made = record(
        f"{policy} {budget}",
        task,
        seed,
        score,
        layout={**load_experiment("table1").layout, "figures": ["retained"], "rows": rows},
        config={"task": task, "seed": seed, "method": {"name": "lora_drop", "policy": policy, "budget": budget}},
        selection={"projections": kept},
    )
    return replace(made, epochs=[{"epoch": 3, "held_out": held_out}]) if held_out is not None else made


def three(task, seed, scores):
    """The runs of one task and seed that retain 80, 50 and 20 % of the importance."""
    policies = (("threshold", 0.8), ("random", 0.5), ("inverse", 0.2))
    return [chosen(name, task, seed, score, at) for (name, at), score in zip(policies, scores, strict=True)]


def table(*records):
    return build_tables(list(records))[0]


def test_slopes_are_those_of_the_runs_of_a_task_and_seed():
    pair = [chosen("threshold", "mrpc", 0, 0.8, 0.75), chosen("inverse", "mrpc", 0, 0.82, 0.25)]
    on_a_line, beside_it = three("rte", 0, (0.76, 0.70, 0.64)), three("rte", 1, (0.70, 0.73, 0.64))
    found = slopes(choices(table(*on_a_line, *beside_it, *pair)))
    assert found.by_task == {"MRPC": [pytest.approx(-0.4)], "RTE": [pytest.approx(2.0), pytest.approx(1.0)]}
    assert found.mean.value == pytest.approx(1.5)  # of RTE alone: MRPC has one seed


def test_only_runs_that_differ_in_the_policy_alone_are_compared():
    runs = [chosen("threshold", "rte", 0, 0.7, 0.8), chosen("inverse", "rte", 0, 0.6, 0.2)]
    other_budget, alone = chosen("threshold", "rte", 0, 0.9, 0.1, budget=0.3), chosen("threshold", "mrpc", 0, 0.9, 0.9)
    (group,) = choices(table(*runs, other_budget, alone))
    assert {each.row for each in group} == {"threshold 0.5", "inverse 0.5"}
    assert choices(table(chosen("threshold", "rte", 0, 0.7, 0.5), chosen("random", "rte", 0, 0.6, 0.5))) == []


def test_runs_from_before_a_key_existed_are_compared_with_later_ones():
    older, *later = three("rte", 0, (0.76, 0.70, 0.64))
    later = [replace(each, config={**each.config, "train": {"max_grad_norm": 1.0}}) for each in later]  # the default
    (group,) = choices(table(older, *later))
    assert len(group) == 3


def test_slopes_are_in_the_report_also_on_held_out_rows_and_drawn():
    runs = [
        replace(each, epochs=[{"epoch": 3, "held_out": 1 - each.metrics["accuracy"] / 2}])
        for task, scores in (("rte", (0.74, 0.65, 0.56)), ("mrpc", (0.88, 0.85, 0.82)))
        for seed in (0, 1)
        for each in three(task, seed, scores)
    ]
    measured = table(*runs)
    text = to_markdown([measured])
    assert "| RTE | +3.00 +3.00 | −1.50 −1.50 |" in text and "| MRPC | +1.00 +1.00 | −0.50 −0.50 |" in text
    assert "| mean over tasks | +2.00 | −1.00 |" in text and "| 95 %, these tasks | +2.00 to +2.00 |" in text
    assert [name for name, _ in slopes_told(measured)] == ["evaluation split", "held-out rows"]
    figure = FIGURES.get("retained").of(measured)
    assert {axis.get_title() for axis in figure.axes} == {"MRPC: +1.00 per 10 %", "RTE: +3.00 per 10 %"}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["most important layers", "least important layers", "random layers"]


def test_runs_that_nothing_is_compared_with_have_no_slope():
    alone = table(chosen("threshold", "rte", 0, 0.7, 0.8))
    assert FIGURES.get("retained").of(alone) is None and "Does the score rise" not in to_markdown([alone])


def test_the_setting_with_the_most_policies_is_compared_whichever_comes_first():
    other = chosen("threshold", "rte", 0, 0.9, 0.1, budget=0.3)
    (group,) = choices(table(other, *three("rte", 0, (0.76, 0.70, 0.64))))
    assert {each.row for each in group} == {"threshold 0.5", "random 0.5", "inverse 0.5"}


def test_runs_that_differ_in_sharing_too_are_not_compared():
    one, other = chosen("threshold", "rte", 0, 0.7, 0.8), chosen("inverse", "rte", 0, 0.6, 0.2)
    other = replace(other, config={**other.config, "method": {**other.config["method"], "share": False}})
    assert choices(table(one, other)) == []


def test_slopes_need_a_task_in_which_something_was_learnt_and_a_score_of_every_run():
    at_chance = three("rte", 0, (0.53, 0.52, 0.51))
    assert choices(table(*at_chance)) == []
    runs = three("rte", 0, (0.76, 0.70, 0.64))
    some = [replace(each, epochs=[{"epoch": 3, "held_out": 0.7}]) for each in runs[:2]]
    assert slopes(choices(table(*some, runs[2])), lambda each: next((e["held_out"] for e in each.epochs), None)) is None


def test_slopes_of_texts_are_in_their_own_unit():
    runs = [replace(each, percent=False) for each in three("rte", 0, (0.76, 0.70, 0.64))]
    assert slopes(choices(table(*runs))).mean.value == pytest.approx(0.02)
