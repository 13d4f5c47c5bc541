"""A Delta Lake table followed by its change data feed: the collection is what the table holds, whatever happened."""

import json
import os
import random
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import documents
import points
import pyarrow as pa
import pytest
import runs
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from pipeline.errors import UsageError
from pipeline.local import LocalExecutor
from pipeline.streams import watch

DEADLINE = 120.0
FED = {"delta.enableChangeDataFeed": "true"}


def table_of(rows):
    schema = pa.Table.from_pylist(documents.rows(1)).schema
    return pa.Table.from_pylist(rows, schema=schema)


@pytest.fixture
def place(tmp_path):
    write_deltalake(tmp_path / "table", table_of(documents.rows(20)), configuration=FED)
    return tmp_path / "table"


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    return runs.settings(
        tiny_model,
        encoder_cache,
        f"edge:{tmp_path}/index",
        watch__max_latency_s=0.1,
        source__max_deletes="100%",
    )


@contextmanager
def following(place, to):
    """A watch in a thread; the list gets its summary."""
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(watch(str(place), to, LocalExecutor(), stop)))
    thread.start()
    try:
        yield ended
        settle(place, to.store.url.removeprefix("edge:"), thread.is_alive)
    finally:
        stop.set()
        thread.join(DEADLINE)


def positions(index):
    return list(Path(index).glob(".headwater/*/watch-*.json"))


def settle(place, index, alive):
    """Wait until the watch has done a round, and the table's last commit is said to be indexed."""
    version, deadline = DeltaTable(place).version(), time.monotonic() + DEADLINE
    while not (has_done_a_round(index) and versions(index) == [version]):
        assert alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def versions(index):
    return [json.loads(file.read_text())["version"] for file in positions(index)]


def has_done_a_round(index):
    """As the journal of the run that goes on says."""
    journals = [file.read_bytes() for file in Path(index).glob(".headwater/*/run-*.jsonl")]
    return any(b'"watched"' in journal and b'"ended"' not in journal for journal in journals)


def counts(place, to):
    """What one more watch counts until it is in step."""
    with following(place, to) as ended:
        pass
    return ended[0].counts


def check(place, to, tmp_path):
    """Compare with what a run over the table's rows makes of an empty store."""
    rows = DeltaTable(place).to_pyarrow_table().to_pylist()
    url, alias = f"edge:{tmp_path}/oracle-{time.monotonic_ns()}", to.store.collection
    file = documents.write(tmp_path / "oracle.parquet", rows)
    oracle = to.model_copy(update={"store": to.store.model_copy(update={"url": url})})
    assert runs.run(file, oracle).exit_code == 0
    found = points.contents_of(to.store.url, alias)
    points.assert_same(unordered(points.contents_of(url, alias)), unordered(found))


def unordered(found):
    """Contents without the sequence, which is that of a commit here and none there."""
    for payload, _ in found.values():
        payload["headwater"].pop("sequence", None)
    return found


def test_commits_of_every_kind(place, to, tmp_path):
    rows = documents.rows(30)
    with following(place, to) as ended:
        settle(place, tmp_path / "index", lambda: not ended)
        table = DeltaTable(place)
        table.update(predicate="id = 'doc-3'", updates={"text": "'another text for it.'"})
        table.delete("year < 2003")
        write_deltalake(place, table_of(rows[20:25]), mode="append")
        settle(place, tmp_path / "index", lambda: not ended)
        table = DeltaTable(place)
        table.optimize.compact()
        merged = table_of([{**rows[4], "text": "merged."}, *rows[25:]])
        table.merge(
            merged, "t.id = s.id", "s", "t"
        ).when_matched_update_all().when_not_matched_insert_all().execute()
        settle(place, tmp_path / "index", lambda: not ended)
        # of what is rewritten unchanged, nothing is deleted and nothing embedded again
        write_deltalake(place, DeltaTable(place).to_pyarrow_table().slice(2), mode="overwrite")
    counted = ended[0].counts
    assert (ended[0].exit_code, counted.indexed) == (0, 20 + 1 + 5 + 1 + 5)
    assert counted.deleted == 3 + 2
    check(place, to, tmp_path)


