"""Documents that vanish from a full snapshot are removed, all of them, only them, and only where that was meant."""

import threading
import uuid

import documents
import histories
import points
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from histories import KEYS, Crashing, Oracle, Row, Run

from pipeline.config import SourceConfig, StoreConfig
from pipeline.errors import StoreUnavailable, UsageError
from pipeline.ingest import ingest
from pipeline.local import LocalExecutor
from pipeline.snapshot import Snapshot, allowed
from pipeline.sources import open_source
from pipeline.stores import Suppressions, open_store
from workers.executor import RayExecutor

ROWS = documents.rows(30, most_words=60)


@pytest.fixture
def to(request, tiny_model, encoder_cache, tmp_path):
    """Settings over a store in memory, or over `edge` where a test says so."""
    edge = getattr(request, "param", "") == "edge"
    store = f"edge:{tmp_path}/index" if edge else f"memory:{tmp_path.name}"
    more = {"source__snapshot": True, "run__state": str(tmp_path / "state")}
    return runs.settings(tiny_model, encoder_cache, store, **more)


@pytest.fixture
def source(tmp_path):
    def write(rows, schema=None):
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, tmp_path / "docs.parquet", row_group_size=8)
        return tmp_path / "docs.parquet"

    return write


def but(to, **values):
    """The settings with other values in [source]."""
    return to.model_copy(update={"source": to.source.model_copy(update=values)})


def ids(to):
    return {p["headwater"]["document_id"] for p, _ in points.contents_of(to.store.url, "docs").values()}


def names(rows):
    return {row["id"] for row in rows}


@pytest.mark.ray
def test_lanes_on_ray_that_write_to_a_server_and_the_driver_removes_what_a_snapshot_lacks(
    tiny_model, encoder_cache, local_ray, qdrant, source, tmp_path
):
    more = {"run__state": f"{tmp_path}/state", "store__collection": "snapshot", "source__snapshot": True}
    to = runs.settings(tiny_model, encoder_cache, qdrant.grpc_url, run__lanes=2, **more)
    runs.run(source(ROWS), to)
    counts = runs.run(source(ROWS[3:]), to, RayExecutor(to)).counts
    assert (counts.read, counts.unchanged, counts.removed) == (27, 27, 3)
    left = points.contents_of(to.store.url, "snapshot").values()
    assert {payload["headwater"]["document_id"] for payload, _ in left} == names(ROWS[3:])


@pytest.mark.parametrize("to", ["edge", "memory"], indirect=True)
def test_what_a_snapshot_lacks_is_removed_and_nothing_else(to, source):
    runs.run(source(ROWS), to)
    before = points.contents_of(to.store.url, "docs")
    summary = runs.run(source(ROWS[3:]), to)
    counts = summary.counts
    after = points.contents_of(to.store.url, "docs")
    kept = {
        id: point for id, point in before.items() if point[0]["headwater"]["document_id"] in names(ROWS[3:])
    }
    points.assert_same(kept, after)
    assert (summary.exit_code, counts.read, counts.unchanged, counts.removed) == (0, 27, 27, 3)
    assert counts.points_removed == len(before) - len(after) > 3
    assert runs.run(source(ROWS[3:]), to).counts.removed == 0


def test_without_the_flag_nothing_vanishes(to, source):
    runs.run(source(ROWS), to)
    assert runs.run(source(ROWS[3:]), but(to, snapshot=False)).counts.removed == 0
    assert ids(to) == names(ROWS)


def test_more_than_allowed_is_refused_and_allowed_by_what_the_error_says(to, source):
    runs.run(source(ROWS), to)
    refused = runs.run(source(ROWS[4:]), to)
    assert refused.exit_code == 1
    assert refused.counts.unchanged == 26
    assert refused.counts.removed == 0
    for words in ("lacks 4 of 30", "10%", "--max-deletes 4"):
        assert words in refused.refused
    assert ids(to) == names(ROWS)
    again = runs.run(source(ROWS[4:]), but(to, max_deletes="4"))
    assert (again.exit_code, again.counts.removed) == (0, 4)
    assert ids(to) == names(ROWS[4:])


def test_an_empty_source_is_believed_only_when_everything_may_go(to, source):
    runs.run(source(ROWS), to)
    empty = source([], pa.Table.from_pylist(ROWS).schema)
    for limit in ("10%", "99.9%", "1000"):
        refused = runs.run(empty, but(to, max_deletes=limit))
        assert refused.exit_code == 1
        assert "--max-deletes 100%" in refused.refused
        assert ids(to) == names(ROWS)
    assert runs.run(empty, but(to, max_deletes="100%")).counts.removed == 30
    assert ids(to) == set()


def test_a_rejected_row_is_not_absent_and_a_deleting_one_is(to, source):
    named = but(to, sequence="version", operation="op", max_deletes="100%")
    rows = [{**row, "version": 1, "op": "upsert"} for row in ROWS[:9]]
    runs.run(source(rows), named)
    rows[0] |= {"text": ""}
    rows[1] |= {"op": "no such thing"}
    rows[2] |= {"version": None}
    rows[3] |= {"version": None, "op": "delete"}
    rows[4] |= {"version": 0, "op": "delete"}  # older than what is stored
    twice = [{**rows[5], "version": 2}, {**rows[6], "version": 3, "op": "delete"}]
    summary = runs.run(source([*rows[:7], *twice, {**rows[7], "id": None}]), named)
    assert names(rows[:4]) | {rows[5]["id"]} == ids(to)
    counts = summary.counts
    assert counts.removed == 3  # 4, 7, 8
    assert (
        counts.read == 10 == counts.indexed + counts.patched + counts.deleted + counts.stale + counts.rejected
    )


