"""An upgrade by its commands: killed and run again, promoted, rolled back, retired."""

import os
import signal
from dataclasses import dataclass

import documents
import points
import pytest
import runs
import upgrades
from upgrades import Says, expected, held
from waiting import wait_for

from pipeline.cli import upgrading
from pipeline.stores import collection, open_store

COUNT = 160


@dataclass
class Where:
    """A collection on a server, and its settings for the old and for the new encoder."""

    old: object
    new: object
    flags: tuple
    cache: object

    def say(self, *words):
        done = runs.inside(*words, *self.flags, "--json", cache=self.cache)
        assert done.returncode == 0, done.stderr
        return runs.lines(done.stdout)[0]


@pytest.fixture
def where(tiny_model, wide_model, encoder_cache, tmp_path, qdrant):
    url = qdrant.grpc_url
    old, new = (
        runs.settings(model, encoder_cache, url, run__state=str(tmp_path / "state"))
        for model in (tiny_model, wide_model)
    )
    store = open_store(old.store)
    for left in store.get_collections().collections:
        store.delete_collection(left.name)
    store.close()
    flags = (
        "--store",
        url,
        "--collection",
        "docs",
        "--set",
        "chunking.max_tokens=48",
        "--set",
        "encoder.provider=cpu",
    )
    return Where(old, new, flags, encoder_cache)


def test_killed_in_the_middle_and_run_again_it_is_whole_and_goes_there_and_back(where, tmp_path, monkeypatch):
    rows = documents.rows(COUNT, most_words=60)
    upgrades.ingest(where.old, rows, tmp_path)
    before = held(where.old)
    words = ("reindex", "--to", where.new.encoder.model, "--set", "run.window_tokens=64")
    process = runs.start(*words, *where.flags, "--json", cache=where.cache)
    wait_for(lambda: process.poll() is not None or points_of(where, "docs@next") > 30)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    begun = points_of(where, "docs@next")
    assert 30 < begun < len(before)
    done = where.say(*words)
    assert (done["way"], done["complete"], done["exit_code"]) == ("blue/green from payload", True, 0)
    assert 0 < done["copied"] < COUNT  # what was written before is not embedded again
    wanted = expected(where.new, rows, tmp_path / "expected")
    points.assert_same(held(where.old, "docs@next"), wanted)

    roles = {one["role"]: one for one in where.say("versions", "list")}
    assert roles.keys() == {"serving", "next"}
    assert (roles["next"]["documents"], roles["next"]["dims"]) == (COUNT, 48)
    monkeypatch.setattr(upgrading, "judge_upgrade", lambda *_, **__: Says("hold"))
    refused = runs.inside("promote", *where.flags, cache=where.cache)
    assert (refused.returncode, "the gate says hold" in refused.stderr) == (5, True)
    monkeypatch.setattr(upgrading, "judge_upgrade", lambda *_, **__: Says("fail"))
    assert runs.inside("promote", *where.flags, cache=where.cache).returncode == 6
    monkeypatch.setattr(upgrading, "judge_upgrade", lambda *_, **__: Says())
    assert where.say("promote")["serving"] == roles["next"]["physical"]
    points.assert_same(held(where.old), wanted)
    assert where.say("rollback")["serving"] == roles["serving"]["physical"]
    points.assert_same(held(where.old), before)
    assert where.say("retire", "--next") == {"retired": [roles["next"]["physical"]]}
    assert [one["role"] for one in where.say("versions", "list")] == ["serving"]
    shown = runs.inside("versions", "list", *where.flags[:4], cache=where.cache)
    assert "serving" in shown.stdout
    nothing = runs.inside("retire", "--unused", *where.flags[:4], cache=where.cache)
    assert nothing.stdout == "nothing to retire: every version has an alias\n"


def points_of(where, alias):
    store = open_store(where.old.store)
    try:
        physical = collection.resolve(store, alias)
        return store.count(physical).count if physical else 0
    finally:
        store.close()


def test_what_a_source_brought_is_told(where, tmp_path):
    rows = documents.rows(12, most_words=30)
    upgrades.ingest(where.old, rows, tmp_path)
    file = documents.write(tmp_path / "all.parquet", [*rows, {"id": "", "text": "without an id"}])
    finer = ("--from", file, *where.flags, "--set", "chunking.max_tokens=24")
    done = runs.inside("reindex", "--to", where.old.encoder.model, *finer, cache=where.cache)
    assert done.returncode == 3
    told = dict(line.strip().split(maxsplit=1) for line in done.stdout.splitlines() if len(line.split()) > 1)
    assert (told["read"], told["indexed"], told["rejected"]) == ("13", "12", "1")
    assert "rejected documents are listed in" in done.stderr


def test_wrong_flags_are_said(where, tmp_path):
    for words, said in (
        (("--window", "at night"), "01:00-05:00"),
        (("--from", "x.parquet", "--max-tokens", "5"), "Leave them out"),
    ):
        done = runs.inside(
            "reindex", "--to", where.new.encoder.model, *words, *where.flags, cache=where.cache
        )
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    nothing = runs.inside("promote", *where.flags, cache=where.cache)
    assert (nothing.returncode, "no collection 'docs'" in nothing.stderr) == (1, True)
