import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_drop.errors import UserError
from lora_drop.pruning.scores import Scored, normalise
from lora_drop.pruning.selection import Selection, check_budget, rule_of, select

SIZE = 100


def rows(**projections: list[float]) -> list[Scored]:
    """Scored layers with importances normalised per projection, in layer order."""
    found = []
    for name, scores in projections.items():
        shares = normalise(dict(enumerate(scores)))
        found += [
            Scored(f"layer.{layer}.{name}", name, layer, scores[layer], share, SIZE) for layer, share in shares.items()
        ]
    return found


scores = st.lists(st.floats(0, 100), min_size=1, max_size=24).filter(lambda values: math.fsum(values) > 1e-6)


def test_the_example_of_a_hand():
    selection = select(rows(query=[1, 5, 3, 1], value=[1, 1, 1, 1]), threshold=0.8)
    query, value = selection.projections["query"], selection.projections["value"]
    assert (query.retained, query.shared, query.coverage) == ((1, 2), (0, 3), 0.8)
    assert value.retained == (0, 1, 2, 3)  # 0.75 < 0.8
    assert selection.trainable_parameters == (2 + 1 + 4) * SIZE


def test_ties_go_to_the_lower_layer():
    assert select(rows(query=[1, 1, 1, 1]), threshold=0.5).projections["query"].retained == (0, 1)


@given(scores, st.floats(0.01, 1))
def test_the_threshold_is_met_with_as_few_layers_as_possible(values, threshold):
    scored = rows(query=values)
    layers = select(scored, threshold=threshold).projections["query"]
    shares = {row.layer: row.importance for row in scored}
    assert sorted(layers.retained + layers.shared) == sorted(shares)
    assert len(layers.retained) >= 1
    assert layers.coverage >= threshold - 1e-9
    assert all(shares[kept] >= shares[low] for kept in layers.retained for low in layers.shared)
    if len(layers.retained) > 1 and threshold < 1:
        least = min(shares[layer] for layer in layers.retained)
        assert layers.coverage - least < threshold


@given(scores, scores)
def test_threshold_one_is_plain_lora(query, value):
    selection = select(rows(query=query, value=value), threshold=1.0)
    assert all(not layers.shared for layers in selection.projections.values())
    assert selection.trainable_parameters == (len(query) + len(value)) * SIZE


@given(scores, st.floats(0.05, 0.95), st.sampled_from(["inverse", "random", "top", "bottom"]))
def test_the_ablations_retain_as_many_layers(values, threshold, policy):
    scored = rows(query=values)
    own = select(scored, threshold=threshold).projections["query"]
    other = select(scored, threshold=threshold, policy=policy, seed=3).projections["query"]
    assert len(other.retained) == len(own.retained)
    assert len(set(other.retained + other.shared)) == len(values)


def test_inverse_top_and_bottom_choose_what_their_names_say():
    scored = rows(query=[4, 1, 3, 2])
    assert select(scored, 0.5, policy="inverse").projections["query"].retained == (1, 3)
    assert select(scored, 0.5, policy="top").projections["query"].retained == (2, 3)
    assert select(scored, 0.5, policy="bottom").projections["query"].retained == (0, 1)


@given(scores, scores, st.floats(0.05, 1))
def test_a_budget_is_kept_and_used(query, value, budget):
    scored = rows(query=query, value=value)
    try:
        selection = select(scored, budget=budget)
    except UserError:
        assume(False)
        return
    whole = len(scored) * SIZE
    assert selection.trainable_parameters <= budget * whole + 1e-6
    assert selection == select(scored, threshold=selection.threshold)
    higher = select(scored, threshold=min(1.0, selection.threshold + 1e-9))
    assert selection.threshold == 1.0 or higher.trainable_parameters > budget * whole + 1e-6


def test_a_budget_that_is_met_exactly_is_used_though_floats_fall_short():
    scored = [replace(row, parameters=9216) for row in rows(query=[1 / 2**layer for layer in range(20)])]
    assert 0.35 * (20 * 9216) < 7 * 9216
    selection = select(scored, budget=0.35)
    assert selection.trainable_parameters == 7 * 9216 and len(selection.projections["query"].retained) == 6
    check_budget([("query", 64512), ("query", 119808)], 0.35, share=False)


def test_a_budget_needs_no_layers_of_importance_0():
    selection = select(rows(query=[1, 0, 0, 0]), budget=0.6)
    assert selection.projections["query"].retained == (0,) and selection.threshold < 1
    assert selection.trainable_parameters == 2 * SIZE
    assert select(rows(query=[1, 0, 0, 0]), budget=1.0).projections["query"].retained == (0, 1, 2, 3)


def test_an_importance_that_is_no_number_is_refused():
    broken = [replace(row, importance=math.nan) if row.layer == 1 else row for row in rows(query=[1, 2, 3])]
    with pytest.raises(UserError, match=r"importance of layer\.1\.query is nan"):
        select(broken, 0.9)


def test_without_share_the_low_layers_cost_nothing():
    assert select(rows(query=[8, 1, 1]), 0.8, share=False).trainable_parameters == SIZE
    assert select(rows(query=[8, 1, 1]), 0.8).trainable_parameters == 2 * SIZE


def test_it_survives_json():
    selection = select(rows(query=[1, 5, 3, 1]), threshold=0.8)
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


