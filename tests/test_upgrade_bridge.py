"""A family: mapped and embedded points in one collection, of several versions, until all are embedded."""

import threading
from datetime import UTC, datetime

import documents
import numpy as np
import points
import pytest
import runs
import upgrades
from upgrades import changed, expected, held, how, ingest, pair, promoted, upgrade

from pipeline.audit import audit
from pipeline.codes import load_codes, make_binarizer, save_codes, to_rows
from pipeline.encoders import describe, load_plain_encoder
from pipeline.errors import CollectionHeld, EncoderError, UpgradeRefused, UsageError
from pipeline.forget import forget
from pipeline.search import Reader
from pipeline.stores import hold_lease, open_store
from pipeline.upgrade.candidate import Way
from pipeline.upgrade.limits import Hours, Limits
from pipeline.upgrade.listing import list_versions
from pipeline.upgrade.vectors import Embedder
from pipeline.upgrade.versions import Version
from pipeline.versions import Bridge, BridgeSpec, load_bridge, save_bridge
from pipeline.versions.maps import Map

MAP_ONLY = 0


@pytest.fixture(scope="module")
def rows():
    return [changed(row, at=1, op="upsert") for row in documents.rows(16, most_words=90)]


def make_bridge(old, new, folder, seed=0):
    """A bridge between two encoders of these settings, drawn at random."""
    before, after = (describe(one.encoder.model_copy(update={"codes": ""})) for one in (old, new))
    draw = np.random.default_rng(seed)
    weight = draw.normal(size=(before.dims, after.dims)).astype(np.float32)
    spec = BridgeSpec(before.version, after.version, "old", "new", before.dims, after.dims, "m", "m")
    there, back = (
        Map(weight, np.ones(after.dims, np.float32)),
        Map(weight.T.copy(), np.zeros(before.dims, np.float32)),
    )
    save_bridge(Bridge(spec, {"document": {"m": there}, "query": {"m": back}}, {}), folder)
    return folder


def contract(settings, alias="docs"):
    store = open_store(settings.store)
    try:
        return Version.read(store, alias).contract
    finally:
        store.close()


@pytest.fixture
def both(tiny_model, wide_model, encoder_cache, tmp_path):
    return pair(tiny_model, wide_model, encoder_cache, f"memory:{tmp_path}", tmp_path)


