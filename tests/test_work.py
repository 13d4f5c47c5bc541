"""Which split runs next, how often it is tried, and which document is to blame; no lanes."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import LaneDied, StoreUnavailable
from pipeline.schemas import Counts, Rejected, Split, SplitAck
from pipeline.work import Work


def splits(count, rows=1):
    return [Split(str(n), "uri", "parquet", n, n + 1, n * rows, rows) for n in range(count)]


def died(work, *held, machine=False):
    """What is given up after a lane died that held these."""
    return list(work.lost(held, "out of memory", machine))


def rows_of(split):
    return range(*(split.piece or (split.first_row, split.first_row + split.rows)))


def trailer(split):
    """What a lane would say of it."""
    rows = rows_of(split)
    rejected = tuple(
        Rejected(str(row), "uri", row, "lane", "kills_lane", split.poison) for row in rows if split.poison
    )
    counts = Counts(read=len(rows), indexed=len(rows) - len(rejected), rejected=len(rejected))
    return SplitAck(split.id, counts, rejected, seconds={"read": 1.0})


def test_splits_that_died_together_run_last_and_alone():
    a, b, c = splits(3)
    work = Work([a, b, c], attempts=2)
    assert [work.take(True), work.take(False)] == [(a, False), (b, False)]
    assert not died(work, a, b)
    assert work.take(True) == (c, False)
    assert work.take(False) is None
    assert work.take(True) == (a, True)
    assert len(work) == 1


def test_a_split_of_which_only_reading_tells_the_rows_is_given_up_after_so_many_deaths_alone():
    a = Split("a", "uri", "stream", 0, 1, 0, None)
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
    work = Work([a], attempts=8)
    for _ in range(8):
        assert work.take(True) == (a, False)
        assert not died(work, a, machine=True)
    assert work.take(True) == (a, False)


def test_a_passing_error_is_raised_when_it_lasts():
    (a,) = splits(1)
    work = Work([a], attempts=2)
    work.take(True)
    work.failed(a, StoreUnavailable("first"))
    work.take(True)
    with pytest.raises(StoreUnavailable, match="second"):
        work.failed(a, StoreUnavailable("second"))


def test_errors_that_passed_are_no_deaths():
    (a,) = splits(1)
    work = Work([a], attempts=2)
    work.failed(a, StoreUnavailable("away"))
    assert not died(work, a)
    assert not work.take(True)[0].poison


def test_what_stays_unreadable_by_its_keys_alone_is_given_up_with_all_that_is_left_of_its_split():
    (a, b) = splits(2, rows=8)
    work = Work([a, b], attempts=2, lanes=4)
    given_up = []
    while not given_up:
        split, _ = work.take(True)
        given_up = list(work.done(split, trailer(split))) if split is b else died(work, split)
        if given_up and given_up[0][0] is b:
            given_up = []
    ((split, ack),) = given_up
    assert split is a
    assert "given up after 2 attempts" in ack.error
    assert not ack.complete
    assert not work


def test_stopped_in_the_middle_of_it_a_split_tells_what_it_did_and_is_not_complete():
    (a,) = splits(1, rows=8)
    work = Work([a], attempts=1)
    died(work, work.take(True)[0])
    first, _ = work.take(True)
    assert not list(work.done(first, trailer(first)))
    ((split, ack),) = work.clear()
    assert split is a
    assert (ack.counts.read, ack.complete) == (4, False)
    assert not work
    assert not list(work.clear())


def test_a_piece_that_runs_when_all_is_stopped_is_waited_for():
    (a,) = splits(1, rows=8)
    work = Work([a], attempts=1)
    died(work, work.take(True)[0])
    first, _ = work.take(True)
    assert not list(work.clear())
    ((_, ack),) = work.done(first, trailer(first))
    assert (ack.counts.read, ack.complete) == (4, False)


def test_pieces_that_do_not_add_up_are_never_committed():
    (a,) = splits(1, rows=2)
    work = Work([a], attempts=1)
    died(work, work.take(True)[0])
    first, second = work.take(True)[0], work.take(True)[0]
    list(work.done(first, trailer(first)))
    with pytest.raises(Exception, match="2 rows, and its pieces 1"):
        list(work.done(second, SplitAck(a.id, Counts())))


def test_lanes_that_die_with_nothing_in_hand_end_the_run():
    work = Work(splits(1), attempts=1, lanes=2)
    for _ in range(6):
        died(work)
    with pytest.raises(LaneDied, match="7 lanes died one after another, the last with: out of memory"):
        died(work)


def test_a_lane_on_which_every_document_dies_ends_the_run_and_rejects_few():
    run = Run(Work(splits(1, rows=1000), attempts=3), set(range(1000)))
    with pytest.raises(LaneDied, match="17 documents one after another killed every lane they were on"):
        run.to_its_end()
    assert run.deaths < 3 + 10 + 17 * 5


def test_many_documents_that_kill_lanes_are_found_where_others_between_them_are_done():
    poison = set(range(0, 200, 4))
    run = Run(Work(splits(1, rows=200), attempts=3), poison).to_its_end()
    ((_, ack),) = run.done
    assert {one.row for one in ack.rejected} == poison


def test_a_piece_runs_alone_also_after_an_error_that_passed_or_the_loss_of_its_machine():
    work = Work(splits(1, rows=8), attempts=2)
    died(work, work.take(True)[0])
    died(work, work.take(True)[0])
    piece, alone = work.take(True)
    assert alone
    work.failed(piece, StoreUnavailable("away"))
    assert work.take(True) == (piece, True)
    died(work, piece, machine=True)
    assert work.take(False) is None
    assert work.take(True) == (piece, True)


@dataclass
class Run:
    """Lanes, one after another, that die on poisoned rows."""

    work: Work
    poison: set[int]
    machines: list[bool] = field(default_factory=list)  # whether the next lane is lost with its machine
    deaths: int = 0
    done: list[tuple[Split, SplitAck]] = field(default_factory=list)
    indexed: list[int] = field(default_factory=list)

    def to_its_end(self):
        while self.work:
            held = take_a_lane_full(self.work)
            if any(not split.poison and not self.poison.isdisjoint(rows_of(split)) for split in held):
                self.deaths += 1
                self.done += died(self.work, *held)
            elif self.machines and self.machines.pop():
                self.done += died(self.work, *held, machine=True)
            else:
                for split in held:
                    self.indexed += [] if split.poison else rows_of(split)
                    self.done += self.work.done(split, trailer(split))
        return self


@given(
    st.integers(0, 6),
    st.integers(1, 70),
    st.sets(st.integers(0, 300), max_size=8),
    st.integers(1, 4),
    st.lists(st.booleans(), max_size=20),
)
def test_however_lanes_die_exactly_the_poison_is_rejected_and_all_else_done_once(
    count, rows, poison, attempts, machines
):
    poison = {row for row in poison if row < count * rows}
    all_splits = splits(count, rows)
    run = Run(Work(all_splits, attempts, lanes=50), poison, machines).to_its_end()
    assert {split.id for split, _ in run.done} == {split.id for split in all_splits}
    assert len(run.done) == count
    assert all(split is all_splits[int(split.id)] for split, _ in run.done)
    rejected = [
        one.row for _, ack in sorted(run.done, key=lambda one: int(one[0].id)) for one in ack.rejected
    ]
    assert rejected == sorted(poison)
    assert sorted(run.indexed) == sorted(set(range(count * rows)) - poison)
    assert all(ack.complete and ack.counts.read == rows for _, ack in run.done)
    ill = {row // rows for row in poison}
    assert run.deaths <= len(ill) * (1 + attempts) + len(poison) * (math.ceil(math.log2(rows)) + attempts)


def take_a_lane_full(work):
    first, alone = work.take(True)
    more = None if alone else work.take(False)
    return [first, more[0]] if more else [first]
