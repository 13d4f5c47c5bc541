"""Promotion and the way back: one version serves at every moment, and it holds all that changed in between."""

import threading
from datetime import UTC, datetime

import documents
import points
import pytest
import upgrades
from histories import Crashing
from upgrades import Says, aliases, changed, expected, held, ingest, pair, promoted, rolled_back, upgrade

from pipeline.errors import CollectionHeld, CollectionMismatch, StoreUnavailable, UpgradeRefused
from pipeline.schemas import point_id
from pipeline.stores import hold_lease, open_store
from pipeline.stores.collection import point_aliases
from pipeline.upgrade import versions as module
from pipeline.upgrade.promotion import retire
from pipeline.upgrade.versions import Versions, read_record


@pytest.fixture
def both(tiny_model, wide_model, encoder_cache, tmp_path):
    return pair(tiny_model, wide_model, encoder_cache, f"memory:{tmp_path}", tmp_path)


@pytest.fixture(scope="module")
def rows():
    return [changed(row, at=1, op="upsert") for row in documents.rows(12, most_words=90)]


def test_there_and_back_with_all_that_changed(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    upgrade(new)
    first = aliases(old)
    ingest(old, [changed(rows[0], at=2, text="fresh"), changed(rows[1], at=2, op="delete")], tmp_path)
    done = promoted(new)
    assert (done.serving, done.before) == (first["docs@next"], first["docs"])
    assert aliases(old) == {"docs": first["docs@next"], "docs@previous": first["docs"]}
    now = [changed(rows[0], at=2, text="fresh"), *rows[2:]]
    points.assert_same(held(new), expected(new, now, tmp_path / "promoted"))
    with pytest.raises(CollectionMismatch, match="reindex --to"):
        ingest(old, rows, tmp_path)

    ingest(
        new,
        [
            changed(rows[2], at=3, year=1900),
            changed(rows[3], at=3, op="delete"),
            changed(rows[0], id="b", at=3),
        ],
        tmp_path,
    )
    back = rolled_back(new)
    assert back.caught_up == 4  # with a tombstone
    assert aliases(old) == first
    now = [now[0], changed(rows[2], at=3, year=1900), *rows[4:], changed(rows[0], id="b", at=3)]
    points.assert_same(held(old), expected(old, now, tmp_path / "back"))
    assert upgrades.tombstones(old, "docs") == {("", "doc-1"): 2, ("", "doc-3"): 3}
    ingest(old, [changed(rows[4], at=9, text="after")], tmp_path)
    assert promoted(new).caught_up == 1
    assert aliases(old)["docs"] == first["docs@next"]


def test_what_is_not_good_is_refused_and_leaves_everything(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    with pytest.raises(UpgradeRefused, match="no version of 'docs' is being built"):
        promoted(new)
    with pytest.raises(UpgradeRefused, match="no version of 'docs' is kept"):
        rolled_back(new)
    with pytest.raises(UpgradeRefused, match="is kept"):
        retire(new, threading.Event(), now=True)
    upgrade(new)
    before = aliases(old)
    for outcome in ("hold", "fail"):
        with pytest.raises(UpgradeRefused, match=f"says {outcome} .*it is worse"):
            promoted(new, Says(outcome))
    store = open_store(old.store)
    store.set_payload(before["docs"], {"writing": True}, [point_id("", "doc-0", 0)], key="headwater")
    with pytest.raises(UpgradeRefused, match="half-written"):
        promoted(new)
    ingest(old, [changed(row, at=2) for row in rows], tmp_path)
    for alias, name in (("docs@next", "nightly"), ("docs", "watch")):
        with (
            hold_lease(store, alias, name, 15, threading.Event()),
            pytest.raises(CollectionHeld, match=f"run {name}"),
        ):
            promoted(new)
    assert aliases(old) == before


def test_versions_that_change_under_a_command_stop_it(both, rows, tmp_path):
    old, new = both
    ingest(old, rows, tmp_path)
    upgrade(new)
    before = aliases(old)

    def judge(store):
        point_aliases(store, {"docs": before["docs@next"], "docs@next": None})
        return Says()

    with pytest.raises(UpgradeRefused, match="have changed since"):
        promoted(new, judge)
    assert aliases(old) == {"docs": before["docs@next"]}


def test_documents_that_cannot_go_back_as_they_are_cut_are_named_and_their_source_brings_them(
    both, rows, tmp_path
):
    old, new = (
        one.model_copy(update={"chunking": one.chunking.model_copy(update={"max_tokens": 0})}) for one in both
    )
    short = old.model_copy(update={"encoder": old.encoder.model_copy(update={"max_tokens": 50})})
    ingest(short, rows, tmp_path)
    upgrade(new)
    promoted(new)
    fresh = changed(rows[0], at=2, text=" ".join(["river"] * 60))
    ingest(new, [fresh], tmp_path)
    serving = aliases(new)
    with pytest.raises(UpgradeRefused, match=r"the first 'doc-0'.*ingest --collection docs@previous"):
        rolled_back(new)
    assert aliases(new) == serving
    ingest(upgrades.at(short, "docs@previous"), [fresh], tmp_path)
    rolled_back(new)
    points.assert_same(held(short), expected(short, [fresh, *rows[1:]], tmp_path / "back"))


def test_retire_waits_for_its_time_and_throws_candidates_away(both, rows, tmp_path):
    old, new = both
    ingest(old, [*rows, changed(rows[0], id="x", at=2, op="delete")], tmp_path)
    upgrade(new)
    thrown = aliases(old)["docs@next"]
    assert retire(new, threading.Event(), candidate=True) == thrown
    assert set(aliases(old)) == {"docs"}
    upgrade(new)
    promoted(new)
    with pytest.raises(UpgradeRefused, match="is kept until"):
        retire(new, threading.Event())
    upgraded = new.model_copy(update={"encoder": old.encoder})
    upgrade(upgraded)
    with pytest.raises(UpgradeRefused, match="still kept from the upgrade before"):
        promoted(upgraded)
    with pytest.raises(UpgradeRefused, match="One candidate"):
        rolled_back(upgraded)
    over = new.model_copy(update={"versions": new.versions.model_copy(update={"keep_s": 0})})
    gone = retire(over, threading.Event())
    store = open_store(old.store)
    names = {one.name for one in store.get_collections().collections}
    assert {name for name in names if name.startswith("docs__")} - set(aliases(old).values()) == {
        f"{physical}__deleted" for physical in aliases(old).values()
    }
    assert gone not in names


class CrashingSwaps(Crashing):
    """Dies at its k-th change, of points, aliases or metadata, before it or after it."""

    def __getattr__(self, name):
        if name not in ("update_collection_aliases", "update_collection", "delete_collection"):
            return super().__getattr__(name)
        call = getattr(self._store, name)

        def change(*arguments, **keywords):
            self.changes += 1
            if (
                self._crash is None
                or self.changes <= self._crash
                or (self.changes == self._crash + 1 and self._whole)
            ):
                result = call(*arguments, **keywords)
            if self._crash is not None and self.changes > self._crash:
                raise StoreUnavailable("crashed")
            return result

        return change


@pytest.mark.parametrize("whole", [False, True])
def test_wherever_it_dies_one_version_serves_and_the_same_again_ends_right(
    both, rows, tmp_path, monkeypatch, whole
):
    old, new = both
    unleased = [one.model_copy(update={"run": one.run.model_copy(update={"lease_s": 0})}) for one in both]
    ingest(old, rows, tmp_path)
    upgrade(new)
    first = aliases(old)
    ingest(old, [changed(rows[0], at=2, text="fresh"), changed(rows[1], at=2, op="delete")], tmp_path)
    after = {"docs": first["docs@next"], "docs@previous": first["docs"]}
    for command, done, undone in ((promoted, after, first), (rolled_back, first, after)):
        crash, crashed = 0, True
        while crashed:
            with monkeypatch.context() as patch:
                dying = CrashingSwaps(open_store(new.store), crash, whole)
                patch.setattr(module, "open_store", lambda *_, dying=dying: dying)
                try:
                    command(unleased[1])
                    crashed = False
                except StoreUnavailable:
                    crash += 1
            assert aliases(old) in (done, undone)
            if crashed and aliases(old) == done:
                break
        store = open_store(old.store)
        versions = Versions.read(store, "docs")
        if versions.previous:
            with pytest.raises(UpgradeRefused, match="is kept until"):
                retire(new, threading.Event())  # which fills in the record
            when = read_record(store, versions.serving.physical)["promoted"]
            assert abs((datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()) < 600
        assert aliases(old) == done
        assert crash > 0
        document = next(payload for payload, _ in held(old).values() if payload["text"] == "fresh")
        assert document["headwater"]["sequence"] == 2
        assert len({payload["headwater"]["document_id"] for payload, _ in held(old).values()}) == 11
