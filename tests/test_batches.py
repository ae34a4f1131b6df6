"""The rows of a batch, dealt to several devices."""

import math

import pytest
import torch

from lora_drop.data.batches import LengthGroups, MicroBatches, split_batch
from lora_drop.errors import UserError
from lora_drop.pruning.criteria.base import Measured


def lengths(rows):
    return torch.randint(1, 100, (rows,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize(("total", "limit", "devices"), [(32, None, 4), (32, 3, 4), (30, 4, 4), (7, 2, 3), (5, 1, 5)])
def test_a_batch_is_split_over_devices_within_their_limit(total, limit, devices):
    at_a_time, steps = split_batch(total, limit, devices)
    assert at_a_time <= (limit or total) and at_a_time * steps == math.ceil(total / devices)


def test_fewer_rows_than_devices_are_refused():
    with pytest.raises(UserError, match="leaves 2 of 8 processes without one"):
        split_batch(6, None, 8)


@pytest.mark.parametrize("rows", [64, 61, 50, 33, 3])
@pytest.mark.parametrize(("batch", "limit"), [(16, None), (16, 1), (16, 3), (14, 2)])
@pytest.mark.parametrize("devices", [1, 2, 3])
def test_all_devices_together_have_each_batch_once_and_wait_for_each_other_as_often(rows, batch, limit, devices):
    order = LengthGroups(lengths(rows), batch, seed=0)
    at_a_time, passes = split_batch(batch, limit, devices)
    dealt = [MicroBatches(order, at_a_time, devices, device) for device in range(devices)]
    found = [list(parts) for parts in dealt]
    assert {len(parts) for parts in found} == {len(parts) for parts in dealt} and len(set(map(len, found))) == 1
    expected = list(order)
    for start in range(0, rows, batch):
        here = [parts[start // batch * passes : (start // batch + 1) * passes] for parts in found]
        real = [part for parts in here for part in parts if part.weight]
        whole = expected[start : start + batch]
        assert sorted(row for part in real for row in part.rows) == sorted(whole)
        assert all(1 <= len(part.rows) <= at_a_time for parts in here for part in parts)
        # the mean of the parts' means, so weighed, is the mean over all rows
        values = {row: float(row + 1) for row in whole}
        weighed = [
            part.weight * sum(values[row] for row in part.rows) / len(part.rows) for parts in here for part in parts
        ]
        assert sum(weighed) / len(weighed) == pytest.approx(sum(values.values()) / len(whole))
        if devices == 1:
            assert [row for part in real for row in part.rows] == whole


def test_parts_of_one_size_weigh_exactly_one():
    parts = MicroBatches(LengthGroups(lengths(98), 49, seed=0), at_a_time=1)
    assert {part.weight for part in parts} == {1.0}


def test_devices_have_alike_numbers_of_tokens_in_a_step():
    tokens = lengths(3200)
    order = LengthGroups(tokens, 32, seed=0)
    sums = [
        [sum(tokens[row] for row in part.rows) for part in MicroBatches(order, 8, devices=4, device=device)]
        for device in range(4)
    ]
    spread = [(max(step) - min(step)) / max(step) for step in zip(*sums, strict=True)]
    assert sum(spread) / len(spread) < 0.01


def test_means_over_shares_of_the_examples_add_up():
    one = Measured({"a": 2.0, "b": 3.0}, examples=3, tokens=30, norms={"a": [1.0, 2.0, 3.0], "b": [3.0, 3.0, 3.0]})
    other = Measured({"a": 6.0, "b": 1.0}, examples=1, tokens=5, norms={"a": [6.0], "b": [1.0]})
    both = one + other
    assert both.values == {"a": 3.0, "b": 2.5} and (both.examples, both.tokens) == (4, 35)
    assert both.norms == {"a": [1.0, 2.0, 3.0, 6.0], "b": [3.0, 3.0, 3.0, 1.0]}
    assert (one + Measured()).values == (Measured() + one).values == one.values  # a process without a batch


def test_the_order_of_batches_follows_seed_and_epoch():
    def order(seed, epoch, lengths):
        groups = LengthGroups(lengths, 4, seed)
        groups.set_epoch(epoch)
        return list(groups)

    alike, mixed = [5] * 403, [1 + number % 50 for number in range(403)]
    orders = [order(seed, epoch, alike) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(map(tuple, orders))) == 4 and orders[0] != sorted(orders[0])
    assert order(0, 2, alike) != order(1, 1, alike) and order(1, 0, alike) != order(0, 1, alike)
    longest = [max(mixed[row] for row in order(0, epoch, mixed)[:4]) for epoch in range(8)]
    assert longest[0] == 50 and min(longest[1:]) < 50  # only the first epoch begins with the longest batch
    firsts = [mixed[row] for row in order(0, 1, mixed)[:200:4]]
    assert firsts != sorted(firsts, reverse=True)


def test_the_rows_of_a_batch_are_others_in_each_epoch():
    """Also where no two rows have the same length: they are sorted in parts of the epoch alone."""

    def batches(epoch):
        groups = LengthGroups(list(range(3200)), 32, seed=0)
        groups.set_epoch(epoch)
        order = list(groups)
        return {frozenset(order[start : start + 32]) for start in range(0, 3200, 32)}

    assert len(batches(1) & batches(2)) < 5


def test_a_smaller_last_batch_has_the_shortest_rows():
    groups = LengthGroups([7, 3, 10, 1, 9, 5, 2, 8, 6, 4], 4, seed=0)
    for epoch in range(5):
        groups.set_epoch(epoch)
        assert {groups.lengths[row] for row in list(groups)[8:]} == {1, 2}
