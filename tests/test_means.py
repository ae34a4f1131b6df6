"""Means over tasks and their intervals."""

import numpy as np
import pytest
from scipy import stats

from lora_drop.experiments.means import mean_over_tasks, seeds_to_tell


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


def test_so_many_seeds_would_tell_a_mean_from_a_bound():
    values = {"a": [1.0, 2.0, 3.0], "b": [0.0, 2.0, 4.0]}  # variances 1 and 4, mean 2
    for bound in (1.0, 0.0, -3.0):
        seeds = seeds_to_tell(values, bound)
        for count, told in ((seeds - 1, False), (seeds, True)):
            if count > 1:
                degrees = (5 / count) ** 2 / (17 / count**2 / (count - 1))
                half = stats.t.ppf(0.975, degrees) * np.sqrt(5 / count) / 2
                assert bool(2 - half > bound) is told
    assert seeds_to_tell(values, 1.0) > seeds_to_tell(values, -3.0)
    assert seeds_to_tell(values, 1.9) is None  # more than a hundred
    assert seeds_to_tell({"a": [1.0], "b": [2.0]}, 0.0) is None


def test_the_seeds_that_would_tell_are_counted_from_two_to_a_hundred_on_both_sides_of_the_mean():
    values = {"a": [1.0, 2.0, 3.0], "b": [0.0, 2.0, 4.0]}

    def half(count):
        degrees = (5 / count) ** 2 / (17 / count**2 / (count - 1))
        return stats.t.ppf(0.975, degrees) * np.sqrt(5 / count) / 2

    for count, told in ((2, 2), (7, 7), (100, 100), (101, None)):
        for side in (-1, 1):
            assert seeds_to_tell(values, 2 + side * 1.0001 * half(count)) == told
