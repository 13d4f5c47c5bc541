"""The audit sees every way in which a collection can differ from its source, and a repair leaves none."""

import time
from contextlib import closing

import documents
import numpy as np
import points
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import audit as module
from pipeline.audit import DOCUMENT, HEAD, POINT, Audit, audit, compare, repair
from pipeline.config import StoreConfig
from pipeline.errors import CollectionHeld, DeletesRefused, SourceError, StoreError
from pipeline.local import LocalExecutor
from pipeline.schemas import point_id
from pipeline.stores import Points, Suppressions, collection, hold_lease, open_store
from pipeline.sync import KEYS

ROWS = documents.rows(20, most_words=120)


@pytest.fixture
def to(request, tiny_model, encoder_cache, tmp_path):
    """Settings over a store in memory, or over another one where a test says so."""
    match getattr(request, "param", "memory"):
        case "memory":
            store = f"memory:{tmp_path.name}"
        case "edge":
            store = f"edge:{tmp_path}/index"
        case "grpc":
            store = request.getfixturevalue("server").grpc_url
    return runs.settings(tiny_model, encoder_cache, store, run__state=str(tmp_path / "state"))


@pytest.fixture
def server(qdrant):
    """A server without collections."""
    qdrant.plant()
    with closing(open_store(StoreConfig(url=qdrant.grpc_url))) as store:
        for left in store.get_collections().collections:
            store.delete_collection(left.name)
    yield qdrant
    qdrant.plant()


@pytest.fixture
def source(tmp_path):
    def write(rows):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "docs.parquet", row_group_size=6)
        return tmp_path / "docs.parquet"

    return write


class Inside:
    """A collection opened behind the back of everything."""

    def __init__(self, to):
        self.store = open_store(to.store)
        self.name = collection.resolve(self.store, "docs")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if not self.store.__class__.__name__.startswith("Local"):
            self.store.close()

    def delete(self, id, *chunks):
        self.store.delete(self.name, [point_id("", id, chunk) for chunk in chunks])

    def set(self, id, **ours):
        self.store.set_payload(self.name, ours, [point_id("", id, 0)], key="headwater")

    def add(self, id, payload, width=32):
        self.store.upsert(self.name, Points([id], {"": np.ones((1, width), np.float32)}, [payload]))

    def copy(self, id, chunk, to_chunk, at=None):
        (record,) = self.store.retrieve(self.name, [point_id("", id, chunk)])
        ours = {**record.payload["headwater"], "chunk_index": to_chunk}
        self.add(at or point_id("", id, to_chunk), {**record.payload, "headwater": ours})


def long_ones(to):
    """Documents of at least three chunks."""
    found = points.contents_of(to.store.url, "docs").values()
    return sorted({p["headwater"]["document_id"] for p, _ in found if p["headwater"]["chunk_count"] >= 3})


def differences(found):
    names = ("missing", "stale", "kept_after_rejection", "surplus", "orphaned")
    return {name: value for name in names if (value := getattr(found, name))}


@pytest.mark.parametrize("to", ["edge", "memory", "grpc"], indirect=True)
def test_every_kind_of_damage_is_seen_and_repaired(to, source):
    file = source(ROWS)
    runs.run(file, to)
    good = points.contents_of(to.store.url, "docs")
    clean = audit(str(file), to)
    assert clean == Audit(documents=20, stored=20, points=len(good))
    assert clean.exit_code == 0
    a, b, c, d, e, f, g, *_ = long_ones(to)
    with Inside(to) as inside:
        inside.delete(a, 0, 1, 2, 3, 4, 5)  # missing
        inside.delete(b, 1)  # stale: a hole that its head does not know of
        inside.set(c, text_hash="0" * 32)  # stale
        inside.set(d, encoder_version="another")  # stale
        inside.set(e, writing=True)  # stale
        inside.copy(f, 1, 99)  # orphaned: beyond the end
        inside.copy(g, 1, 1, at="00000000-0000-4000-8000-000000000000")  # orphaned: not where it belongs
        inside.copy(b, 2, 77)
    found = audit(str(file), to)
    assert differences(found) == {"missing": 1, "stale": 4, "orphaned": 3}
    assert found.exit_code == 4
    before = points.contents_of(to.store.url, "docs")
    assert audit(str(file), to) == found  # it changed nothing
    points.assert_same(before, points.contents_of(to.store.url, "docs"))

    was, left = repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert was == found
    assert left == clean == audit(str(file), to)
    points.assert_same(good, points.contents_of(to.store.url, "docs"))


