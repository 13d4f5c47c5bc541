"""The lane's own promises, with an encoder that can be made to misbehave."""

import os
from dataclasses import dataclass, field, replace

import documents
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
from models import package_folder

from pipeline.errors import BrokenInvariant, EncoderError, InputsTooLarge, PointTooLarge
from pipeline.job import Job
from pipeline.lane import Lane
from pipeline.sources import open_source
from pipeline.stores import collection, open_store
from pipeline.tokens import load_tokenizer


@dataclass(frozen=True)
class Spec:
    version: str = "f" * 64
    source: str = "fake"
    dims: int = 8
    max_tokens: int = 64
    codes: None = None
    long: None = None
    row: str = "text"
    settings: dict[str, object] = field(default_factory=lambda: {"long": "split"})


@dataclass
class FakeEncoder:
    """Vectors drawn by the first token.

    `broken` is a token id whose chunks get NaN, `fails` one that raises, `large` one for which memory is too small.
    """

    broken: int = -1
    fails: int = -1
    large: int = -1
    spec: Spec = field(default_factory=Spec)
    late: bool = False

    def __post_init__(self):
        self.tokenizer = load_tokenizer(package_folder() / "tokenizer.json")

    def encode(self, token_ids, documents):
        vectors = np.ones((len(token_ids), 8), np.float32)
        for row, ids in enumerate(token_ids):
            vectors[row] += np.random.default_rng(int(ids[1])).random(8, np.float32)
            if self.fails in ids:
                raise EncoderError("the model broke")
            if self.broken in ids:
                vectors[row, 0] = np.nan
        large = tuple(row for row, ids in enumerate(token_ids) if self.large in ids)
        if large:
            vectors[list(large)] = np.nan
            raise InputsTooLarge("too large", "Memory", "Buy some", vectors, large)
        return vectors

    def close(self):
        pass


@pytest.fixture
def store_and_job(tmp_path):
    to = runs.settings(
        "fake", tmp_path, f"edge:{tmp_path}/index", chunking__max_tokens=16, run__window_tokens=32
    )
    store = open_store(to.store)
    physical = collection.create(store, "docs", to.store, 8, {})
    yield store, Job(to, Spec(), physical, "v")
    store.close()


def token(word):
    return int(load_tokenizer(package_folder() / "tokenizer.json").tokenize(word).ids[0])


def splits(tmp_path, job, rows):
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "docs.parquet")
    return open_source(str(tmp_path / "docs.parquet"), job.settings.source, tmp_path / "scratch").splits


def test_a_document_with_an_unusable_vector_is_rejected_whole_and_the_others_are_indexed(
    store_and_job, tmp_path
):
    store, job = store_and_job
    rows = documents.rows(20)
    rows[4]["text"] = "zebra " + rows[4]["text"]  # in its first chunk
    rows[9]["text"] = " ".join(["river"] * 300) + " zebra " + " ".join(["stone"] * 100)  # many windows later
    (split,) = splits(tmp_path, job, rows)
    ack = Lane(job, FakeEncoder(broken=token("zebra")), store).run_split(split)
    assert ack.complete
    assert (ack.counts.read, ack.counts.indexed, ack.counts.rejected) == (20, 18, 2)
    assert {(r.document_id, r.reason) for r in ack.rejected} == {
        ("doc-4", "unusable_vector"),
        ("doc-9", "unusable_vector"),
    }
    records, _ = store.scroll(job.collection, limit=1000)
    stored = {record.payload["headwater"]["document_id"] for record in records}
    assert stored == {row["id"] for row in rows} - {"doc-4", "doc-9"}
    assert len(records) == ack.counts.points


def test_a_document_too_large_for_memory_is_rejected_whole_and_the_others_are_indexed(
    store_and_job, tmp_path
):
    store, job = store_and_job
    rows = documents.rows(20)
    rows[9]["text"] = " ".join(["river"] * 300) + " zebra " + " ".join(["stone"] * 100)
    (split,) = splits(tmp_path, job, rows)
    ack = Lane(job, FakeEncoder(large=token("zebra")), store).run_split(split)
    assert ack.complete
    assert (ack.counts.read, ack.counts.indexed) == (20, 19)
    (rejected,) = ack.rejected
    assert (rejected.document_id, rejected.stage, rejected.reason) == ("doc-9", "encoder", "out_of_memory")
    assert "Lower chunking.max_tokens" in rejected.message


def test_an_encoder_that_never_had_memory_for_anything_blames_no_document(store_and_job, tmp_path):
    store, job = store_and_job
    (split,) = splits(tmp_path, job, [{"id": str(n), "text": "zebra"} for n in range(5)])
    with pytest.raises(InputsTooLarge, match="Buy some"):
        Lane(job, FakeEncoder(large=token("zebra")), store).run_split(split)