def test_a_source_speaks_for_its_own_namespace(to, source):
    tenants = [{**row, "tenant": f"t{number % 3}"} for number, row in enumerate(ROWS)]
    by_column = but(to, namespace_column="tenant", max_deletes="100%")
    runs.run(source(tenants), by_column)
    nobodys = but(to, max_deletes="100%")
    runs.run(source(ROWS[:2]), nobodys)
    alone = but(to, namespace="t1", max_deletes="100%")
    left = [row for row in tenants if row["tenant"] == "t1"][2:]
    assert runs.run(source(left), alone).counts.removed == 2
    assert runs.run(source(ROWS[1:2]), nobodys).counts.removed == 1
    # a column speaks for every namespace: tenants who left the source, and documents of none
    assert runs.run(source(tenants[:1]), by_column).counts.removed == 30 - 2 + 1 - 1
    assert ids(to) == names(ROWS[:1])


def test_a_source_that_is_not_read_to_its_end_removes_nothing(to, source, tmp_path):
    runs.run(source(ROWS), to)
    folder = tmp_path / "folder"
    folder.mkdir()
    documents.write(folder / "a.parquet", ROWS[2:])
    (folder / "b.parquet").write_bytes(b"PAR1 is not enough")
    summary = runs.run(folder, but(to, max_deletes="100%"))
    assert (summary.exit_code, summary.counts.removed) == (1, 0)
    assert ids(to) == names(ROWS)


def test_a_run_that_was_stopped_removes_nothing_and_resumed_removes_all(to, source):
    runs.run(source(ROWS), to)
    fewer = source([{**row, "text": "changed"} for row in ROWS[3:]])
    stop = threading.Event()
    summary = ingest(str(fewer), to, LocalExecutor(), stop, lambda state: state.documents and stop.set())
    assert (summary.exit_code, summary.counts.removed) == (130, 0)
    assert ids(to) == names(ROWS)
    assert runs.run(fewer, to).counts.removed == 3
    assert ids(to) == names(ROWS[3:])


@pytest.mark.parametrize("whole", [True, False])
def test_after_a_crash_between_any_two_changes_the_same_again_ends_right(
    whole, source, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.snapshot._AT_ONCE", 2)
    config = SourceConfig(namespace_column="tenant", text=("id",))
    all_of_it = tuple(Row(key, ("river",) * (1 + number), 1) for number, key in enumerate(KEYS))
    kept = [{"id": id, "tenant": tenant} for tenant, id in KEYS[2:3]]
    opened = open_source(str(source(kept)), config, tmp_path / "scratch")
    crash, crashed = 0, True

    def remove(store):
        snapshot = Snapshot.take(
            opened, config, store, "c", Suppressions(store, "c"), tmp_path / uuid.uuid4().hex
        )
        return snapshot.remove(store, "c", "100%", threading.Event(), lambda _: None)

    while crashed:
        store = open_store(StoreConfig(url="memory:"))
        histories.new_collection(store)
        histories.index(store, Run(all_of_it, 30, 30, None, True))
        try:
            assert remove(Crashing(store, crash, whole)).removed == 4
            crashed = False
        except StoreUnavailable:
            crash += 1
            remove(store)
        oracle = Oracle()
        oracle.documents = {KEYS[2]: all_of_it[2]}
        assert histories.contents(store) == oracle.points()
    assert crash > 3


def test_a_forgotten_document_is_absent_whatever_the_source_says(to, source):
    runs.run(source(ROWS), to)
    store = open_store(to.store)
    Suppressions(store, "docs").add(("", "doc-3"))
    assert runs.run(source(ROWS), to).counts.removed == 1
    assert ids(to) == names(ROWS) - {"doc-3"}


def test_shares_are_exact():
    assert [allowed("10%", n) for n in (0, 9, 10, 29, 30, 1000)] == [0, 0, 1, 2, 3, 100]
    assert allowed("0.1%", 10**9) == 10**6
    assert allowed("29%", 100) == 29  # 0.29 * 100 is 28.999…
    assert (allowed("7", 3), allowed("100%", 7), allowed("0", 7)) == (7, 7, 0)


@pytest.mark.parametrize("limit", ["", "many", "-1", "101%", "0.5", "10 %%", True])
def test_a_limit_that_is_none_is_refused(limit, tiny_model, encoder_cache):
    with pytest.raises(UsageError, match=r"source\.max_deletes"):
        runs.settings(tiny_model, encoder_cache, "memory:", source__max_deletes=limit)


def test_the_commands_flags(tiny_model, encoder_cache, source, tmp_path):
    base = ["--encoder", tiny_model, "--store", f"edge:{tmp_path}/cli", "--collection", "docs"]
    runs.inside("ingest", source(ROWS), *base, cache=encoder_cache)
    done = runs.inside("ingest", source(ROWS[9:]), *base, "--snapshot", "--json", cache=encoder_cache)
    assert done.returncode == 1
    assert "lacks 9 of 30" in done.stderr.replace("\n", "")
    assert runs.lines(done.stdout)[0]["unchanged"] == 21
    done = runs.inside(
        "ingest", source(ROWS[9:]), *base, "--snapshot", "--max-deletes", "30%", "--json", cache=encoder_cache
    )
    assert done.returncode == 0
    assert runs.lines(done.stdout)[0]["removed"] == 9
