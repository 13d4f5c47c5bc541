"""At the end of a run the store is counted: what was acknowledged and is not there is an error, and nothing else is."""

import threading

import documents
import points
import pytest
import runs

from pipeline.audit import repair
from pipeline.errors import CountMismatch, StoreUnavailable
from pipeline.forget import forget
from pipeline.ingest import state_folder
from pipeline.local import LocalExecutor
from pipeline.schemas import Counts, point_id
from pipeline.stores import Points, collection, open_store
from pipeline.verify import check_held

ROWS = documents.rows(12, most_words=90)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr("pipeline.verify._PAUSE_S", 0.0)


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    return runs.settings(
        tiny_model, encoder_cache, f"memory:{tmp_path}", run__state=str(tmp_path / "state"), store__retries=0
    )


@pytest.fixture
def source(tmp_path):
    return documents.write(tmp_path / "docs.parquet", ROWS, row_group=4)


def chunk(payload):
    return payload["headwater"]["chunk_index"]


class Faulty(LocalExecutor):
    """Its store passes upserts of documents' points through `change(number of the upsert, points)`; None: lost."""

    def __init__(self, change):
        super().__init__()
        self._change, self._upserts = change, 0

    def open_store(self, config, purpose=""):
        store = super().open_store(config, purpose)
        upsert = store.upsert

        def changed(name, points, update_filter=None):
            if name.startswith("docs__"):
                self._upserts += 1
                points = self._change(self._upserts, points)
            if points is not None:
                upsert(name, points, update_filter)

        store.upsert = changed
        return store

    def close(self):
        del self._store.upsert  # a store in memory is kept by its name
        super().close()


def loses_chunks(number, points):
    heads = [row for row, payload in enumerate(points.payloads) if not chunk(payload)]
    return points.take(heads) if heads else None


def loses_a_document(number, points):
    kept = [n for n, payload in enumerate(points.payloads) if payload["headwater"]["document_id"] != "doc-3"]
    return points.take(kept)


def adds_an_orphan(number, points):
    if number > 1:
        return points
    payload = {"headwater": {"document_id": "doc-0", "namespace": "", "chunk_index": 99}}
    return Points(
        [*points.ids, point_id("", "doc-0", 99)],
        {name: rows[[*range(len(points)), 0]] for name, rows in points.vectors.items()},
        [*points.payloads, payload],
    )


@pytest.mark.parametrize("change", [loses_chunks, loses_a_document, adds_an_orphan])
def test_what_the_store_lost_or_doubled_is_an_error_that_a_repair_mends(change, to, source, tmp_path):
    with pytest.raises(CountMismatch, match="headwater audit") as failed:
        runs.run(source, to, Faulty(change))
    assert "12 documents" in failed.value.need
    _, left = repair(str(source), to, LocalExecutor, threading.Event())
    assert left.clean
    again = runs.run(source, to)
    assert (again.exit_code, again.counts.unchanged) == (0, 12)


def test_nothing_that_a_run_remembers_is_believed_after_a_mismatch(to, source):
    with pytest.raises(CountMismatch):
        runs.run(source, to, Faulty(loses_a_document))
    again = runs.run(source, to)
    assert (again.resumed_splits, again.counts.read, again.counts.indexed) == (0, 12, 1)


def test_what_others_hold_is_no_mismatch(to, source, tmp_path):
    named = to.model_copy(update={"source": to.source.model_copy(update={"namespace": "t"})})
    assert runs.run(source, to).exit_code == 0
    assert runs.run(source, named).exit_code == 0  # not empty: twice as many documents
    assert runs.run(documents.write(tmp_path / "few.parquet", ROWS[:2]), to).exit_code == 0


def test_a_split_that_is_run_again_is_no_mismatch(to, source):
    def away(number, points):
        if number == 4:
            raise StoreUnavailable("away")
        return points

    summary = runs.run(source, to, Faulty(away))
    assert (summary.exit_code, summary.counts.read) == (0, 12)


def test_what_was_forgotten_between_two_attempts_is_no_mismatch(to, source):
    def down(number, points):
        if number >= 5:
            raise StoreUnavailable("down")
        return points

    with pytest.raises(StoreUnavailable):
        runs.run(source, to, Faulty(down))
    first = next(p for p, _ in points.contents_of(to.store.url, "docs").values() if not chunk(p))
    forget(to, ("", first["headwater"]["document_id"]), state_folder(to))
    summary = runs.run(source, to)
    assert summary.exit_code == 0
    assert summary.resumed_splits > 0


def test_each_count_is_compared_on_its_own(to, source):
    runs.run(source, to)
    store = open_store(to.store)
    name, total = collection.resolve(store, "docs"), len(points.contents(store, "docs"))
    check_held(store, name, Counts(indexed=12, points=total), True)
    check_held(store, name, Counts(indexed=2, unchanged=9, patched=1, points=3), True)
    check_held(store, name, Counts(indexed=2, points=3), False)
    for done, was_empty in (
        (Counts(indexed=12, points=total + 1), False),
        (Counts(indexed=11, unchanged=2), False),
        (Counts(indexed=12, points=total - 1), True),
        (Counts(indexed=10, unchanged=1), True),
        (Counts(indexed=10, rejected=1), True),
    ):
        with pytest.raises(CountMismatch):
            check_held(store, name, done, was_empty)


def test_what_is_rejected_after_an_earlier_attempt_of_its_split_wrote_it_is_no_mismatch(to, source):
    runs.run(source, to)
    store = open_store(to.store)
    name, total = collection.resolve(store, "docs"), len(points.contents(store, "docs"))
    check_held(store, name, Counts(indexed=11, rejected=1, points=total - 1), True)


def test_replicas_that_lag_behind_are_counted_again(to, source):
    runs.run(source, to)
    store = open_store(to.store)
    name, total = collection.resolve(store, "docs"), len(points.contents(store, "docs"))

    class Lagging:
        counted = 0

        def count(self, *arguments):
            self.counted += 1
            result = store.count(*arguments)
            return result if self.counted > 2 else result.model_copy(update={"count": result.count - 1})

    check_held(Lagging(), name, Counts(indexed=12, points=total), True)
