"""Means over tasks and their intervals."""

import numpy as np
import pytest
from scipy import stats

from lora_drop.experiments.means import mean_over_tasks


def test_tasks_weigh_the_same_however_many_seeds_they_have():
    found = mean_over_tasks({"a": [1.0, 3.0], "b": [5.0, 6.0, 7.0, 6.0]})
    assert found.value == pytest.approx(4.0) and found.tasks == ("a", "b")


def test_the_intervals_are_those_of_scipy():
    one, two = [1.0, 2.0, 4.0], [0.5, 0.0, 0.2, 1.0]
    found = mean_over_tasks({"a": one, "b": [-value for value in two]})
    # the mean of two tasks' means, here with one sign changed, is half the difference that Welch's test is about
    expected = stats.ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert found.here == pytest.approx((expected.low / 2, expected.high / 2))
    means = [np.mean(one), -np.mean(two)]
    assert found.elsewhere == pytest.approx(stats.t.interval(0.95, 1, np.mean(means), stats.sem(means)))


@pytest.mark.parametrize("spreads", [(1.0, 1.0, 1.0, 1.0), (0.5, 1.5, 3.0, 0.5)])
def test_an_interval_of_three_seeds_on_four_tasks_holds_the_mean_as_often_as_it_says(spreads):
    samples = np.random.default_rng(0).normal(size=(1000, 4, 3)) * np.array(spreads)[:, None]
    found = [mean_over_tasks(dict(zip("abcd", sample.tolist(), strict=True))).here for sample in samples]
    held = [low <= 0 <= high for low, high in found]
    assert 0.93 <= np.mean(held) <= 0.98


def test_a_task_with_one_seed_takes_part_only_where_no_task_has_several():
    found = mean_over_tasks({"a": [1.0, 2.0], "b": [9.0]})
    assert (found.value, found.tasks, found.elsewhere) == (1.5, ("a",), None) and found.here is not None
    single = mean_over_tasks({"a": [1.0], "b": [2.0]})
    assert (single.value, single.tasks, single.here) == (1.5, ("a", "b"), None) and single.elsewhere is not None
    assert mean_over_tasks({"a": [1.0, 1.0], "b": [2.0, 2.0]}).here == (1.5, 1.5)
