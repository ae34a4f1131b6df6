import math
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_drop.errors import UserError
from lora_drop.sampling import stratified_sample

strata_lists = st.lists(st.sampled_from("abcde"), min_size=1, max_size=200)


@given(strata_lists, st.floats(0.01, 1), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_a_sample_has_exactly_its_size_and_every_stratum_its_share(strata, ratio, seed):
    size = max(1, round(ratio * len(strata)))
    sample = stratified_sample(strata, size, seed)
    assert len(sample.indices) == size and list(sample.indices) == sorted(set(sample.indices))
    assert set(sample.indices) <= set(range(len(strata)))
    drawn = Counter(strata[index] for index in sample.indices)
    assert sample.strata == {name: (strata.count(name), drawn[name]) for name in sorted(set(strata))}
    for total, taken in sample.strata.values():  # the share itself, rounded up or down
        assert (
            math.floor(Fraction(total * size, len(strata))) <= taken <= math.ceil(Fraction(total * size, len(strata)))
        )


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    strata = ["a", "b"] * 100
    assert stratified_sample(strata, 20, 1) == stratified_sample(strata, 20, 1)
    assert stratified_sample(strata, 20, 1).indices != stratified_sample(strata, 20, 2).indices


def test_rows_go_to_the_largest_remainders():
    strata = ["a"] * 50 + ["b"] * 26 + ["c"] * 17 + ["d"] * 7  # of 10 rows: 5.0, 2.6, 1.7 and 0.7
    assert stratified_sample(strata, 10, 0).strata == {"a": (50, 5), "b": (26, 2), "c": (17, 2), "d": (7, 1)}


def test_more_strata_than_rows():
    """Which of equal strata are left out is up to the seed, not to their names; and it is said."""
    strata = [name for name in "abcdefgh" for _ in range(3)]
    samples = [stratified_sample(strata, 5, seed) for seed in range(40)]
    assert all(len(sample.indices) == 5 and len(sample.absent) == 3 for sample in samples)
    assert {name for sample in samples for name in sample.absent} == set("abcdefgh")


def test_a_rare_stratum_without_a_row_is_said():
    sample = stratified_sample(["a"] * 99 + ["rare"], 10, 0)
    assert sample.absent == ["rare"] and sample.strata == {"a": (99, 10), "rare": (1, 0)}


def test_the_whole_population():
    assert stratified_sample(["a", "b", "b"], 3, 0).indices == (0, 1, 2)


@pytest.mark.parametrize(
    ("strata", "size", "text"), [([], 1, "no rows"), (["a"], 2, "2 of 1 rows"), (["a"], 0, "0 of 1 rows")]
)
def test_impossible_sizes(strata, size, text):
    with pytest.raises(UserError, match=text):
        stratified_sample(strata, size, 0)
