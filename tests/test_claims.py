"""Claims about two rows, judged by paired differences."""

from dataclasses import replace

import pytest
from measured import record

from lora_drop.errors import UserError
from lora_drop.experiments.claims import judge
from lora_drop.experiments.grid import load_experiment
from lora_drop.experiments.markdown import to_markdown
from lora_drop.experiments.means import seeds_to_tell
from lora_drop.experiments.table import build_tables
from lora_drop.registry import FIGURES


def claimed(differences, margin=None, base=0.8, tasks=("mrpc", "rte")):
    """Records of two rows on two tasks whose accuracies differ by these, in points; and one row without a partner."""
    claim = {"says": "A is better than B", "row": "lora_drop", "against": "lora"}
    claim |= {} if margin is None else {"margin": margin}
    layout = {**load_experiment("table1").layout, "claims": {"one": claim}}
    made = [record("lora_drop", "sst2", 9, 0.9, layout=layout)]
    for number, points in enumerate(differences):
        task, seed = tasks[number % 2], number // 2
        made.append(record("lora", task, seed, base, layout=layout))
        made.append(record("lora_drop", task, seed, base + points / 100, layout=layout))
    return build_tables(made)[0]


@pytest.mark.parametrize(
    ("differences", "margin", "verdict"),
    [
        ((1.0, 2.0, 1.5, 1.0, 2.0, 1.2), None, "held"),
        ((-1.0, -2.0, -1.5, -1.0, -2.0, -1.2), None, "not held"),
        ((-1.0, 2.0, -1.5, 1.0, -2.0, 1.2), None, "undecided"),
        ((-0.1, -0.2, 0.1, -0.1, 0.0, 0.1), 0.5, "held"),
        ((-0.1, -0.2, 0.1, -0.1, 0.0, 0.1), None, "undecided"),
        ((-1.1, -1.2, -0.9, -1.1, -1.0, -0.9), 0.5, "not held"),
        ((1.0, 2.0, 1.5), None, "undecided"),  # one task has a single seed, so the other is alone
    ],
)
def test_a_claim_is_judged_by_paired_differences(differences, margin, verdict):
    (found,) = judge(claimed(differences, margin))
    assert found.verdict == verdict
    by_task = {"mrpc": list(differences[::2]), "rte": list(differences[1::2])}
    assert {task: pytest.approx(values) for task, values in found.differences.items()} == by_task
    assert found.mean.tasks == (("mrpc", "rte") if len(differences) > 3 else ("mrpc",))


def test_a_claim_is_in_the_report_and_drawn():
    table = claimed((1.0, 2.0, 1.5, 1.0, 2.0, 1.2))
    text = to_markdown([table])
    line = next(line for line in text.splitlines() if line.startswith("| A is better"))
    what, pairs = "| A is better than B | LoRA-drop against LoRA | +1.5 |", "| 6 (2) | held |  |"
    assert line == f"{what} +0.9 to +2.0 | +0.8 to +2.1 {pairs}"
    assert FIGURES.get("claims").of(table) is not None
    bare = build_tables([record("lora", "mrpc", 0, 0.8)])[0]
    assert "Claims" not in to_markdown([bare]) and FIGURES.get("claims").of(bare) is None


def test_a_claim_that_nothing_decides_is_named():
    """At chance, a column takes no part in any verdict."""
    text = to_markdown([claimed((0.0,) * 6, base=0.5)])
    assert "Not judged, because no two runs" in text and "compare it: A is better than B." in text
    assert "Not judged" not in to_markdown([claimed((1.0,) * 6)])


def test_a_claim_is_judged_again_on_rows_that_have_chosen_nothing():
    table = claimed((1.0, 2.0, 1.5, 1.0, 2.0, 1.2))
    lower = {("lora", "mrpc"): 0.70, ("lora", "rte"): 0.60, ("lora_drop", "mrpc"): 0.69, ("lora_drop", "rte"): 0.60}

    def with_epochs(each, chosen="best"):
        aside = lower.get((each.row, each.task), 0.5) + each.seed / 100
        epochs = [{"epoch": 1.0, "held_out": 0.9}, {"epoch": 2.0, "held_out": aside}]
        return replace(each, epochs=epochs, kept_epoch=2.0, select_epoch=chosen)

    both = build_tables([with_epochs(each) for each in table.records])[0]
    (found,) = judge(both)
    assert found.verdict == "held" and found.held_out.differences == {
        "mrpc": pytest.approx([-1.0] * 3),
        "rte": pytest.approx([0.0] * 3, abs=1e-9),
    }
    line = next(line for line in to_markdown([both]).splitlines() if line.startswith("| A is better"))
    assert line.endswith("| 6 (2) | held | −0.5 | −0.5 to −0.5 | not held |  |")
    chosen = build_tables([with_epochs(each, "held_out") for each in table.records])[0]
    assert judge(chosen)[0].held_out is None and judge(table)[0].held_out is None


def test_an_undecided_claim_says_how_many_seeds_would_decide_it():
    table = claimed((-1.0, 2.0, 2.0, 1.0, 2.0, 1.2))
    (found,) = judge(table)
    assert found.verdict == "undecided" and found.seeds > 3
    assert f"| undecided | {found.seeds} |" in to_markdown([table])


