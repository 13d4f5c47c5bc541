"""Promotion and the way back: one version serves at every moment, and it holds all that changed in between."""

import threading
import time
from datetime import UTC, datetime
from functools import partial

import documents
import points
import pytest
import upgrades
from upgrades import Says, aliases, changed, expected, held, ingest, pair, promoted, rolled_back, upgrade
from waiting import wait_for

from pipeline import ingest as ingesting
from pipeline.errors import CollectionHeld, CollectionMismatch, LeaseLost, StoreUnavailable, UpgradeRefused
from pipeline.forget import forget
from pipeline.schemas import point_id
from pipeline.stores import Suppressions, hold_lease, lease, open_store
from pipeline.stores.collection import point_aliases
from pipeline.upgrade import promotion
from pipeline.upgrade import versions as module
from pipeline.upgrade.listing import list_versions
from pipeline.upgrade.promotion import retire, retire_unused
from pipeline.upgrade.versions import read_record
from pipeline.upgrade.writing import Writing


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
    promoted_at = list_versions(new)[0].since
    assert promoted_at
    back = rolled_back(new)
    assert back.caught_up == 4  # with a tombstone
    assert list_versions(old)[0].since >= promoted_at
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
    with pytest.raises(UpgradeRefused, match="There is nothing to throw away"):
        retire(new, threading.Event(), candidate=True)
    upgrade(new)
    before = aliases(old)
    for outcome in ("hold", "fail"):
        with pytest.raises(UpgradeRefused, match=f"says {outcome} .*it is worse") as refused:
            promoted(new, Says(outcome))
        assert ("gate.tolerance, which is 0.01 now" in str(refused.value)) == (outcome == "hold")
    store = open_store(old.store)
    store.set_payload(before["docs"], {"writing": True}, [point_id("", "doc-0", 0)], key="headwater")
    with pytest.raises(UpgradeRefused, match="half-written"):
        promoted(new)
    ingest(old, [changed(row, at=2) for row in rows], tmp_path)
    for alias, name in (("docs@next", "nightly"), ("docs", "watch")):
        with (
            hold_lease(store, alias, name, 2, threading.Event()),
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


def test_a_stop_leaves_the_version_that_serves_also_where_the_other_is_cut_anew(both, rows, tmp_path):
    old, new = both
    fine = new.model_copy(update={"chunking": new.chunking.model_copy(update={"max_tokens": 24})})
    ingest(old, rows[:3], tmp_path)
    upgrade(fine, source=str(documents.write(tmp_path / "all.parquet", rows[:3])))
    before, stop = aliases(old), threading.Event()

    def judge(store):
        stop.set()
        return Says()

    with pytest.raises(UpgradeRefused, match="interrupted"):
        promotion.promote(fine, upgrades.how(fine), judge, stop)
    assert aliases(old) == before
    assert promoted(fine).before == before["docs"]


def test_forget_waits_for_what_is_being_written_beside_and_then_nothing_is_left(
    tiny_model, wide_model, encoder_cache, rows, tmp_path, monkeypatch
):
    where = f"memory:{tmp_path}"
    old, new = pair(tiny_model, wide_model, encoder_cache, where, tmp_path, versions__wait_s=30)
    ingest(old, rows, tmp_path)
    write, found, threads = Writing._copy, [], []

    def forgets(self, store, wanted):
        thread = threading.Thread(target=lambda: found.append(forget(old, ("", "doc-0"), tmp_path / "state")))
        thread.start()
        threads.append(thread)
        wait_for(lambda: Suppressions(open_store(old.store), "docs").has(("", "doc-0")))
        write(self, store, wanted)

    with monkeypatch.context() as patch:
        patch.setattr(Writing, "_copy", forgets)
        upgrade(new)
    threads[0].join()
    assert found[0].left == 0
    assert {place.kind: place.before for place in found[0].places if place.name == aliases(old)["docs@next"]}[
        "points"
    ]
    assert "doc-0" not in {one["headwater"]["document_id"] for one, _ in held(old, "docs@next").values()}
    promoted(new)


def test_forget_is_refused_while_the_source_is_cut_anew(both, rows, tmp_path, monkeypatch):
    old, new = both
    fine = new.model_copy(update={"chunking": new.chunking.model_copy(update={"max_tokens": 24})})
    ingest(old, rows[:3], tmp_path)
    held_by, opened = [], ingesting.open_job

    def forgets(*arguments):
        with pytest.raises(CollectionHeld) as refused:
            forget(old, ("", "doc-0"), tmp_path / "state")
        held_by.append(refused.value)
        return opened(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ingesting, "open_job", forgets)
        upgrade(fine, source=str(documents.write(tmp_path / "all.parquet", rows[:3])))
    assert len(held_by) == 1
    assert forget(old, ("", "doc-0"), tmp_path / "state").left == 0
    promoted(fine)
    assert "doc-0" not in {one["headwater"]["document_id"] for one, _ in held(fine).values()}


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
    with pytest.raises(UpgradeRefused, match="There can be one candidate only"):
        rolled_back(upgraded)
    over = new.model_copy(update={"versions": new.versions.model_copy(update={"keep_s": 0})})
    gone = retire(over, threading.Event())
    store = open_store(old.store)
    names = {one.name for one in store.get_collections().collections}
    assert {name for name in names if name.startswith("docs__")} - set(aliases(old).values()) == {
        f"{physical}__deleted" for physical in aliases(old).values()
    }
    assert gone not in names


def test_what_no_alias_names_is_listed_with_its_bytes_and_can_be_deleted(both, rows, tmp_path):
    old, new = both
    ingest(old, rows[:2], tmp_path)
    upgrade(new)
    store = open_store(old.store)
    made = aliases(old)["docs@next"]
    point_aliases(store, {"docs@next": None})
    listed = {one.role: one for one in list_versions(old)}
    assert listed["unused"].physical == made
    assert [listed[role].vector_bytes for role in ("serving", "unused")] == [
        listed["serving"].points * 32 * 4,
        listed["unused"].points * 48 * 4,
    ]
    point_aliases(store, {"theirs": made})
    assert {one.role for one in list_versions(old)} == {"serving", "other"}
    assert retire_unused(old, threading.Event()) == []
    point_aliases(store, {"theirs": None})
    assert retire_unused(old, threading.Event()) == [made]
    assert not store.collection_exists(made)
    assert len(held(old)) == listed["serving"].points


class Dying:
    """A store whose process dies at the n-th call of a kind, before it or after it."""

    def __init__(self, store, kind, after, calls):
        self._store, self._kind, self._after, self._left = store, kind, after, calls

    def __getattr__(self, name):
        call = getattr(self._store, name)
        return partial(self._call, call) if name == self._kind else call

    def _call(self, call, *arguments, **keywords):
        self._left -= 1
        if self._left >= 0 or (self._left == -1 and self._after):
            call(*arguments, **keywords)
        if self._left < 0:
            raise StoreUnavailable("dead")


def die(command, settings, death, monkeypatch):
    """Run a command in a process that dies: it lets go of no lease, so that there is none."""
    unleased = settings.model_copy(update={"run": settings.run.model_copy(update={"lease_s": 0})})
    with monkeypatch.context() as patch:
        patch.setattr(module, "open_store", lambda *_: Dying(open_store(settings.store), *death))
        with pytest.raises(StoreUnavailable):
            command(unleased)


DEATHS = [
    ("upsert", True, 0),
    ("update_collection", False, 1),
    ("update_collection_aliases", False, 0),
    ("update_collection_aliases", True, 0),
    ("update_collection", False, 2),
]


@pytest.mark.parametrize("death", DEATHS)
def test_wherever_it_dies_one_version_serves_and_the_same_again_ends_right(
    death, both, rows, tmp_path, monkeypatch
):
    old, new = both
    ingest(old, rows[:4], tmp_path)
    upgrade(new)
    first = aliases(old)
    swapped = {"docs": first["docs@next"], "docs@previous": first["docs"]}
    ingest(old, [changed(rows[0], at=2, text="fresh")], tmp_path)
    die(promoted, new, death, monkeypatch)
    if aliases(old) == first:
        promoted(new)
    assert aliases(old) == swapped
    store = open_store(old.store)
    with pytest.raises(UpgradeRefused, match="is kept until"):
        retire(new, threading.Event())
    when = read_record(store, swapped["docs"])["promoted"]  # which that has filled in
    assert abs((datetime.now(UTC) - datetime.fromisoformat(when)).total_seconds()) < 600
    assert "fresh" in {payload["text"] for payload, _ in held(new).values()}
    ingest(new, [changed(rows[1], at=3, text="newer")], tmp_path)
    kind, after, calls = death
    die(rolled_back, new, (kind, after, 0 if kind == "update_collection" else calls), monkeypatch)
    if aliases(old) == swapped:
        rolled_back(new)
    assert aliases(old) == first
    assert {"fresh", "newer"} <= {payload["text"] for payload, _ in held(old).values()}


def test_a_version_kept_by_hand_has_its_time_from_when_it_is_first_seen(both, rows, tmp_path):
    old, new = both
    ingest(old, rows[:2], tmp_path)
    upgrade(new)
    store, before = open_store(old.store), aliases(old)
    point_aliases(store, {"docs": before["docs@next"], "docs@next": None, "docs@previous": before["docs"]})
    with pytest.raises(UpgradeRefused, match="is kept until"):
        retire(new, threading.Event())
    assert (
        read_record(store, before["docs"])["replaced"] == read_record(store, before["docs@next"])["promoted"]
    )


@pytest.mark.parametrize("command", ["promote", "rollback", "retire"])
def test_who_stalled_and_lost_the_lease_swaps_and_deletes_nothing(
    command, tiny_model, wide_model, encoder_cache, rows, tmp_path, monkeypatch
):
    where = f"memory:{tmp_path}"
    old, new = pair(tiny_model, wide_model, encoder_cache, where, tmp_path, run__lease_s=0.6)
    ingest(old, rows[:2], tmp_path)
    upgrade(new)
    if command != "promote":
        promoted(new)
    before = aliases(old)
    run, alias, last = {
        "promote": (promoted, "docs", "_swap"),
        "rollback": (rolled_back, "docs", "_swap"),
        "retire": (upgrades.retire_now, "docs@previous", "drop"),
    }[command]
    change = getattr(promotion, last)

    def stalls(store, *arguments, **keywords):
        with monkeypatch.context() as patch:  # another machine's run has seen no sign of life
            patch.setattr(lease, "_lives", lambda *_: False)
            lease.Lease.take(store, alias, "other", 0.6, threading.Event())
        time.sleep(0.3)
        change(store, *arguments, **keywords)

    monkeypatch.setattr(promotion, last, stalls)
    with pytest.raises(LeaseLost):
        run(new)
    assert aliases(old) == before
    store = open_store(old.store)
    assert all(store.collection_exists(physical) for physical in before.values())


def test_a_swap_waits_for_the_run_that_is_at_work(tiny_model, wide_model, encoder_cache, rows, tmp_path):
    where = f"memory:{tmp_path}"
    old, new = pair(tiny_model, wide_model, encoder_cache, where, tmp_path, versions__wait_s=30)
    ingest(old, rows, tmp_path)
    upgrade(new)
    working, done = threading.Event(), threading.Event()

    def work():
        with hold_lease(open_store(old.store), "docs", "nightly", 15, threading.Event()):
            working.set()
            done.wait(30)

    run = threading.Thread(target=work)
    run.start()
    working.wait(30)
    threading.Timer(0.5, done.set).start()
    promoted(new)
    assert done.is_set()
    run.join()