@pytest.mark.parametrize("to", ["grpc"], indirect=True)
def test_a_repair_that_was_killed_is_run_again_to_the_same_end(to, server, source, tiny_model, encoder_cache):
    file = source(ROWS)
    runs.run(file, to)
    good = points.contents_of(to.store.url, "docs")
    a, b, c, *_ = long_ones(to)
    with Inside(to) as inside:
        inside.delete(a, 0, 1, 2, 3, 4, 5)
        inside.delete(b, 1)
        inside.set(c, text_hash="0" * 32)
        inside.copy(b, 2, 77)
    server.plant("hang", seconds=0.5, on="upsert", times=99)
    before = len(server.calls())
    command = ["audit", file, "--encoder", tiny_model, "--store", to.store.url, "--collection", "docs"]
    command += ["--repair", "--set", "chunking.max_tokens=48", "--set", f"run.state={to.run.state}"]
    process = runs.start(*command, cache=encoder_cache)
    until = time.monotonic() + 60
    # The fourth: the lease's own come first, then a document's head; its chunks are still to come.
    while sum(call.startswith("upsert") for call in server.calls()[before:]) < 4:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    process.kill()
    process.communicate()
    server.plant()
    time.sleep(1)  # longer than the server hangs: what the dead process has asked for may still be written
    assert not audit(str(file), to).clean
    _, left = repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert left == Audit(documents=20, stored=20, points=len(good))
    points.assert_same(good, points.contents_of(to.store.url, "docs"))


def test_a_repair_embeds_only_what_is_wrong(to, source, monkeypatch):
    file = source(ROWS)
    runs.run(file, to)
    with Inside(to) as inside:
        inside.delete(long_ones(to)[0], 1)
    summaries = []
    monkeypatch.setattr(module, "ingest", lambda *a: summaries.append(runs.ingest(*a)) or summaries[-1])
    repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert (summaries[0].counts.indexed, summaries[0].counts.unchanged) == (1, 19)
    repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert len(summaries) == 1  # nothing to do, nothing done


def test_what_the_source_no_longer_has_is_surplus_and_what_it_rejects_is_kept(to, source):
    runs.run(source(ROWS), to)
    good = points.contents_of(to.store.url, "docs")
    fewer = [{**row, "text": ""} if number == 5 else row for number, row in enumerate(ROWS[2:])]
    file = source(fewer)
    found = audit(str(file), to)
    gone = {row["id"] for row in ROWS[:2]}
    surplus = sum(payload["headwater"]["document_id"] in gone for payload, _ in good.values())
    assert differences(found) == {"kept_after_rejection": 1, "surplus": surplus}
    _, left = repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert differences(left) == {"kept_after_rejection": 1}
    assert left.exit_code == 0
    assert len(points.contents_of(to.store.url, "docs")) == len(good) - surplus


def test_a_repair_obeys_the_guard(to, source):
    runs.run(source(ROWS), to)
    file = source(ROWS[9:])
    with pytest.raises(DeletesRefused, match="9 of 20"):
        repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert audit(str(file), to).stored == 20


def test_chunks_without_a_head_are_orphaned_and_foreign_points_are_left_alone(to, source):
    file = source(ROWS)
    runs.run(file, to)
    strange = "11111111-1111-4111-8111-111111111111"
    (long, *_) = long_ones(to)
    with Inside(to) as inside:
        inside.add(strange, {"text": "another program's"})
        (record,) = inside.store.retrieve(inside.name, [point_id("", long, 1)])
        ours = {**record.payload["headwater"], "document_id": "never there"}
        inside.add(point_id("", "never there", 1), {**record.payload, "headwater": ours})
    everything = to.model_copy(update={"source": to.source.model_copy(update={"namespace_column": "id"})})
    assert audit(str(file), everything).foreign == 1
    assert differences(audit(str(file), to)) == {"orphaned": 1}
    repair(str(file), to, LocalExecutor, runs.threading.Event())
    with Inside(to) as inside:
        assert inside.store.retrieve(inside.name, [strange])
        assert not inside.store.retrieve(inside.name, [point_id("", "never there", 1)])


def test_metadata_and_sequences_count_and_a_newer_stored_version_does_not(to, source):
    numbered = to.model_copy(update={"source": to.source.model_copy(update={"sequence": "version"})})
    runs.run(source([{**row, "version": 5} for row in ROWS]), numbered)
    changed = [{**row, "version": 5} for row in ROWS]
    changed[0] |= {"year": 1}  # stale
    changed[1] |= {"version": 6}  # stale
    changed[2] |= {"version": 4, "text": "older"}  # the store is ahead
    file = source(changed)
    assert differences(audit(str(file), numbered)) == {"stale": 2}
    _, left = repair(str(file), numbered, LocalExecutor, runs.threading.Event())
    assert left.clean


def test_what_was_deleted_later_or_forgotten_is_not_missing(to, source):
    columns = {"sequence": "version", "operation": "op"}
    numbered = to.model_copy(update={"source": to.source.model_copy(update=columns)})
    rows = [{**row, "version": 5, "op": "upsert"} for row in ROWS]
    runs.run(source(rows), numbered)
    runs.run(source([{**rows[0], "version": 6, "op": "delete"}]), numbered)
    file = source(rows)
    assert differences(audit(str(file), numbered)) == {}
    store = open_store(to.store)
    Suppressions(store, "docs").add(("", "doc-1"))
    found = audit(str(file), numbered)
    assert (found.missing, found.surplus > 0, found.documents) == (0, True, 18)
    _, left = repair(str(file), numbered, LocalExecutor, runs.threading.Event())
    assert (left.clean, left.stored) == (True, 18)