def test_tasks_in_which_nothing_was_learnt_decide_no_claim():
    table = claimed((0.1, -0.2, 0.1, 0.3, 0.1, -0.2), base=0.53, tasks=("rte", "sst2"))
    assert {column.task for column in table.columns if column.learnt} >= {"sst2"}
    (found,) = judge(table)
    assert [len(values) for values in found.differences.values()] == [3] and found.verdict == "undecided"


def test_a_task_is_judged_by_its_primary_metric_whatever_else_is_shown():
    found = [record(row, "mrpc", 0, 0.68, metrics={"accuracy": 0.68, "f1": 0.81}) for row in ("lora", "lora_drop")]
    layout = {**found[0].layout, "metrics": ["accuracy", "f1"]}
    table = build_tables([replace(each, layout=layout, examples=408) for each in found])[0]
    assert [(column.metric, column.learnt) for column in table.columns if column.task == "mrpc"] == [
        ("accuracy", False),
        ("f1", True),  # it has no bound
    ]
    assert table.learnt == set()


def test_a_claim_is_judged_also_if_some_records_are_older_than_it():
    table = claimed((1.0, 2.0, 1.5, 1.0, 2.0, 1.2))
    old = replace(
        table.records[0], layout={key: value for key, value in table.records[0].layout.items() if key != "claims"}
    )
    (found,) = judge(build_tables([old, *table.records[1:]])[0])
    assert found.verdict == "held"


def test_mistakes_in_claims_are_said(tmp_path):
    rows = "rows: {a: {title: A}, b: {title: B}}\ntasks: [rte]\n"
    path = tmp_path / "mine.yaml"
    path.write_text(rows + "claims: {x: {says: s, row: c, against: a}, y: {says: s, row: a}}\n")
    with pytest.raises(
        UserError, match=r"claims\.x\.row = 'c': must be one of a, b(.|\n)*claims\.y: needs says, row and"
    ):
        load_experiment(str(path))
    for margin in ("small", "-1", "100.5", "true", ".nan"):
        path.write_text(rows + f"claims: {{x: {{says: s, row: a, against: b, margin: {margin}}}}}\n")
        with pytest.raises(UserError, match=r"claims\.x\.margin = .*a number from 0 to 100"):
            load_experiment(str(path))
    path.write_text(rows + "claims: {x: {says: s, row: [a], against: b}}\n")
    with pytest.raises(UserError, match=r"claims\.x\.row = \['a'\]: must be one of"):
        load_experiment(str(path))


def test_one_task_decides_no_claim_however_close_its_seeds_are():
    runs = [
        record(row, "mrpc", seed, score) for row, score in (("lora", 0.80), ("lora_drop", 0.82)) for seed in range(3)
    ]
    claim = {"says": "x", "row": "lora_drop", "against": "lora"}
    layout = {**load_experiment("table1").layout, "claims": {"one": claim}}
    spread = [
        replace(
            each,
            layout=layout,
            metrics={"accuracy": each.metrics["accuracy"] + each.seed**2 / 1000 * (each.row == "lora")},
        )
        for each in runs
    ]
    (found,) = judge(build_tables(spread)[0])
    assert found.mean.here[0] > 0 and found.verdict == "undecided"


def test_rows_that_score_exactly_alike_decide_nothing():
    """LoRA-drop that drops nothing is plain LoRA: all differences are 0, and so is the width of the interval."""
    (found,) = judge(claimed((0.0,) * 6))
    assert found.mean.here == (0.0, 0.0) and found.verdict == "undecided"


def test_differences_of_texts_are_in_their_own_unit():
    runs = [replace(each, percent=False) for each in claimed((1.0, 2.0, 1.5, 1.0, 2.0, 1.2)).records]
    (found,) = judge(build_tables(runs)[0])
    assert found.differences["mrpc"] == pytest.approx([0.010, 0.015, 0.020])


def test_a_claim_compares_the_epochs_that_were_kept():
    """Neither the best epochs nor, on held-out rows, the last ones."""

    def kept_first(each):
        shift = each.row == "lora_drop"
        epochs = [{"epoch": 1.0, "held_out": 0.6 + 0.1 * shift}, {"epoch": 2.0, "held_out": 0.9}]
        return replace(each, kept_epoch=1.0, epochs=epochs, best={"epoch": 2, "score": 0.95}, select_epoch="last")

    (found,) = judge(build_tables([kept_first(each) for each in claimed((1.0,) * 6).records])[0])
    assert found.differences["rte"] == pytest.approx([1.0] * 3)
    assert found.held_out.differences["rte"] == pytest.approx([10.0] * 3)


def test_the_seeds_that_would_decide_a_claim_are_those_that_its_margin_needs():
    (found,) = judge(claimed((-0.8, -0.3, 0.4, -0.1, -0.6, 0.2), margin=0.5))
    assert found.verdict == "undecided"
    assert found.seeds == seeds_to_tell(found.differences, -0.5) != seeds_to_tell(found.differences, 0.0)


def test_a_claim_compares_the_primary_metric_whichever_comes_first():
    runs = [replace(each, metrics={"f1": 0.9, **each.metrics}) for each in claimed((1.0,) * 6).records]
    (found,) = judge(build_tables(runs)[0])
    assert found.differences["rte"] == pytest.approx([1.0] * 3)
