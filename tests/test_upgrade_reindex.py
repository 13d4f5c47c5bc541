"""Reindexing: the candidate is what an ingest by the new encoder would make, however it was filled and interrupted."""

import threading
from datetime import UTC, datetime, time

import documents
import numpy as np
import points
import pytest
import runs
import upgrades
from upgrades import at, changed, expected, held, ingest, pair, upgrade

from pipeline.config import AspectConfig, QuantizationConfig, StoreConfig
from pipeline.errors import CollectionHeld, CollectionMismatch, UpgradeRefused, UsageError
from pipeline.forget import forget
from pipeline.ingest import state_folder
from pipeline.schemas import point_id
from pipeline.stores import (
    Points,
    Purpose,
    collection,
    hold_lease,
    open_collection,
    open_store,
    settings_like,
)
from pipeline.upgrade.candidate import Way
from pipeline.upgrade.limits import Hours, Limits


@pytest.fixture(scope="module")
def rows():
    return [changed(row, at=1, op="upsert") for row in documents.rows(12, most_words=120)]


@pytest.fixture(params=["edge", "grpc"])
def both(request, tiny_model, wide_model, encoder_cache, tmp_path):
    """Settings of the old and of the new encoder for one collection."""
    url = f"edge:{tmp_path}/index"
    if request.param == "grpc":
        url = request.getfixturevalue("qdrant").grpc_url
        with_store = open_store(runs.settings("m", encoder_cache, url).store)
        for left in with_store.get_collections().collections:
            with_store.delete_collection(left.name)
        with_store.close()
    return pair(tiny_model, wide_model, encoder_cache, url, tmp_path)


@pytest.fixture
def memory(tiny_model, wide_model, encoder_cache, tmp_path):
    return pair(tiny_model, wide_model, encoder_cache, f"memory:{tmp_path}", tmp_path)


def test_it_is_what_an_ingest_makes_also_after_changes_and_nothing_comes_back(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    before = held(old)
    found = upgrade(new)
    assert (found.way, found.complete, found.done.copied, found.exit_code) == (Way.PAYLOAD, True, 12, 0)
    assert found.points == {found.encoder_version: len(before)}
    points.assert_same(held(old, "docs@next"), expected(new, rows, tmp_path / "first"))
    points.assert_same(held(old), before)

    edits = [
        changed(rows[0], at=2, text=rows[1]["text"]),
        changed(rows[1], at=2, year=1900),
        changed(rows[2], at=2, op="delete"),
        changed(rows[3], id="new", at=2),
        changed(rows[4], at=2, text="short"),
    ]
    ingest(old, edits, tmp_path)
    forget(old, ("", "doc-5"), state_folder(old))
    again = upgrade(new)
    assert (again.done.copied, again.done.patched, again.done.deleted) == (
        3,
        1,
        1,
    )  # a forgotten one is gone already
    now = {row["id"]: row for row in [*rows, *edits] if row["id"] != "doc-5"}
    wanted = expected(new, [row for row in now.values() if row["op"] == "upsert"], tmp_path / "second")
    points.assert_same(held(old, "docs@next"), wanted)
    assert upgrades.tombstones(old, "docs@next") == upgrades.tombstones(old, "docs") == {("", "doc-2"): 2}
    assert upgrade(new).done.tokens == 0


def test_live_runs_go_on_beside_it_and_the_candidate_is_a_collection_like_any(memory, rows, tmp_path):
    old, new = memory
    ingest(old, rows, tmp_path)
    upgrade(new, limits=Limits(max_tokens=200))
    assert (
        0 < len({payload["headwater"]["document_id"] for payload, _ in held(old, "docs@next").values()}) < 12
    )
    ingest(at(new, "docs@next"), rows[:6], tmp_path)
    ingest(old, rows, tmp_path)
    with pytest.raises(CollectionMismatch, match="reindex --to"):
        ingest(at(old, "docs@next"), rows, tmp_path)
    assert upgrade(new).complete
    points.assert_same(held(old, "docs@next"), expected(new, rows, tmp_path / "expected"))


def test_a_budget_ends_a_run_and_the_next_goes_on(memory, rows, tmp_path):
    old, new = memory
    ingest(old, rows, tmp_path)
    spent, left = [], [12]
    while left[-1]:
        found = upgrade(new, limits=Limits(max_tokens=400))
        assert found.exit_code == 0
        assert found.limit_reached == bool(found.done.left) != found.complete
        spent.append(found.done.tokens)
        left.append(found.done.left)
    assert len(spent) > 2
    assert max(spent) <= 400
    assert left == sorted(left, reverse=True)
    points.assert_same(held(old, "docs@next"), expected(new, rows, tmp_path / "expected"))


def test_outside_its_hours_it_waits_and_can_be_stopped(memory, rows, tmp_path):
    old, new = memory
    ingest(old, rows, tmp_path)
    stop, clock = (
        threading.Event(),
        iter([datetime(2030, 1, 1, 4, 59, tzinfo=UTC), *[datetime(2030, 1, 1, 5, 0, tzinfo=UTC)] * 99]),
    )
    seen = []

    def observe(progress):
        seen.append(progress.stage)
        if progress.stage.startswith("waiting"):
            stop.set()

    limits = Limits(hours=Hours.read("01:00-05:00"), now=lambda: next(clock))
    found = upgrade(new, limits=limits, stop=stop, observe=observe)
    assert (found.exit_code, found.complete) == (130, False)
    assert "waiting for 01:00" in seen
    assert upgrade(new).complete


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("01:00-05:00", ("01:00", "04:59"), ("00:59", "05:00")),
        ("22:30-04:00", ("22:30", "00:00"), ("04:00", "12:00")),
    ],
)
def test_hours(text, inside, outside):
    hours = Hours.read(text)
    assert all(hours.hold(time.fromisoformat(moment)) for moment in inside)
    assert not any(hours.hold(time.fromisoformat(moment)) for moment in outside)


