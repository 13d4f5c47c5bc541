"""Forgetting: what is gone from every place, what stays out, and what a crash or a look over the shoulder finds."""

import json
from pathlib import Path

import documents
import numpy as np
import points
import pyarrow.parquet as pq
import pytest
import runs
from histories import Crashing

from pipeline import forget as forgetting
from pipeline.errors import CollectionHeld, StoreUnavailable, UsageError
from pipeline.forget import forget, lift
from pipeline.ingest import state_folder
from pipeline.schemas import point_id
from pipeline.stores import Points, Suppressions, Tombstones, collection, hold_lease, open_store

COLUMNS = {"source__namespace_column": "tenant", "source__sequence": "version", "source__operation": "op"}


@pytest.fixture(params=["memory", "local", "edge", "grpc", "rest"])
def to(request, tiny_model, encoder_cache, tmp_path):
    match request.param:
        case "memory":
            more = {"store__url": f"memory:{tmp_path}"}
        case "edge" | "local" as kind:
            more = {"store__url": f"{kind}:{tmp_path}/index"}
        case kind:
            server = request.getfixturevalue("qdrant")
            more = {"store__url": server.grpc_url if kind == "grpc" else server.rest_url}
            more["store__prefer_grpc"] = kind == "grpc"
    settings = runs.settings(tiny_model, encoder_cache, "", run__state=f"{tmp_path}/state", **more, **COLUMNS)
    with opened(settings) as store:
        for left in store.get_collections().collections:
            store.delete_collection(left.name)
    return settings


@pytest.fixture
def edge(tiny_model, encoder_cache, tmp_path):
    return runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", **COLUMNS)


class opened:
    """A store that is closed at the end."""

    def __init__(self, settings):
        self.store = open_store(settings.store)

    def __enter__(self):
        return self.store

    def __exit__(self, *_):
        self.store.close()


def rows():
    """Three tenants with the same ids; in each one document is deleted and one rejected."""
    made = []
    for tenant in ("north", "south", "west"):
        for row in documents.rows(6, most_words=60):
            made.append({**row, "tenant": tenant, "version": 7, "op": "upsert"})
        made[-1]["op"] = "delete"
        made[-2]["text"] = " "
    return made


def ingest(to, tmp_path, made=None):
    return runs.run(documents.write(tmp_path / "docs.parquet", made or rows()), to)


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


def test_a_document_goes_from_every_place_and_stays_out_until_it_is_let_in(to, tmp_path):
    first = ingest(to, tmp_path)
    with opened(to) as store:
        kept = collection.create(store, "docs-other", to.store, 32, {})  # another collection's
        old = collection.create(store, "docs", to.store, 32, {})  # now a version that nobody reads
        store.update_collection_aliases([collection._create_alias("docs", first.collection)])
        live = points.contents(store, "docs")
        mine = {
            id for id, (payload, _) in live.items()
            if (payload["headwater"]["namespace"], payload["headwater"]["document_id"]) == ("north", "doc-0")
        }  # fmt: skip
    subject = ("north", "doc-0")
    found = forget(to, subject, state_folder(to))
    places = {place.name: (place.kind, place.before, place.after) for place in found.places}
    assert places[first.collection] == ("points", len(mine), 0)
    assert places[old] == ("points", 0, 0)
    assert kept not in places
    assert (found.suppressed, found.left) == (True, 0)
    with opened(to) as store:
        assert points.contents(store, "docs").keys() == live.keys() - mine
    again = ingest(to, tmp_path)
    assert (again.counts.stale, again.counts.indexed) == (1, 0)
    assert not any(place.before for place in forget(to, subject, state_folder(to)).places)
    assert lift(to, subject)
    assert not lift(to, subject)
    assert ingest(to, tmp_path).counts.indexed == 1
    with opened(to) as store:
        points.assert_same(points.contents(store, "docs"), live)


@pytest.mark.parametrize("to", ["edge", "rest"], indirect=True)
def test_a_tenant_goes_with_its_tombstones_and_rejected_rows_and_no_other(to, tmp_path):
    first = ingest(to, tmp_path)
    assert (first.counts.rejected, first.counts.deleted) == (3, 3)
    found = forget(to, ("south", None), state_folder(to))
    before = {place.kind: 0 for place in found.places}
    for place in found.places:
        before[place.kind] += place.before
    assert before["tombstones"] == 1
    assert before["traces"] == 2  # one in the ledger, one in the list of rejected documents
    assert before["points"] > 4
    assert found.left == 0
    with opened(to) as store:
        tenants = {
            payload["headwater"]["namespace"] for payload, _ in points.contents(store, "docs").values()
        }
        assert tenants == {"north", "west"}
        assert store.count(Tombstones(store, first.collection).name).count == 2
    assert pq.read_table(first.dead_letter).column("namespace").to_pylist() == ["north", "west"]
    again = ingest(to, tmp_path)
    assert (again.counts.stale, again.counts.rejected, again.counts.read) == (6, 2, 18)
    assert pq.read_table(again.dead_letter).column("namespace").to_pylist() == ["north", "west"]