def test_a_history_with_stops_lost_positions_and_vacuums(place, to, tmp_path):
    draw = random.Random(0)
    for _ in range(4):
        for _ in range(draw.randint(0, 3)):
            commit(place, draw)
        if draw.random() < 0.4:
            for file in positions(tmp_path / "index"):
                file.write_text("damaged")
        if draw.random() < 0.4:
            DeltaTable(place).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
        counts(place, to)
        check(place, to, tmp_path)


def commit(place, draw):
    table = DeltaTable(place)
    held = table.to_pyarrow_table().to_pylist()
    some = documents.rows(40, seed=draw.randint(0, 3))
    match draw.randint(0, 5):
        case 0:
            new = [row for row in some if row["id"] not in {one["id"] for one in held}]
            write_deltalake(place, table_of(new[:5]), mode="append")
        case 1 if held:
            table.delete(f"id = '{draw.choice(held)['id']}'")
        case 2 if held:
            table.update(predicate=f"id = '{draw.choice(held)['id']}'", updates={"year": "1999"})
        case 3:
            write_deltalake(place, table_of(some[draw.randint(0, 20) :]), mode="overwrite")
        case 4 if held:
            table.update(predicate=f"id = '{draw.choice(held)['id']}'", updates={"id": "concat(id, '-b')"})
        case _:
            with suppress(DeltaError):  # its files are vacuumed, or there was none before
                table.restore(table.version() - 1)


def test_under_a_former_id_or_namespace_a_document_is_no_more(place, to, tmp_path):
    to = to.model_copy(update={"source": to.source.model_copy(update={"namespace_column": "tenant"})})
    held = table_of(documents.rows(20)).append_column("tenant", pa.array(["one tenant"] * 20))
    write_deltalake(place, held, mode="overwrite", schema_mode="overwrite")
    assert counts(place, to).indexed == 20
    table = DeltaTable(place)
    table.update(predicate="id = 'doc-3'", updates={"tenant": "'another tenant'"})
    table.update(updates={"id": "CASE id WHEN 'doc-1' THEN 'doc-2' WHEN 'doc-2' THEN 'doc-1' ELSE id END"})
    table.update(predicate="id = 'doc-4'", updates={"id": "'there'"})
    table.update(predicate="id = 'there'", updates={"id": "'doc-4'"})  # and back again
    table.update(predicate="id = 'doc-5'", updates={"id": "'moved'"})
    write_deltalake(place, held.slice(5, 1), mode="append")  # where it was is another
    counts(place, to)
    check(place, to, tmp_path)


def test_with_sequences_of_its_own_commits_are_in_order_all_the_same(place, to, tmp_path):
    to = to.model_copy(update={"source": to.source.model_copy(update={"sequence": "year"})})
    assert counts(place, to).indexed == 20
    write_deltalake(place, table_of(documents.rows(22)[20:]), mode="append")
    table = DeltaTable(place)
    table.delete("id IN ('doc-3', 'doc-20')")  # with the sequences that they were inserted with
    table.update(predicate="id = 'doc-4'", updates={"id": "'moved'"})
    write_deltalake(place, table_of(documents.rows(4)[3:]), mode="append")
    counts(place, to)
    check(place, to, tmp_path)