@pytest.mark.parametrize("text", ["1-5", "01:00", "25:00-26:00", "01:00-05:60", ""])
def test_hours_that_are_none(text):
    with pytest.raises(UsageError, match="--window"):
        Hours.read(text)


def test_another_target_another_run_and_no_collection_are_refused(memory, rows, tmp_path):
    old, new = memory
    with pytest.raises(CollectionMismatch, match="no collection 'docs'"):
        upgrade(new)
    ingest(old, rows[:3], tmp_path)
    assert upgrade(old).way is Way.NOTHING
    upgrade(new)
    with pytest.raises(UpgradeRefused, match="retire --next"):
        upgrade(old.model_copy(update={"encoder": narrow(old).encoder}))
    with pytest.raises(UsageError, match="Say docs"):
        upgrade(at(new, "docs@next"))
    store, _ = open_collection(old.store, Purpose.SEARCH)
    with (
        hold_lease(store, "docs@next", "nightly", 2, threading.Event()),
        pytest.raises(CollectionHeld, match="nightly"),
    ):
        upgrade(new)


def test_late_chunking_needs_the_documents(memory, rows, tmp_path):
    old, new = memory
    ingest(old, rows[:3], tmp_path)
    late = new.model_copy(
        update={
            "encoder": new.encoder.model_copy(update={"long": "late-chunking"}),
            "chunking": new.chunking.model_copy(update={"max_tokens": 24, "overlap_tokens": 0}),
        }
    )
    cut_so = old.model_copy(update={"chunking": late.chunking})
    with pytest.raises(UpgradeRefused, match=r"\[chunking\].*--from"):
        upgrade(late)
    ingest(at(cut_so, "other"), rows[:3], tmp_path)
    with pytest.raises(UpgradeRefused, match=r"without the documents around them.*--from"):
        upgrade(at(late, "other"))
    assert "other@next" not in upgrades.aliases(old)  # nothing was begun
    source = str(documents.write(tmp_path / "all.parquet", rows[:3]))
    assert upgrade(at(late, "other"), source=source).complete
    upgrades.promoted(at(late, "other"))
    third = at(new.model_copy(update={"chunking": late.chunking}), "other")
    upgrades.retire_now(third)
    upgrade(third)
    upgrades.promoted(third)
    ingest(third, [changed(rows[0], at=2, text="fresh words")], tmp_path)
    with pytest.raises(
        UpgradeRefused, match=r"'doc-0': .*late-chunking.* within its whole document.*ingest --coll"
    ):
        upgrades.rolled_back(third)


def test_the_same_encoder_with_other_chunking_needs_the_source(memory, rows, tmp_path):
    old, _ = memory
    ingest(old, rows[:3], tmp_path)
    finer = old.model_copy(update={"chunking": old.chunking.model_copy(update={"max_tokens": 20})})
    with pytest.raises(UpgradeRefused, match=r"cut with chunker.*--from"):
        upgrade(finer)
    source = str(documents.write(tmp_path / "all.parquet", rows[:3]))
    assert upgrade(finer, source=source).complete