def test_all_is_mapped_at_once_serves_and_is_embedded_by_and_by(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    before = held(old)
    folder = make_bridge(old, new, tmp_path / "bridge")
    bridge = load_bridge(folder)
    with pytest.raises(EncoderError, match="fitted for the old encoder"):
        upgrade(new, bridge=make_bridge(new, old, tmp_path / "wrong"))
    found = upgrade(new, bridge=folder, limits=Limits(max_tokens=MAP_ONLY))
    assert (found.way, found.complete, found.exit_code) == (Way.FAMILY, True, 0)
    assert (found.done.mapped, found.done.copied, found.done.left) == (16, 0, 16)
    was, now = contract(old).encoder_version, describe(new.encoder).version
    assert found.points == {now: 0, was: len(before)}
    assert contract(old, "docs@next").compatible == {was: bridge.fingerprint}
    for id, (payload, vector) in held(old, "docs@next").items():
        theirs, old_vector = before[id]
        assert payload["headwater"] == theirs["headwater"] | {"bridge": bridge.fingerprint}
        mapped = bridge.documents(np.array([old_vector], np.float32))[0]
        np.testing.assert_allclose(vector, mapped, atol=1e-5)

    ingest(old, [changed(rows[0], at=2, year=1900), changed(rows[1], at=2, text="fresh")], tmp_path)
    again = upgrade(new, bridge=folder, limits=Limits(max_tokens=MAP_ONLY))
    assert (again.done.mapped, again.done.patched, again.done.left) == (1, 1, 16)
    upgrade(new, limits=Limits(max_tokens=300))
    promoted(new)
    with Reader.open(new.store, how(new)) as reader:
        assert {hit.encoder_version for hit in reader.search("river stone", 30)} == {was, now}
    listed = {one.role: one for one in list_versions(new)}
    assert listed["serving"].by_version.keys() == {was, now}
    assert listed["serving"].bridges == (bridge.fingerprint,)
    assert (listed["previous"].by_version, listed["serving"].way) == (
        {was: len(held(new, "docs@previous"))},
        Way.FAMILY,
    )
    now_rows = [changed(rows[0], at=2, year=1900), changed(rows[1], at=3, text="fresher"), *rows[2:]]
    ingest(new, [now_rows[1]], tmp_path)
    last = upgrade(new)
    assert (last.way, list(last.points)) == (Way.IN_PLACE, [now])
    assert contract(new).compatible == {}
    points.assert_same(held(new), expected(new, now_rows, tmp_path / "expected"))
    assert upgrade(new, bridge=folder).way is Way.NOTHING
    with pytest.raises(EncoderError, match="fitted for the new encoder"):
        upgrade(new, bridge=make_bridge(new, old, tmp_path / "away"))


def test_a_bridge_that_comes_too_late_is_said_and_a_mixed_collection_shows_what_is_mapped(
    both, rows, tmp_path, encoder_cache
):
    old, new = both
    ingest(old, rows[:4], tmp_path)
    bridge = make_bridge(old, new, tmp_path / "bridge")
    where = ("--store", new.store.url, "--collection", "docs", "--set", "encoder.provider=cpu")
    words = (
        "reindex",
        "--to",
        new.encoder.model,
        "--set",
        "chunking.max_tokens=48",
        "--bridge",
        bridge,
        *where,
    )
    first = runs.inside(*words, "--max-tokens", "0", cache=encoder_cache)
    assert (first.returncode, "not needed" in first.stderr) == (0, False), first.stderr
    listed = runs.inside("versions", "list", *where[:4], cache=encoder_cache).stdout
    assert f"points are of {contract(old).encoder_version[:12]}, mapped by" in listed
    assert max(map(len, listed.splitlines())) <= 160
    upgrade(new)
    late = runs.inside(*words, cache=encoder_cache)
    assert "docs@next has a vector for every document" in late.stderr, late.stderr


def mapped(both, rows, tmp_path):
    """A collection of which all points were mapped, and serve."""
    old, new = both
    ingest(old, rows, tmp_path)
    folder = make_bridge(old, new, tmp_path / "bridge")
    upgrade(new, bridge=folder, limits=Limits(max_tokens=MAP_ONLY))
    promoted(new)
    return new


def test_in_place_others_write_while_it_embeds_and_their_word_stays(both, rows, tmp_path, monkeypatch):
    new = mapped(both, rows, tmp_path)
    edits = [
        changed(rows[0], at=2, text="fresh"),
        changed(rows[1], at=2, year=1900),
        changed(rows[2], at=2, op="delete"),
    ]
    encode, done = Embedder.make, []

    def meanwhile(self, given):
        if not done:
            done.append(1)
            ingest(new, edits, tmp_path)
            assert forget(new, ("", "doc-3"), tmp_path / "state").left == 0
        return encode(self, given)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "make", meanwhile)
        found = upgrade(new)
    assert (found.way, len(found.points), found.done.left) == (Way.IN_PLACE, 1, 0)
    points.assert_same(held(new), expected(new, [*edits[:2], *rows[4:]], tmp_path / "expected"))


def test_in_place_others_write_while_it_waits_for_its_hours(both, rows, tmp_path):
    new = mapped(both, rows, tmp_path)
    stop, seen = threading.Event(), []

    def observe(progress):
        if progress.stage.startswith("waiting"):
            ingest(new, [changed(rows[0], at=2, text="fresh")], tmp_path)
            seen.append(progress)
            stop.set()

    night = Limits(hours=Hours.read("01:00-05:00"), now=lambda: datetime(2030, 1, 1, 12, tzinfo=UTC))
    assert upgrade(new, limits=night, stop=stop, observe=observe).exit_code == 130
    assert len(seen) == 1
    assert "fresh" in {payload["text"] for payload, _ in held(new).values()}