def test_nothing_that_can_be_read_tells_what_was_forgotten(edge, tmp_path):
    ingest(edge, tmp_path)
    with opened(edge) as store:
        Suppressions(store, "docs").add(("north", "doc-0"))
        records, _ = store.scroll(Suppressions(store, "docs").name)
        assert [record.payload for record in records] == [{}]
        Suppressions(store, "other").add(("north", "doc-0"))
        others, _ = store.scroll(Suppressions(store, "other").name)
        assert records[0].id != others[0].id  # another key
    forget(edge, ("north", "doc-4"), state_folder(edge))
    ledgers = everything(state_folder(edge))
    assert ledgers.count(b"doc-4") > 0  # of the other tenants
    for tenant in ("south", "west"):
        forget(edge, (tenant, "doc-4"), state_folder(edge))
    assert b"doc-4" not in everything(state_folder(edge))


def test_only_while_no_run_is_at_work_and_only_where_there_is_a_collection(edge, tmp_path):
    with pytest.raises(UsageError, match="no collection 'docs'"):
        forget(edge, ("", "a"), state_folder(edge))
    assert not (tmp_path / "index").exists()
    memory = runs.settings("m", tmp_path, f"memory:{tmp_path}")
    with opened(memory) as store:
        collection.create(store, "docs", memory.store, 2, {})
        for alias in ("docs", "docs@next"):
            named = memory.model_copy(update={"store": memory.store.model_copy(update={"collection": alias})})
            with (
                hold_lease(store, "docs", "nightly", 15, runs.threading.Event()),
                pytest.raises(CollectionHeld),
            ):
                forget(named, ("", "a"), tmp_path)
        assert not store.collection_exists(Suppressions(store, "docs").name)
    assert forget(memory, ("", "a"), tmp_path).left == 0


def test_a_version_that_is_made_while_it_begins_is_searched_too(tmp_path, monkeypatch):
    to = runs.settings("m", tmp_path, f"memory:{tmp_path}")
    with opened(to) as store:
        collection.create(store, "docs", to.store, 2, {})
        add = Suppressions.add

        def build_first(self, subject):
            made = collection.create(store, "docs@next", to.store, 2, {})
            ours = {"namespace": "", "document_id": "a", "chunk_index": 0}
            point = Points([point_id("", "a", 0)], {"": np.ones((1, 2), np.float32)}, [{"headwater": ours}])
            store.upsert(made, point)
            add(self, subject)

        monkeypatch.setattr(Suppressions, "add", build_first)
        found = forget(to, ("", "a"), tmp_path)
        assert ([place.before for place in found.places if place.before], found.left) == ([1], 0)
        assert store.count(collection.resolve(store, "docs@next")).count == 0


def test_wherever_it_crashes_nothing_comes_back_and_again_it_ends(
    tiny_model, encoder_cache, tmp_path, monkeypatch
):
    crash, crashed = 0, True
    while crashed:
        to = runs.settings(
            tiny_model, encoder_cache, f"memory:{tmp_path}-{crash}",
            run__state=f"{tmp_path}/{crash}", run__lease_s=0, **COLUMNS,
        )  # fmt: skip
        ingest(to, tmp_path)
        with opened(to) as store, monkeypatch.context() as patched:
            patched.setattr(forgetting, "open_store", lambda *_, s=store, k=crash: Crashing(s, k, False))
            try:
                forget(to, ("west", None), state_folder(to))
                crashed = False
            except StoreUnavailable:
                crash += 1
        before = ingest(to, tmp_path)
        found = forget(to, ("west", None), state_folder(to))
        assert (found.suppressed, found.left) == (True, 0)
        assert before.counts.stale in (0, 6)
    assert ingest(to, tmp_path).counts.stale == 6
    assert crash > 3


def test_the_command_proves_it(edge, tmp_path, encoder_cache):
    ingest(edge, tmp_path)
    where = ("--store", edge.store.url, "--collection", "docs")
    done = runs.inside(
        "forget", "--document", "doc-1", "--namespace", "west", *where, "--json", cache=encoder_cache
    )
    assert done.returncode == 0, done.stderr
    (proof,) = runs.lines(done.stdout)
    assert (proof["left"], proof["suppressed"]) == (0, True)
    assert sum(place["before"] for place in proof["places"]) > 0
    shown = runs.inside("forget", "--tenant", "west", *where, cache=encoder_cache)
    assert shown.returncode == 0, shown.stderr
    assert "→ 0 points" in shown.stdout + shown.stderr
    lifted = runs.inside("forget", "--tenant", "west", "--lift", *where, "--json", cache=encoder_cache)
    assert json.loads(lifted.stdout) == {"lifted": True}
