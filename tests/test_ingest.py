import json
import shutil
import threading
import uuid

import documents
import points
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs

from pipeline.errors import CollectionMismatch, StoreUnavailable, UsageError
from pipeline.ingest import ingest
from pipeline.local import LocalExecutor


@pytest.fixture
def to(tiny_model, encoder_cache, tmp_path):
    return runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index")


def stored(to):
    return points.contents_of(to.store.url, "docs")


def test_every_chunk_becomes_a_point_with_a_deterministic_id(to, tmp_path):
    rows = documents.rows(25)
    summary = runs.run(documents.write(tmp_path / "docs.parquet", rows), to)
    assert summary.exit_code == 0
    assert (summary.counts.read, summary.counts.indexed) == (25, 25)
    found = stored(to)
    assert len(found) == summary.counts.points == summary.counts.chunks > 25
    texts = {row["id"]: row for row in rows}
    for id, (payload, _) in found.items():
        ours = payload["headwater"]
        key = json.dumps(
            [ours["namespace"], ours["document_id"], ours["chunk_index"]],
            ensure_ascii=False,
            separators=(",", ":"),
        )
        assert id == str(uuid.uuid5(uuid.NAMESPACE_URL, key))
        row = texts[ours["document_id"]]
        assert payload["text"] == row["text"][ours["start"] : ours["end"]]
        assert payload["metadata"] == {k: v for k, v in row.items() if k not in ("id", "text")}
        assert ours["encoder_version"] == summary.encoder_version


def test_a_second_run_changes_nothing(to, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(12))
    runs.run(file, to)
    before = stored(to)
    again = runs.run(file, to)
    assert again.resumed_splits == 0
    assert again.counts.points_removed == 0
    assert again.counts.unchanged == again.counts.read == 12
    assert again.counts.tokens == 0  # nothing was embedded
    points.assert_same(before, stored(to))


def test_new_metadata_alone_patches_payloads_and_embeds_nothing(to, tmp_path):
    rows = documents.rows(6, most_words=200)
    runs.run(documents.write(tmp_path / "docs.parquet", rows), to)
    before = stored(to)
    changed = [{**row, "year": 1999} if n % 2 else row for n, row in enumerate(rows)]
    summary = runs.run(documents.write(tmp_path / "docs.parquet", changed), to)
    assert (summary.counts.patched, summary.counts.unchanged, summary.counts.tokens) == (3, 3, 0)
    afresh = to.model_copy(update={"store": to.store.model_copy(update={"url": f"edge:{tmp_path}/afresh"})})
    runs.run(tmp_path / "docs.parquet", afresh)
    after = stored(to)
    points.assert_same(points.contents_of(f"edge:{tmp_path}/afresh", "docs"), after)
    assert {id: vector for id, (_, vector) in after.items()} == {id: v for id, (_, v) in before.items()}


def test_text_that_moves_between_documents_is_lost_by_neither(to, tmp_path):
    rows = documents.rows(4, most_words=100)
    runs.run(documents.write(tmp_path / "docs.parquet", rows), to)
    moved = [{**row, "text": rows[n - 1]["text"]} for n, row in enumerate(rows)]
    summary = runs.run(documents.write(tmp_path / "docs.parquet", moved), to)
    assert summary.counts.indexed == 4
    texts = {payload["headwater"]["document_id"]: set() for payload, _ in stored(to).values()}
    for payload, _ in stored(to).values():
        texts[payload["headwater"]["document_id"]].add(payload["text"])
    assert all(all(text in row["text"] for text in texts[row["id"]]) and texts[row["id"]] for row in moved)


def test_an_older_sequence_is_stale(to, tmp_path):
    numbered = to.model_copy(update={"source": to.source.model_copy(update={"sequence": "version"})})

    def write(*versions):
        rows = [{"id": f"d{n}", "text": f"text {v}", "version": v} for n, v in enumerate(versions)]
        return documents.write(tmp_path / "docs.parquet", rows)

    runs.run(write(5, 5, 5), numbered)
    summary = runs.run(write(4, 5, 6), numbered)
    counts = summary.counts
    assert (counts.stale, counts.unchanged, counts.indexed) == (1, 1, 1)
    assert sorted(payload["text"] for payload, _ in stored(to).values()) == ["text 5", "text 5", "text 6"]


def test_a_shorter_text_loses_its_surplus_chunks(to, tmp_path):
    rows = documents.rows(6, most_words=200)
    runs.run(documents.write(tmp_path / "docs.parquet", rows), to)
    before = len(stored(to))
    shorter = [{**row, "text": "Only this."} for row in rows]
    summary = runs.run(documents.write(tmp_path / "docs.parquet", shorter), to)
    assert len(stored(to)) == 6
    assert summary.counts.points_removed == before - 6


def test_rows_that_are_no_documents_are_rejected_and_listed(to, tmp_path):
    rows = [
        {"id": "good", "text": "A text."},
        {"id": "empty", "text": "  \n"},
        {"id": None, "text": "Nobody's text."},
        {"id": "null", "text": None},
        {"id": "twice", "text": "First."},
        {"id": "twice", "text": "Last."},
    ]
    summary = runs.run(documents.write(tmp_path / "docs.parquet", rows, row_group=2), to)
    assert summary.exit_code == 3
    assert (summary.counts.read, summary.counts.indexed, summary.counts.rejected) == (6, 2, 4)
    letters = pq.read_table(summary.dead_letter).to_pylist()
    assert {(row["row"], row["reason"]) for row in letters} == {
        (1, "empty_text"),
        (2, "null_id"),
        (3, "empty_text"),
        (4, "duplicate"),
    }
    assert {payload["text"] for payload, _ in stored(to).values()} == {"A text.", "Last."}