def test_in_place_nothing_is_written_while_another_run_has_the_collection(both, rows, tmp_path):
    new = mapped(both, rows, tmp_path)
    assert audit(str(tmp_path / "rows-0.parquet"), new).clean  # what was mapped is as it should be
    before = held(new)
    with (
        hold_lease(open_store(new.store), "docs", "watch", 5, threading.Event()),
        pytest.raises(CollectionHeld, match="run watch"),
    ):
        upgrade(new)
    assert held(new) == before


def test_in_place_a_run_that_waits_gets_its_turn(both, rows, tmp_path):
    new = mapped(both, rows, tmp_path)
    new = new.model_copy(update={"run": new.run.model_copy(update={"lease_s": 2, "window_tokens": 1})})
    ready, got = threading.Event(), []

    def waits():
        ready.wait(30)
        for _ in range(3):  # at once again and again, as a scheduler would not
            with hold_lease(open_store(new.store), "docs", "ingest", 2, threading.Event()):
                got.append(1)

    other = threading.Thread(target=waits)
    other.start()
    upgrade(new, observe=lambda _: ready.set())
    other.join()
    assert len(got) == 3


def test_three_versions_in_one_collection(both, rows, tmp_path):
    old, new = both
    third = old.model_copy(update={"encoder": old.encoder.model_copy(update={"max_tokens": 50})})
    ingest(old, rows, tmp_path)
    upgrade(new, bridge=make_bridge(old, new, tmp_path / "first"), limits=Limits(max_tokens=MAP_ONLY))
    upgrade(new, limits=Limits(max_tokens=500))
    promoted(new)
    second = make_bridge(new, third, tmp_path / "second")
    upgrades.retire_now(new)
    with pytest.raises(UpgradeRefused, match="embed them first"):  # mapped twice, not embedded
        upgrade(old, bridge=make_bridge(new, old, tmp_path / "back"))
    found = upgrade(third, bridge=second, limits=Limits(max_tokens=200))
    assert (len(found.points), found.complete) == (3, True)
    assert all(found.points.values())
    compatible = contract(third, "docs@next").compatible
    assert set(compatible.values()) == {load_bridge(second).fingerprint}
    assert len(compatible) == 2
    with pytest.raises(UpgradeRefused, match="retire --next"):
        upgrade(third, bridge=make_bridge(new, third, tmp_path / "refitted", seed=1))


def test_codes_and_named_vectors(tiny_model, wide_model, encoder_cache, rows, tmp_path):
    old, new = pair(
        tiny_model, wide_model, encoder_cache, f"memory:{tmp_path}", tmp_path, store__vector_name="text"
    )
    encoder = load_plain_encoder(new.encoder)
    sample = encoder.encode_queries([row["text"][:99] for row in rows])
    version = encoder.spec.version
    encoder.close()
    folder = tmp_path / "codes"
    save_codes(make_binarizer("rotation", sample, 40, 2, encoder_version=version), folder)
    binarizer, bridge = load_codes(folder), make_bridge(old, new, tmp_path / "bridge")
    ingest(old, rows, tmp_path)
    before = held(old)
    coded = new.model_copy(update={"encoder": new.encoder.model_copy(update={"codes": str(folder)})})
    found = upgrade(coded, bridge=bridge, limits=Limits(max_tokens=MAP_ONLY))
    assert (found.done.mapped, found.complete) == (16, True)
    assert list(contract(old).encoder_versions) == [id for id, count in found.points.items() if count]
    after = held(old, "docs@next")
    ids = sorted(after)
    mapped = load_bridge(bridge).documents(np.array([before[id][1]["text"] for id in ids], np.float32))
    np.testing.assert_allclose([after[id][1]["text"] for id in ids], mapped, atol=1e-3)
    codes = to_rows(binarizer.encode(mapped), 2)
    assert (np.sign([after[id][1]["codes"] for id in ids]) == np.sign(codes)).all()
    assert upgrade(coded).done.copied == 16
    promoted(coded)
    wanted = expected(coded, rows, tmp_path / "expected")
    upgrades.assert_same_named(held(coded), wanted)
    with Reader.open(coded.store, how(coded)) as reader:
        assert len(reader.search("river", 3)) == 3
    back = new.model_copy(update={"encoder": old.encoder})
    with pytest.raises(UsageError, match="--bridge and --from"):
        upgrade(back, bridge=bridge, source="x.parquet")