def test_what_the_feed_cannot_tell_is_read_from_the_table(place, to, tmp_path):
    assert counts(place, to).indexed == 20
    assert counts(place, to).read == 0  # it knows where it was
    keep = to.model_copy(update={"source": to.source.model_copy(update={"max_deletes": "10%"})})
    DeltaTable(place).delete("year < 2005")
    write_deltalake(place, table_of(documents.rows(25)[20:]), mode="append")
    DeltaTable(place).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    for file in place.glob("_change_data/*"):
        file.unlink()
    with following(place, keep) as ended:
        pass
    assert "the source lacks 5 of 25 stored documents" in ended[0].refused
    assert (ended[0].exit_code, ended[0].counts.indexed, ended[0].counts.removed) == (1, 5, 0)
    assert counts(place, to).removed == 5
    check(place, to, tmp_path)
    narrow = DeltaTable(place).to_pyarrow_table().drop_columns(["score"])
    write_deltalake(place, narrow, mode="overwrite", schema_mode="overwrite")
    assert counts(place, to).patched == 20
    check(place, to, tmp_path)


def test_a_table_made_anew_while_it_is_watched_is_not_taken_for_the_one_before(place, to, tmp_path):
    ended = []

    def follow():
        try:
            watch(str(place), to, LocalExecutor(), threading.Event())
        except UsageError as error:
            ended.append(str(error))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    settle(place, tmp_path / "index", thread.is_alive)
    place.rename(tmp_path / "gone")
    for row in documents.rows(3):  # versions go on where the other's ended
        write_deltalake(place, table_of([row]), mode="append", configuration=FED)
    thread.join(DEADLINE)
    assert "is another table" in ended[0]
    assert (
        len(
            {
                payload["headwater"]["document_id"]
                for payload, _ in points.contents_of(to.store.url, "docs").values()
            }
        )
        == 20
    )


def test_tables_that_cannot_be_followed(place, to, tmp_path, monkeypatch):
    def error(table, settings):
        with pytest.raises(UsageError) as raised:
            watch(str(table), settings, LocalExecutor(), threading.Event())
        return str(raised.value)

    write_deltalake(tmp_path / "plain", table_of(documents.rows(2)))
    assert "without a change data feed. delta.enableChangeDataFeed = true" in error(tmp_path / "plain", to)
    wrong = to.model_copy(update={"source": to.source.model_copy(update={"operation": "op"})})
    assert "has no column 'op'" in error(place, wrong)
    wrong = to.model_copy(update={"source": to.source.model_copy(update={"text": ("body",)})})
    assert "has no column 'body'" in error(place, wrong)
    counts(place, to)
    place.rename(tmp_path / "gone")
    write_deltalake(place, table_of(documents.rows(2)), configuration=FED)
    assert "is another table" in error(place, to)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    assert "deltalake is not installed" in error(place, to)


def test_killed_in_the_middle_of_a_commit_it_goes_on(place, qdrant, to, encoder_cache, tmp_path):
    store = to.store.model_copy(update={"url": qdrant.grpc_url, "collection": f"delta-{time.time_ns()}"})
    to = to.model_copy(update={"store": store})
    arguments = [
        "watch", place, "--encoder", to.encoder.model, "--store", store.url, "--collection", store.collection,
        "--max-latency", "100ms", "--max-deletes", "100%", "--json", "--set", f"run.state={tmp_path}/index/.headwater",
        "--set", "chunking.max_tokens=48", "--set", "encoder.provider=cpu",
    ]  # fmt: skip
    process = runs.start(*arguments, cache=encoder_cache)
    settle(place, tmp_path / "index", lambda: process.poll() is None)
    qdrant.plant(
        "answer", times=1000, on="upsert", answer="wait_timeout"
    )  # carried out, never said to be done
    before = points.contents_of(store.url, store.collection)
    write_deltalake(place, table_of(documents.rows(30, seed=1)), mode="overwrite")
    deadline = time.monotonic() + DEADLINE
    while points.contents_of(store.url, store.collection) == before:
        assert time.monotonic() < deadline
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    qdrant.plant()
    DeltaTable(place).delete("id = 'doc-7'")
    process = runs.start(*arguments, cache=encoder_cache)
    settle(place, tmp_path / "index", lambda: process.poll() is None)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, err
    assert 0 < runs.lines(out)[0]["read"] < 60  # those two commits
    check(place, to, tmp_path)
