"""Which split runs next and how often it is tried."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import StoreUnavailable
from pipeline.schemas import Split
from pipeline.work import Work


def splits(count):
    return [Split(str(n), "uri", "parquet", n, n + 1, n, 1) for n in range(count)]


def died(work, *held, machine=False):
    """What is given up after a lane died that held these."""
    return list(work.lost(held, "out of memory", machine))


def test_splits_that_died_together_run_last_and_alone():
    a, b, c = splits(3)
    work = Work([a, b, c], attempts=2)
    assert [work.take(True), work.take(False)] == [(a, False), (b, False)]
    assert not died(work, a, b)
    assert work.take(True) == (c, False)
    assert work.take(False) is None
    assert work.take(True) == (a, True)
    assert len(work) == 1


def test_a_split_is_given_up_after_so_many_deaths_alone():
    (a,) = splits(1)
    work = Work([a], attempts=2)
    for _ in range(2):
        assert work.take(True)[0] is a
        given_up = died(work, a)
    ((split, ack),) = given_up
    assert split is a
    assert not ack.complete
    assert "given up after 2 attempts, the last ended with: out of memory" in ack.error
    assert not work


def test_the_loss_of_a_machine_is_no_attempt():
    (a,) = splits(1)
    work = Work([a], attempts=1)
    for _ in range(10):
        assert work.take(True) == (a, False)
        assert not died(work, a, machine=True)


def test_a_passing_error_is_raised_when_it_lasts():
    (a,) = splits(1)
    work = Work([a], attempts=2)
    work.take(True)
    work.failed(a, StoreUnavailable("first"))
    work.take(True)
    with pytest.raises(StoreUnavailable, match="second"):
        work.failed(a, StoreUnavailable("second"))


@given(st.integers(0, 12), st.sets(st.integers(0, 11)), st.integers(1, 4), st.randoms())
def test_however_lanes_die_the_poison_is_given_up_and_all_else_done(count, poison, attempts, draw):
    work = Work(splits(count), attempts)
    done, given_up, deaths = set(), set(), 0
    while work:
        held = [split for split, alone in take_a_lane_full(work)]
        if not poison.isdisjoint(int(split.id) for split in held):
            deaths += 1
            given_up.update(int(split.id) for split, _ in died(work, *held))
        elif draw.random() < 0.2:
            assert not died(work, *held, machine=True)
        else:
            done.update(int(split.id) for split in held)
    assert given_up == poison & set(range(count))
    assert done == set(range(count)) - poison
    assert deaths <= (attempts + 1) * len(given_up)


def take_a_lane_full(work):
    taken = [work.take(True)]
    if not taken[0][1] and (more := work.take(False)):
        taken.append(more)
    return taken
