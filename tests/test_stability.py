"""The bootstrap of the importances."""

import numpy as np
import pytest

from lora_drop.errors import UserError
from lora_drop.pruning.scores import Scored, rescored
from lora_drop.pruning.stability import bootstrap

NAMES = [("query", 0), ("query", 1), ("query", 2)]


def rows(scores):
    blank = [Scored(f"{name}.{layer}", name, layer, 1.0, 0.0, 10) for name, layer in NAMES]
    return rescored(blank, scores)


def test_equal_examples_leave_no_doubt():
    norms = {"query.0": [6.0] * 20, "query.1": [3.0] * 20, "query.2": [1.0] * 20}
    found = bootstrap(rows([6, 3, 1]), norms, 50, threshold=0.9)
    assert [entry["retained"] for entry in found] == [1, 1, 0]
    assert [entry["low"] for entry in found] == pytest.approx([0.6, 0.3, 0.1])
    assert [entry["high"] for entry in found] == pytest.approx([0.6, 0.3, 0.1])


def test_the_interval_is_that_of_the_ratio_of_means():
    """Against a plain resampling of the ratio Σ of one layer / Σ of all."""
    generator = np.random.default_rng(5)
    data = generator.gamma(2.0, [[3.0], [2.0], [1.0]], size=(3, 400))
    norms = {f"query.{layer}": data[layer].tolist() for layer in range(3)}
    found = bootstrap(rows(data.mean(axis=1).tolist()), norms, 2000, threshold=0.7, seed=1)
    draws = generator.integers(400, size=(2000, 400))
    ratios = np.array([data[0, chosen].sum() / data[:, chosen].sum() for chosen in draws])
    assert found[0]["low"] == pytest.approx(np.percentile(ratios, 2.5), abs=0.003)
    assert found[0]["high"] == pytest.approx(np.percentile(ratios, 97.5), abs=0.003)
    assert found[0]["importance"] == pytest.approx(data[0].sum() / data.sum())
    assert found[0]["retained"] == 1 and 0 <= found[2]["retained"] < 0.1


def test_a_close_call_is_seen_as_one_and_a_seed_repeats_it():
    generator = np.random.default_rng(0)
    data = generator.gamma(1.0, 1.0, size=(3, 100))
    norms = {f"query.{layer}": data[layer].tolist() for layer in range(3)}
    found = bootstrap(rows(data.mean(axis=1).tolist()), norms, 300, budget=0.7)
    assert sum(entry["retained"] for entry in found) == pytest.approx(1, abs=0.01)  # one retained, one shared
    assert max(entry["retained"] for entry in found) < 1
    assert found == bootstrap(rows(data.mean(axis=1).tolist()), norms, 300, budget=0.7)


def test_layers_are_retained_by_the_policy():
    norms = {"query.0": [6.0] * 20, "query.1": [3.0] * 20, "query.2": [1.0] * 20}
    found = bootstrap(rows([6, 3, 1]), norms, 10, threshold=0.5, policy="inverse")
    assert [entry["retained"] for entry in found] == [0, 0, 1]


@pytest.mark.parametrize(("examples", "resamples"), [(1, 10), (5, 0)])
def test_nothing_to_resample_is_refused(examples, resamples):
    with pytest.raises(UserError, match="Cannot resample"):
        bootstrap(rows([1, 1, 1]), {f"query.{layer}": [1.0] * examples for layer in range(3)}, resamples)


def test_resamples_follow_seed_and_number_and_a_budget_knows_what_is_shared():
    data = np.random.default_rng(0).gamma(1.0, 1.0, size=(3, 50))
    norms = {f"query.{layer}": data[layer].tolist() for layer in range(3)}
    scored = rows(data.mean(axis=1).tolist())
    one, other = (bootstrap(scored, norms, 150, threshold=1.0, seed=seed) for seed in (0, 1))
    assert [entry["retained"] for entry in one] == [1, 1, 1] and one != other  # 150: a chunk and a half
    shared, none = (bootstrap(scored, norms, 20, budget=0.7, share=share) for share in (True, False))
    assert [sum(entry["retained"] for entry in each) for each in (shared, none)] == pytest.approx([1, 2])
    drawn = [bootstrap(scored, norms, 10, threshold=0.3, policy="random", seed=seed) for seed in range(4)]
    assert len({tuple(entry["retained"] for entry in each) for each in drawn}) > 1