def test_a_damaged_file_fails_the_run_and_the_others_are_indexed(to, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    documents.write(folder / "a.parquet", documents.rows(5))
    whole = documents.write(tmp_path / "b.parquet", documents.rows(5, seed=1)).read_bytes()
    (folder / "b.parquet").write_bytes(whole[: len(whole) // 2])
    summary = runs.run(folder, to)
    assert summary.exit_code == 1
    assert summary.counts.indexed == 5
    assert "b.parquet" in summary.failed[0].message


def test_another_encoder_of_the_same_dimension_is_refused_with_both_versions(
    to, other_model, encoder_cache, tmp_path
):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(3))
    first = runs.run(file, to)
    before = stored(to)
    with pytest.raises(CollectionMismatch) as refused:
        runs.run(file, runs.settings(other_model, encoder_cache, to.store.url))
    versions = {word.strip(",.") for word in str(refused.value).split() if len(word.strip(",.")) == 64}
    assert len(versions) == 2
    assert first.encoder_version in versions
    points.assert_same(before, stored(to))


def test_another_way_of_chunking_is_refused(to, tiny_model, encoder_cache, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(3))
    runs.run(file, to)
    with pytest.raises(CollectionMismatch, match="cut"):
        runs.run(file, runs.settings(tiny_model, encoder_cache, to.store.url, chunking__max_tokens=32))


def test_a_collection_must_be_named(tiny_model, encoder_cache, tmp_path):
    nameless = runs.settings(tiny_model, encoder_cache, f"edge:{tmp_path}/index", store__collection="")
    with pytest.raises(UsageError, match="--collection"):
        runs.run(tmp_path, nameless)


def test_a_stopped_run_tells_the_truth_and_the_next_one_finishes_it(to, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(60), row_group=4)
    stop = threading.Event()

    def observe(progress):
        if progress.documents >= 8:
            stop.set()

    halted = ingest(str(file), to, LocalExecutor(), stop, observe)
    if halted.counts.read == 60:
        pytest.skip("the machine was faster than the observer")
    assert halted.interrupted
    assert halted.exit_code == 130
    heads = [payload for payload, _ in stored(to).values() if payload["headwater"]["chunk_index"] == 0]
    assert halted.counts.indexed == len(heads)
    finished = runs.run(file, to)
    assert finished.exit_code == 0
    assert finished.counts.read == 60
    fresh = runs.settings(to.encoder.model, to.encoder.cache, f"edge:{tmp_path}/fresh")
    runs.run(file, fresh)
    points.assert_same(stored(to), points.contents_of(fresh.store.url, "docs"))


def test_losing_the_state_folder_costs_nothing_but_time(to, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(10))
    runs.run(file, to)
    before = stored(to)
    shutil.rmtree(tmp_path / "index" / ".headwater")
    runs.run(file, to)
    points.assert_same(before, stored(to))


def test_operations_and_sequences_are_obeyed(to, tmp_path):
    rows = [
        {"id": "a", "text": "Old.", "seq": 1, "op": "upsert"},
        {"id": "a", "text": "New.", "seq": 2, "op": "upsert"},
        {"id": "b", "text": "Kept.", "seq": 1, "op": "upsert"},
    ]
    with_columns = to.model_copy(
        update={"source": to.source.model_copy(update={"sequence": "seq", "operation": "op"})}
    )
    runs.run(documents.write(tmp_path / "docs.parquet", rows), with_columns)
    assert {payload["text"] for payload, _ in stored(to).values()} == {"New.", "Kept."}
    gone = [{"id": "b", "text": None, "seq": 2, "op": "delete"}]
    pq.write_table(
        pa.Table.from_pylist(gone, schema=pa.Table.from_pylist(rows).schema), tmp_path / "docs.parquet"
    )
    summary = runs.run(tmp_path / "docs.parquet", with_columns)
    assert (summary.counts.deleted, summary.counts.points_removed) == (1, 1)
    assert {payload["text"] for payload, _ in stored(to).values()} == {"New."}


def test_a_run_over_two_plans_taking_turns_is_not_resumed(to, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(40), row_group=4)
    stop = threading.Event()

    def observe(progress):
        if progress.documents:
            stop.set()

    ingest(str(file), to, LocalExecutor(), stop, observe)
    other = to.model_copy(update={"source": to.source.model_copy(update={"template": "{year} {text}"})})
    runs.run(file, other)
    assert runs.run(file, to).resumed_splits == 0
    fresh = runs.settings(to.encoder.model, to.encoder.cache, f"edge:{tmp_path}/fresh")
    runs.run(file, fresh)
    points.assert_same(stored(to), points.contents_of(fresh.store.url, "docs"))


class ForgetsOnce(LocalExecutor):
    """Its store does not answer the first few upserts of points."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def open_store(self, config, purpose=""):
        store = super().open_store(config, purpose)
        upsert = store.upsert

        def flaky(collection_name, points, update_filter=None):
            if points.vectors[""].shape[1] > 1 and self.times:
                self.times -= 1
                raise StoreUnavailable("no answer", "A store", "Wait")
            upsert(collection_name, points, update_filter)

        store.upsert = flaky
        return store


def test_a_split_that_met_a_passing_error_is_run_again(to, tmp_path):
    file = documents.write(tmp_path / "docs.parquet", documents.rows(12), row_group=4)
    summary = runs.run(file, to, ForgetsOnce(2))
    assert summary.counts.indexed == 12
    shutil.rmtree(tmp_path / "index")
    with pytest.raises(StoreUnavailable):
        runs.run(file, to, ForgetsOnce(1000))
