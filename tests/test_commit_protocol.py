"""Whatever happens to a source, and wherever a run of it crashes: run again, the store is what the source says."""

from contextlib import suppress
from dataclasses import replace

import histories
import pytest
from histories import KEYS, Crashing, Oracle, Row, Run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import StoreConfig
from pipeline.errors import StoreUnavailable
from pipeline.stores import open_store


def memory():
    store = open_store(StoreConfig(url="memory:"))
    histories.new_collection(store)
    return store


quick = settings(max_examples=150, suppress_health_check=list(HealthCheck))


@given(histories.HISTORIES)
@quick
def test_a_history_with_crashes_ends_as_its_last_source_says(history):
    histories.check(memory(), history)


@given(histories.SEQUENCED)
@quick
def test_with_sequences_the_newest_version_or_deletion_wins_in_whatever_order_they_come(history):
    histories.check(memory(), history, sequenced=True)


@given(histories.HISTORIES, histories.SEQUENCED, st.booleans())
@quick
def test_crashed_runs_that_nobody_repeats_leave_nothing_once_a_source_says_all(plain, ordered, sequenced):
    """Crash upon crash, each on another source; then one that says of every document what it is to be."""
    store, oracle = memory(), Oracle(sequenced)
    *before, last = ordered if sequenced else plain
    for run in before:
        with suppress(StoreUnavailable):
            histories.index(Crashing(store, run.crash, run.whole), run, sequenced)
    rows = {key: Row(key, (), 1) for key in histories.KEYS} | {row.key: row for row in last.rows}
    newest = 9 if sequenced else 0
    said = Run(tuple(replace(row, sequence=newest) for row in rows.values()), last.window, 3, None, True)
    histories.index(store, said, sequenced)
    oracle.apply(said)
    assert histories.contents(store) == oracle.points()
    assert histories.tombstones(store) == oracle.deleted


@given(histories.REJECTING)
@quick
def test_a_rejected_version_leaves_the_one_before_and_says_so_on_its_head(history):
    histories.check(memory(), history, sequenced=True)


@given(histories.HISTORIES, st.randoms())
@quick
def test_after_a_crash_another_version_of_the_same_documents_is_as_good(history, random):
    """A -> B, crash, A again: what was half done shows, and nothing is taken for unchanged that is not."""
    store, oracle = memory(), Oracle()
    for run in history:
        try:
            histories.index(Crashing(store, run.crash, run.whole), run)
        except StoreUnavailable:
            run = Run(tuple(change(row, oracle, random) for row in run.rows), run.window, 3, None, True)
            histories.index(store, run)
        oracle.apply(run)
        assert histories.contents(store) == oracle.points()


def change(row, oracle, random):
    """What a document is in the next source: as before the crash, as in it, or something else."""
    before = oracle.documents.get(row.key, Row(row.key, (), 1))
    return random.choice([before, row, Row(row.key, ("light", *row.words[1:]), 2)])


BEFORE = tuple(Row(key, ("river",) * 5, 1) for key in KEYS)
AFTER = (
    Row(KEYS[0], ("stone",), 1),  # shrinks
    Row(KEYS[1], ("stone",) * 7, 1),  # grows
    Row(KEYS[2], ("river",) * 5, 2),  # metadata alone
    Row(KEYS[3], (), 1),  # is deleted
    BEFORE[4],  # stays
)


@pytest.mark.parametrize("before", [BEFORE, BEFORE[4:], ()])
@pytest.mark.parametrize("window", [2, 30])
@pytest.mark.parametrize("whole", [True, False])
def test_an_unmarked_head_vouches_for_its_document_at_every_moment(before, window, whole):
    crash, crashed = 0, True
    good = Oracle(), Oracle()
    good[0].apply(Run(before, 30, 30, None, True))
    good[1].apply(Run(before, 30, 30, None, True))
    good[1].apply(Run(AFTER, 30, 30, None, True))
    while crashed:
        store = memory()
        histories.index(store, Run(before, 30, 30, None, True))
        try:
            histories.index(Crashing(store, crash, whole), Run(AFTER, window, 2, None, True))
            crashed = False
        except StoreUnavailable:
            crash += 1
        found = histories.contents(store)
        for key in KEYS:
            mine = {
                id: point
                for id, point in found.items()
                if (point[0]["headwater"]["namespace"], point[0]["headwater"]["document_id"]) == key
            }
            heads = [
                point[0]["headwater"] for point in mine.values() if not point[0]["headwater"]["chunk_index"]
            ]
            assert len(heads) == bool(mine), "chunks without a head"
            if heads and not heads[0].get("writing"):
                assert any(mine == part(oracle, key) for oracle in good)
    assert crash > (8 if before == BEFORE else 2)


def part(oracle, key):
    one = Oracle()
    one.documents = {key: oracle.documents[key]} if key in oracle.documents else {}
    return one.points()


def test_an_unchanged_source_writes_nothing():
    store = memory()
    run = Run(BEFORE, 30, 30, None, True)
    histories.index(store, run)
    watched = Crashing(store, None, True)
    assert histories.index(watched, run).unchanged == len(BEFORE)
    assert watched.changes == 0
