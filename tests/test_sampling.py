from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_drop.errors import UserError
from lora_drop.sampling import stratified_sample

strata_lists = st.lists(st.sampled_from("abcde"), min_size=1, max_size=200)


@given(strata_lists, st.floats(0.01, 1), st.integers(0, 5))
@settings(deadline=None, max_examples=150)
def test_indices_are_distinct_in_range_and_every_stratum_is_there(strata, ratio, seed):
    size = max(1, round(ratio * len(strata)))
    sample = stratified_sample(strata, size, seed)
    assert list(sample.indices) == sorted(set(sample.indices))
    assert set(sample.indices) <= set(range(len(strata)))
    drawn = Counter(strata[index] for index in sample.indices)
    assert set(drawn) == set(strata)
    assert sample.strata == {name: (strata.count(name), drawn[name]) for name in sorted(set(strata))}
    assert size <= len(sample.indices) + len(set(strata)) and len(sample.indices) <= size + len(set(strata))


@given(st.lists(st.sampled_from("ab"), min_size=40, max_size=300), st.integers(0, 3))
@settings(deadline=None)
def test_shares_are_kept_to_within_one_row(strata, seed):
    sample = stratified_sample(strata, len(strata) // 4, seed)
    for total, taken in sample.strata.values():
        assert abs(taken - total / 4) <= 1.5


def test_the_same_seed_gives_the_same_rows_and_another_seed_others():
    strata = ["a", "b"] * 100
    assert stratified_sample(strata, 20, 1) == stratified_sample(strata, 20, 1)
    assert stratified_sample(strata, 20, 1).indices != stratified_sample(strata, 20, 2).indices


def test_a_single_row_stratum_is_kept_and_said():
    sample = stratified_sample(["a"] * 99 + ["rare"], 10, 0)
    assert 99 in sample.indices and sample.raised == ["rare"] and len(sample.indices) == 10


def test_the_whole_population():
    assert stratified_sample(["a", "b", "b"], 3, 0).indices == (0, 1, 2)


@pytest.mark.parametrize(
    ("strata", "size", "text"), [([], 1, "no rows"), (["a"], 2, "2 of 1 rows"), (["a"], 0, "0 of 1 rows")]
)
def test_impossible_sizes(strata, size, text):
    with pytest.raises(UserError, match=text):
        stratified_sample(strata, size, 0)