def test_the_candidate_is_made_like_what_serves_unless_settings_say_otherwise(
    tiny_model, wide_model, encoder_cache, rows, tmp_path
):
    like = {
        "store__hnsw__m": 8,
        "store__quantization__kind": "scalar",
        "store__quantization__quantile": 0.9,
        "store__on_disk_payload": True,
        "store__on_disk_vectors": True,
        "store__sparse_vector": "words",
        "store__payload_indexes": {"year": "integer"},
    }
    where = f"edge:{tmp_path}/index"
    old, _ = pair(tiny_model, wide_model, encoder_cache, where, tmp_path, **like)
    _, new = pair(tiny_model, wide_model, encoder_cache, where, tmp_path, store__hnsw__m=32)
    ingest(old, rows[:2], tmp_path)
    store = open_store(old.store)
    serving = collection.resolve(store, "docs")
    other = Points([point_id("", "x", 7)], {"": np.ones((1, 32), np.float32)}, [{"theirs": 1}])
    store.upsert(serving, other)
    store.close()
    found = upgrade(new)
    store = open_store(old.store)
    before, after = (store.get_collection(alias).config for alias in ("docs", "docs@next"))
    assert (before.hnsw_config.m, after.hnsw_config.m) == (8, 32)  # which the command itself sets
    assert after.quantization_config == before.quantization_config
    assert after.quantization_config.scalar.quantile == pytest.approx(0.9)
    assert after.params.on_disk_payload is after.params.vectors.on_disk is True
    assert set(after.params.sparse_vectors) == {"words"}
    assert "metadata.year" in store.get_collection("docs@next").payload_schema
    store.close()
    assert found.as_dict()["not_carried"] == {"points": 1, "vectors": (), "sparse_vectors": ("words",)}
    assert upgrades.promoted(new).not_carried.points == 1


@pytest.mark.parametrize(
    "quantization",
    [
        QuantizationConfig(),
        QuantizationConfig(kind="product", compression="x8", always_ram=True),
        QuantizationConfig(kind="binary", bits=1.5),
        QuantizationConfig(kind="turbo", bits=4, always_ram=False),
    ],
)
def test_a_quantization_is_read_as_it_was_set(quantization):
    store = open_store(StoreConfig(url="memory:"))
    physical = collection.create(store, "docs", StoreConfig(), 4, {})
    info = store.get_collection(physical)
    info.config.quantization_config = collection._quantization(quantization)

    class Told:
        def get_collection(self, name):
            return info

    assert settings_like(Told(), physical, "")["quantization"] == quantization


def test_points_of_several_vectors_are_refused_before_anything_is_made(memory, rows, tmp_path):
    old, new = memory
    ingest(old, rows[:2], tmp_path)
    with pytest.raises(UpgradeRefused, match="further vectors: small"):
        upgrade(new.model_copy(update={"aspects": {"small": AspectConfig(dims=16)}}))
    assert set(upgrades.aliases(old)) == {"docs"}


@pytest.mark.parametrize("suffix", ["@next", "@previous"])
def test_no_ingest_makes_another_version(memory, rows, tmp_path, suffix):
    old, _ = memory
    ingest(old, rows[:3], tmp_path)
    with pytest.raises(UsageError, match=f"there is no 'docs{suffix}'"):
        ingest(at(old, "docs" + suffix), rows[:3], tmp_path)
    assert set(upgrades.aliases(old)) == {"docs"}


def test_chunks_too_long_for_the_new_encoder_are_named(memory, rows, tmp_path):
    old, _ = memory
    old = narrow(old, 64)
    ingest(old, rows, tmp_path)
    new = narrow(old)
    found = upgrade(new)
    assert (found.exit_code, found.complete) == (3, False)
    assert {one.reason for one in found.done.rejected} == {"too_long"}
    assert 0 < len(found.done.rejected) < 12
    cut_finer = {"chunking": new.chunking.model_copy(update={"max_tokens": 20})}
    with pytest.raises(UpgradeRefused, match="--from"):  # neither encoder would have cut so
        upgrade(new.model_copy(update=cut_finer))


def narrow(settings, max_tokens=50):
    """The same model, which takes fewer tokens: another encoder; its chunks are as long as it takes."""
    changes = {
        "encoder": settings.encoder.model_copy(update={"max_tokens": max_tokens}),
        "chunking": settings.chunking.model_copy(update={"max_tokens": 0}),
    }
    return settings.model_copy(update=changes)


def test_a_new_chunking_is_filled_from_the_source(memory, rows, tmp_path):
    old, new = memory
    ingest(old, [*rows, changed(rows[0], id="gone")], tmp_path)
    ingest(old, [changed(rows[0], id="gone", at=5, op="delete")], tmp_path)
    fine = new.model_copy(update={"chunking": new.chunking.model_copy(update={"max_tokens": 24})})
    file = documents.write(tmp_path / "all.parquet", [*rows, changed(rows[0], id="gone")])
    found = upgrade(fine, source=str(file))
    assert (found.way, found.complete, found.ingested.counts.indexed) == (Way.SOURCE, True, 12)
    assert found.ingested.counts.stale == 1  # what was deleted stays deleted
    points.assert_same(held(old, "docs@next"), expected(fine, rows, tmp_path / "expected"))
    finer = new.model_copy(update={"chunking": new.chunking.model_copy(update={"max_tokens": 20})})
    with pytest.raises(UpgradeRefused, match="and this is another chunker\\. "):
        upgrade(finer, source=str(file))
    with pytest.raises(UsageError, match="--max-tokens"):
        upgrade(fine, source=str(file), limits=Limits(max_tokens=5))
