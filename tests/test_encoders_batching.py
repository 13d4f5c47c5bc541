from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoders.batching import plan_batches

lengths = st.lists(st.integers(1, 600), max_size=200)
budgets = st.integers(1, 4096)


@given(lengths, budgets)
def test_every_input_is_in_exactly_one_batch(lengths, budget):
    batches = plan_batches(lengths, budget)

    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))


@given(lengths, budgets)
def test_no_batch_of_several_inputs_is_larger_than_the_budget(lengths, budget):
    for batch in plan_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


@given(lengths, budgets)
def test_batches_hold_neighbours_in_length(lengths, budget):
    batches = plan_batches(lengths, budget)

    for longer, shorter in itertools.pairwise(batches):
        assert min(lengths[index] for index in longer) >= max(lengths[index] for index in shorter)


@given(lengths, budgets)
def test_no_batch_had_room_for_the_next_input(lengths, budget):
    batches = plan_batches(lengths, budget)

    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[index] for index in batch) > budget


def test_padding_of_mixed_lengths_is_small():
    lengths = [8 + (index * 37) % 249 for index in range(700)]

    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in plan_batches(lengths, 1024))

    assert padded < 1.02 * sum(lengths)


def test_equal_lengths_keep_their_order():
    assert plan_batches([5, 5, 5, 9], 10) == [[3], [0, 1], [2]]
