"""Intervals: of differences, query by query; the same draws for the same sizes."""

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import interval, paired, resampled


def test_an_interval_is_of_the_differences():
    ours, theirs = np.linspace(0, 1, 50) + 0.01, np.linspace(0, 1, 50)
    found = paired(ours - theirs)
    assert (found.mean, found.low, found.high) == pytest.approx((0.01, 0.01, 0.01))
    assert str(found) == "+0.010 [+0.010, +0.010]"


def test_what_one_question_has_in_several_collections_is_drawn_together():
    values = np.random.default_rng(0).normal(size=40)
    names = [str(number) for number in range(40)]

    once, five_times = paired(values), paired(np.tile(values, 5), questions=5 * names)

    assert five_times.mean == pytest.approx(once.mean)
    assert five_times.high - five_times.low == pytest.approx(once.high - once.low, rel=0.1)
    assert paired(np.tile(values, 5)).high - once.mean < 0.6 * (once.high - once.mean)


def test_it_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(1)
    found = [paired(draw.normal(0.3, 1, 80)) for _ in range(200)]
    assert 0.9 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.99


def test_draws_are_the_same_for_both_and_however_many_are_drawn_at_once(monkeypatch):
    ours = [np.random.default_rng(n).random(n) for n in (7, 40)]
    assert interval(resampled(ours) - resampled([one + 1 for one in ours])) == pytest.approx((-1, -1))
    before = resampled(ours, 3)
    assert not np.array_equal(before, resampled(ours, 4))
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 100)
    np.testing.assert_array_equal(before, resampled(ours, 3))
