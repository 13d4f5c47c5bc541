"""What passes, what holds and what fails, decided from values alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.bootstrap import paired
from pipeline.upgrade.decision import Check, exit_code_of, judge_difference, judge_share, outcome_of

differences = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=60).map(np.array)


@given(differences, st.floats(0, 0.2), st.integers(2, 40), st.floats(0, 0.3))
def test_only_what_is_certain_passes(values, tolerance, least, lost):
    found = paired(values)
    assert found.low <= found.mean + 1e-9
    assert found.mean <= found.high + 1e-9
    outcome, sentence = judge_difference(found, tolerance, least, lost)
    if len(values) < least:
        assert (outcome, str(least) in sentence) == ("hold", True)
    elif found.high < 0:
        assert outcome == ("fail" if found.high < -lost else "hold")
    else:
        assert (outcome == "pass") == (found.low >= -tolerance)


@given(st.lists(st.sampled_from(["pass", "hold", "fail"]), max_size=6))
def test_a_verdict_is_its_worst_check(outcomes):
    verdict = outcome_of([Check("c", one, None, "", "") for one in outcomes])
    order = ["pass", "hold", "fail"]
    assert verdict == max(outcomes, key=order.index, default="hold")
    assert exit_code_of(verdict) == {"pass": 0, "hold": 5, "fail": 6}[verdict]


def test_equal_is_not_worse_and_a_little_but_certainly_worse_is():
    assert judge_difference(paired(np.zeros(30)), 0, 20)[0] == "pass"
    assert judge_difference(paired(np.full(30, -0.001)), 0.01, 20)[0] == "fail"
    assert judge_difference(paired(np.full(30, 0.2)), 0, 20)[0] == "pass"


def test_undecided_says_how_many_queries_are_needed():
    values = np.tile([0.3, -0.3, 0.1, -0.1], 10)
    outcome, sentence = judge_difference(paired(values), 0.01, 20)
    assert outcome == "hold"
    needed = int(sentence.split("about ")[1].split(" queries")[0].replace(",", ""))
    assert needed > 1000
    # So many of the same kind decide it.
    assert judge_difference(paired(np.tile(values, needed // 40 + 1)), 0.012, 20)[0] == "pass"


def test_a_share_below_its_bar_fails():
    assert judge_share(paired(np.ones(30)), 0.95, 20)[0] == "pass"
    assert judge_share(paired(np.full(30, 0.9)), 0.95, 20)[0] == "fail"
    assert judge_share(paired(np.tile([1.0, 0.9], 15)), 0.95, 20)[0] == "hold"
    assert judge_share(paired(np.ones(5)), 0.95, 20)[0] == "hold"