def test_a_repair_resumes_no_run_that_remembers_as_done_what_is_damaged(to, source):
    def alone(**values):
        return to.model_copy(update={"source": to.source.model_copy(update=values)})

    runs.run(source(ROWS), to)
    file = source(ROWS[9:])
    assert runs.run(file, alone(snapshot=True)).refused  # unfinished, with all of its splits committed
    with Inside(to) as inside:
        inside.delete("doc-15", *range(9))
    _, left = repair(str(file), alone(max_deletes="100%"), LocalExecutor, runs.threading.Event())
    assert (left.clean, left.stored) == (True, 11)


def test_without_a_whole_source_or_a_collection_there_is_no_audit(to, source, tmp_path):
    file = source(ROWS)
    with pytest.raises(StoreError, match="no collection 'docs'"):
        audit(str(file), to)
    runs.run(file, to)
    (tmp_path / "folder").mkdir()
    documents.write(tmp_path / "folder" / "a.parquet", ROWS)
    (tmp_path / "folder" / "b.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match=r"b\.parquet"):
        audit(str(tmp_path / "folder"), to)


def test_a_repair_waits_for_nobodys_run(to, source):
    file = source(ROWS)
    runs.run(file, to)
    store = open_store(to.store)
    with hold_lease(store, "docs", "", 15, runs.threading.Event()), pytest.raises(CollectionHeld):
        repair(str(file), to, LocalExecutor, runs.threading.Event())
    assert audit(str(file), to).clean


# The comparison itself, against sets and dicts.

hashes = st.sampled_from([b"a" * 16, b"b" * 15 + b"\0"])
versions = st.tuples(hashes, hashes, st.integers(0, 1))
keys = st.sampled_from([bytes([n]) * 15 + b"\0" for n in range(5)])
chunks = st.lists(st.tuples(keys, st.integers(-1, 3)), max_size=20, unique=True)


@given(
    st.sets(keys),
    st.dictionaries(keys, versions),
    st.dictionaries(keys, st.tuples(versions, st.integers(1, 3), st.booleans())),
    chunks,
)
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
def test_a_bucket_is_compared_as_sets_would_be(rejected, read, heads, chunks):
    present = rejected | set(read)
    chunks = [chunk for chunk in chunks if chunk[1] != 0] + [(key, 0) for key in heads]
    ids = [bytes([n]) * 16 for n in range(len(chunks))]
    found = compare(
        np.array([(key,) for key in sorted(present)], KEYS),
        np.array([(key, *version) for key, version in read.items()], DOCUMENT),
        np.array([(key, *version, count, good) for key, (version, count, good) in heads.items()], HEAD),
        np.array([(key, id, index) for (key, index), id in zip(chunks, ids, strict=True)], POINT),
    )
    own = {key: {i for k, i in chunks if k == key and 0 <= i < count} for key, (_, count, _) in heads.items()}
    bad = {key for key, (_, count, good) in heads.items() if len(own[key]) != count or not good}
    older = {k for k in set(read) & set(heads) if read[k] != heads[k][0] and heads[k][0][2] <= read[k][2]}
    kept = (present & set(heads)) - set(read)
    orphaned = sum(key not in heads or index not in own[key] for key, index in chunks)
    assert found.audit == Audit(
        missing=len(set(read) - set(heads)),
        stale=len((bad | older) & set(read)) + len(kept & bad),
        kept_after_rejection=len(kept - bad),
        surplus=sum(len(own[key]) for key in set(heads) - present),
        orphaned=orphaned,
        documents=len(read),
        stored=len(heads),
        points=len(chunks),
    )
    assert len(found.orphans) == orphaned


def test_the_command(tiny_model, encoder_cache, source, tmp_path):
    where = ["--id", "id", "--text", "text", "--encoder", tiny_model]
    where += ["--store", f"edge:{tmp_path}/cli", "--collection", "docs", "--json"]
    runs.inside("ingest", source(ROWS), *where, cache=encoder_cache)
    file = source([{**row, "text": "New."} if number == 3 else row for number, row in enumerate(ROWS)])
    done = runs.inside("audit", file, *where, cache=encoder_cache)
    (found,) = runs.lines(done.stdout)
    assert (done.returncode, found["stale"], found["documents"]) == (4, 1, 20)
    done = runs.inside("audit", file, *where, "--repair", cache=encoder_cache)
    (found,) = runs.lines(done.stdout)
    assert (done.returncode, found["stale"], found["left"]["stale"]) == (0, 1, 0)
    assert runs.inside("audit", file, *where, cache=encoder_cache).returncode == 0