@pytest.mark.parametrize(
    ("values", "options", "text"),
    [
        ([1, 2], {"threshold": 0}, "must be in"),
        ([1, 2], {"policy": "best"}, "Unknown policy 'best'"),
        ([1, 2, 3], {"budget": 0.1}, "too small: .* already need 0.667. Raise the budget to 0.67"),
        ([1, 2], {"budget": 0.9}, "already need 1.000. That is LoRA itself; with share set to false, less is needed"),
        ([1, 2], {"threshold": "0.9"}, r"The threshold must be in \(0, 1\], a number, but is '0.9'"),
        ([1, 2], {"threshold": math.nan}, r"The threshold must be in .* but is nan"),
        ([1, 2], {"budget": 0}, r"The budget must be in \(0, 1\], a number, but is 0"),
        ([1, 2], {"budget": 2}, r"The budget must be in .* but is 2"),
        ([1, 2], {"budget": "half"}, r"The budget must be in .* but is 'half'"),
        ([1, 2], {"threshold": 0.9, "budget": 0.5}, "threshold and budget exclude each other"),
        ([1, 2], {"threshold": True}, "The threshold must be in .* but is True"),
        ([1, 2], {"share": "false"}, "share must be True or False, but is 'false'"),
        ([1, 2], {"share": None}, "share must be True or False, but is None"),
    ],
)
def test_wrong_arguments(values, options, text):
    with pytest.raises(UserError, match=text):
        select(rows(query=values), **options)


def test_numbers_of_other_libraries_are_saved_as_plain_ones(tmp_path):
    scored = rows(query=[5, 4, 0.5, 0.5])
    for options in ({"threshold": np.float32(0.5)}, {"threshold": 1}, {"budget": np.float64(0.5), "share": np.False_}):
        selection = select(scored, **options)
        selection.save(tmp_path / "selection.json")
        assert Selection.load(tmp_path / "selection.json") == selection
        assert (type(selection.threshold), type(selection.share)) == (float, bool)


def test_scores_of_two_models_are_not_mixed():
    with pytest.raises(UserError, match=r"two scores of query in layer 0\. Give the scores of one model"):
        select(rows(query=[1, 2]) + rows(query=[2, 1]))


@pytest.mark.parametrize(
    ("values", "text"), [({0: 0.0, 1: 0.0}, "never|not trained"), ({0: -1.0}, "finite"), ({0: math.nan}, "finite")]
)
def test_scores_that_mean_nothing(values, text):
    with pytest.raises(UserError, match=text):
        normalise(values)


def test_neither_threshold_nor_budget_is_a_threshold_of_0_9():
    scored = rows(query=[5, 4, 0.5, 0.5])
    assert select(scored) == select(scored, 0.9) == select(scored, threshold=None, budget=None)
    assert select(scored).projections["query"].retained == (0, 1) and select(scored).threshold == 0.9
    assert rule_of({"threshold": 0.9, "budget": 0.8, "rank": 8}) == {"threshold": None, "budget": 0.8}
    assert select(scored, **rule_of({"threshold": 0.1, "budget": 0.8})) == select(scored, budget=0.8)


@pytest.mark.parametrize("given", [{"a": 1}, [0.5, 0.5], 7, None, select(rows(query=[1, 2])), "scores.json"])
def test_what_is_no_scores_is_said(given):
    with pytest.raises(UserError, match=f"select needs the Scores .* given a {type(given).__name__}"):
        select(given)


def test_nothing_to_select_from():
    with pytest.raises(UserError, match="no scores"):
        select([])


def test_a_sum_that_is_the_threshold_but_for_rounding_meets_it():
    assert select(rows(query=[7, 2, 1]), 0.9).projections["query"].retained == (0, 1)  # 0.7 + 0.2 = 0.8999999999999999


def test_coverage_is_that_of_the_layers_that_are_retained():
    scored = rows(query=[4, 1, 3, 2])
    covered = {
        policy: select(scored, 0.5, policy=policy).projections["query"].coverage
        for policy in ("threshold", "inverse", "top", "bottom")
    }
    assert covered == pytest.approx({"threshold": 0.7, "inverse": 0.3, "top": 0.5, "bottom": 0.5})


def test_random_layers_depend_on_the_seed_and_differ_between_projections():
    scored = rows(query=[1] * 12, value=[1] * 12)
    found = [select(scored, 0.5, policy="random", seed=seed).projections for seed in range(5)]
    assert found[0] == select(scored, 0.5, policy="random", seed=0).projections
    assert len({each["query"].retained for each in found}) > 1
    assert any(each["query"].retained != each["value"].retained for each in found)


def test_ties_of_the_least_important_go_to_the_lower_layer():
    assert select(rows(query=[1, 1, 1, 1]), 0.5, policy="inverse").projections["query"].retained == (0, 1)


def test_parameters_are_those_of_each_projection():
    """As where keys and values have fewer heads than queries."""
    scored = [
        replace(row, parameters=10 if row.projection == "value" else SIZE)
        for row in rows(query=[8, 1, 1], value=[4, 4, 2])
    ]
    assert select(scored, 0.8).trainable_parameters == 2 * SIZE + 3 * 10
    found = select(scored, budget=0.7)  # of 330: 231
    assert found.trainable_parameters == 230 and found.projections["query"].retained == (0,)


def test_a_budget_without_share_counts_no_shared_pair():
    scored = rows(query=[4, 3, 2, 1])
    assert select(scored, budget=0.5, share=False).projections["query"].retained == (0, 1)
    assert select(scored, budget=0.5).projections["query"].retained == (0,)


def test_a_selection_by_another_policy_survives_json():
    selection = select(rows(query=[1, 5, 3, 1]), 0.8, policy="inverse", share=False)
    assert Selection.from_json(selection.to_json()) == selection
