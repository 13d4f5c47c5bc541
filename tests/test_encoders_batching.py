from __future__ import annotations

from itertools import pairwise

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

    for longer, shorter in pairwise(batches):
        assert min(lengths[index] for index in longer) >= max(lengths[index] for index in shorter)


@given(lengths, budgets)
def test_several_inputs_are_padded_by_a_64th_of_the_budget_at_most(lengths, budget):
    for batch in plan_batches(lengths, budget):
        longest = max(lengths[index] for index in batch)
        assert sum(longest - lengths[index] for index in batch) <= budget / 64


@given(lengths, budgets)
def test_a_batch_ends_only_where_the_next_input_does_not_fit(lengths, budget):
    batches = plan_batches(lengths, budget)

    for batch, following in pairwise(batches):
        longest = max(lengths[index] for index in batch)
        padding = sum(longest - lengths[index] for index in [*batch, following[0]])
        assert (len(batch) + 1) * longest > budget or padding > budget / 64


def test_padding_of_mixed_lengths_is_small_and_batches_stay_few():
    lengths = [8 + (index * 37) % 249 for index in range(140)]

    batches = plan_batches(lengths, 1024)

    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in batches)
    assert padded < 1.03 * sum(lengths)
    assert len(batches) < 2.5 * sum(lengths) / 1024


def test_equal_lengths_keep_their_order():
    assert plan_batches([5, 5, 5, 9], 10) == [[3], [0, 1], [2]]