def test_a_document_with_a_point_too_large_for_the_store_is_rejected_whole(store_and_job, tmp_path):
    store, job = store_and_job
    rows = documents.rows(20)
    rows[4]["text"] = "zebra " + rows[4]["text"]  # in its head, which is written last, windows later
    rows[4]["text"] += " river" * 200
    rows[9]["text"] = " ".join(["river"] * 300) + " zebra " + " ".join(["stone"] * 100)
    rows[14]["text"] = "zebra"
    (split,) = splits(tmp_path, job, rows)

    class Narrow:
        def __getattr__(self, name):
            return getattr(store, name)

        def upsert(self, name, points):
            for row, payload in enumerate(points.payloads):
                if "zebra" in payload["text"]:
                    raise PointTooLarge("a point of 40 MiB", "At most 16", "Cut it", points.ids[row])
                store.upsert(name, points.slice(row, row + 1))

    ack = Lane(job, FakeEncoder(), Narrow()).run_split(split)
    assert ack.complete
    assert (ack.counts.read, ack.counts.indexed, ack.counts.rejected) == (20, 17, 3)
    lost = {"doc-4", "doc-9", "doc-14"}
    assert {(r.document_id, r.stage, r.reason) for r in ack.rejected} == {
        (id, "store", "too_large") for id in lost
    }
    assert all("40 MiB" in rejected.message for rejected in ack.rejected)
    records, _ = store.scroll(job.collection, limit=1000)
    stored = {record.payload["headwater"]["document_id"] for record in records}
    assert stored == {row["id"] for row in rows} - lost


def test_an_encoder_that_fails_ends_the_split_with_its_error(store_and_job, tmp_path):
    store, job = store_and_job
    rows = documents.rows(50)
    rows[30]["text"] = "zebra"
    (split,) = splits(tmp_path, job, rows)
    with pytest.raises(EncoderError, match="the model broke"):
        Lane(job, FakeEncoder(fails=token("zebra")), store).run_split(split)


def test_a_store_that_fails_ends_the_split_with_its_error(store_and_job, tmp_path):
    store, job = store_and_job
    (split,) = splits(tmp_path, job, documents.rows(50))

    class Failing:
        def __getattr__(self, name):
            return getattr(store, name)

        def upsert(self, *_):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        Lane(job, FakeEncoder(), Failing()).run_split(split)


def test_a_stopped_lane_acknowledges_only_what_it_finished(store_and_job, tmp_path):
    store, job = store_and_job
    (split,) = splits(tmp_path, job, documents.rows(200))
    encoder = FakeEncoder()
    lane = Lane(job, encoder, store)
    encode, calls = encoder.encode, []

    def stopping(token_ids, documents):
        calls.append(len(token_ids))
        if len(calls) == 5:
            lane.stop()
        return encode(token_ids, documents)

    encoder.encode = stopping
    ack = lane.run_split(split)
    assert not ack.complete
    assert 0 < ack.counts.read < 200
    records, _ = store.scroll(job.collection, limit=10_000)
    heads = [r for r in records if r.payload["headwater"]["chunk_index"] == 0]
    assert len(heads) == ack.counts.indexed == ack.counts.read


@pytest.mark.parametrize("tamper", ["lost", "doubled", "cut short"])
def test_a_window_that_does_not_arrive_whole_is_never_committed(tamper, store_and_job, tmp_path, monkeypatch):
    store, job = store_and_job
    (split,) = splits(tmp_path, job, documents.rows(60, most_words=10))
    encode = Lane._encode

    def tampering(lane, windows, embedded, tally):
        def passed_on():
            for number, window in enumerate(windows):
                if number != 2:
                    yield window
                elif tamper == "doubled":
                    yield from (window, window)
                elif tamper == "cut short":
                    yield replace(window, chunks=window.chunks.slice(0, window.chunks.num_rows - 1))

        encode(lane, passed_on(), embedded, tally)

    monkeypatch.setattr(Lane, "_encode", tampering)
    with pytest.raises(BrokenInvariant):
        Lane(job, FakeEncoder(), store).run_split(split)


def test_an_encoder_that_gives_another_number_of_vectors_is_found_out(store_and_job, tmp_path):
    store, job = store_and_job
    (split,) = splits(tmp_path, job, documents.rows(10))
    encoder = FakeEncoder()
    encode = encoder.encode
    encoder.encode = lambda token_ids, documents: encode(token_ids, documents)[:-1]
    with pytest.raises(BrokenInvariant, match="shape"):
        Lane(job, encoder, store).run_split(split)


def test_a_damaged_page_keeps_what_came_before_and_is_told(store_and_job, tmp_path):
    store, job = store_and_job
    file = tmp_path / "docs.parquet"
    pq.write_table(
        pa.Table.from_pylist(documents.rows(2000)), file, compression="zstd", use_dictionary=False,
        data_page_size=4000, write_batch_size=10,
    )  # fmt: skip
    text = pq.ParquetFile(file).metadata.row_group(0).column(1)
    (split,) = open_source(str(file), job.settings.source, tmp_path / "scratch").splits
    stat = file.stat()
    damaged = bytearray(file.read_bytes())
    at = text.data_page_offset + text.total_compressed_size // 2
    damaged[at : at + 3000] = b"\xff" * 3000
    file.write_bytes(damaged)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the damage came unnoticed
    ack = Lane(job, FakeEncoder(), store).run_split(split)
    assert not ack.complete
    assert "docs.parquet" in ack.error
    assert 0 < ack.counts.indexed == ack.counts.read < 2000
