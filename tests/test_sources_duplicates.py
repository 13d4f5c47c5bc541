"""One document, one row: the highest sequence wins, then the last."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig
from pipeline.sources import open_source, read_split
from pipeline.sources.duplicates import RECORD, key_records, losers
from pipeline.sources.keys import Keys

row = st.tuples(
    st.sampled_from(["", "a", "b", "1:"]), st.sampled_from(["", "x", "y", "1:x", "xx"]), st.integers(-2, 2)
)


def naive_losers(rows) -> set[int]:
    best: dict[tuple[str, str], tuple[int, int]] = {}
    for position, (namespace, document_id, sequence) in enumerate(rows):
        key = (namespace, document_id)
        best[key] = max(best.get(key, (sequence, position)), (sequence, position))
    return set(range(len(rows))) - {position for _, position in best.values()}


def keys_of(rows) -> Keys:
    namespaces, ids, sequences = zip(*rows, strict=True) if rows else ((), (), ())
    return Keys(pa.array(ids, pa.string()), pa.array(namespaces, pa.string()), np.array(sequences, np.int64))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(row, max_size=60), st.sampled_from([1, 2, 7, 1000]))
def test_the_same_rows_lose_as_in_a_dictionary_however_little_memory(tmp_path, rows, limit):
    spool = tmp_path / "keys"
    spool.write_bytes(key_records(keys_of(rows), np.ones(len(rows), np.bool_), 0).tobytes())
    lost = np.concatenate(list(losers(spool, limit)) or [np.zeros(0, np.int64)]).tolist()
    assert len(lost) == len(set(lost))
    assert set(lost) == naive_losers(rows)
    assert not list(tmp_path.iterdir())


def test_many_keys_are_dealt_to_files_and_resolved(tmp_path):
    count = 20_000
    rng = np.random.default_rng(0)
    records = np.zeros(count, RECORD)
    key = rng.integers(0, 5_000, count)
    records["high"], records["low"] = key.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), key
    records["sequence"], records["position"] = rng.integers(0, 3, count), np.arange(count)
    (tmp_path / "keys").write_bytes(records.tobytes())
    lost = np.sort(np.concatenate(list(losers(tmp_path / "keys", 100))))
    rows = [("", str(k), int(s)) for k, s in zip(key, records["sequence"], strict=True)]
    assert set(lost.tolist()) == naive_losers(rows)


def read(source, config):
    documents, rejected = [], []
    for split in source.splits:
        for batch in read_split(split, config):
            documents += batch.documents.to_pylist()
            rejected += batch.rejected
    return documents, rejected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.lists(
        st.tuples(st.sampled_from([None, "", "a", "b", "c"]), st.integers(0, 3)), min_size=1, max_size=40
    )
)
def test_across_files_and_row_groups(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("source")
    half = len(rows) // 2
    for name, part in (("1", rows[:half]), ("2", rows[half:])):
        table = pa.table(
            {
                "id": pa.array([document_id for document_id, _ in part], pa.string()),
                "text": ["some text"] * len(part),
                "version": pa.array([version for _, version in part], pa.int32()),
            }
        )
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=3)
    config = SourceConfig(sequence="version")
    documents, rejected = read(open_source(str(folder), config, folder / "_scratch"), config)
    valid = [
        (at, ("", document_id, version)) for at, (document_id, version) in enumerate(rows) if document_id
    ]
    lost = {valid[at][0] for at in naive_losers([key for _, key in valid])}

    def place(uri: str, row: int) -> int:
        return row if uri.endswith("1.parquet") else half + row

    assert {place(r.uri, r.row) for r in rejected if r.reason == "duplicate"} == lost
    assert {place(r.uri, r.row) for r in rejected if r.reason == "null_id"} == set(range(len(rows))) - {
        a for a, _ in valid
    }
    assert len(documents) + len(rejected) == len(rows)


def test_namespaces_keep_equal_ids_apart(tmp_path):
    table = pa.table({"id": ["1", "1", "1"], "text": ["a", "b", "c"], "tenant": ["x", "y", "x"]})
    pq.write_table(table, tmp_path / "docs.parquet")
    config = SourceConfig(namespace_column="tenant")
    documents, rejected = read(open_source(str(tmp_path), config, tmp_path / "_scratch"), config)
    assert [(d["namespace"], d["text"]) for d in documents] == [("y", "b"), ("x", "c")]
    assert [(r.row, r.reason, r.document_id) for r in rejected] == [(0, "duplicate", "1")]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_order_versions_whatever_their_unit(tmp_path, unit):
    table = pa.table({"id": ["1", "1"], "text": ["new", "old"], "at": pa.array([2, 1], pa.timestamp(unit))})
    pq.write_table(table, tmp_path / "docs.parquet")
    config = SourceConfig(sequence="at")
    documents, _ = read(open_source(str(tmp_path), config, tmp_path / "_scratch"), config)
    assert [d["text"] for d in documents] == ["new"]
    scale = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}[unit]
    assert documents[0]["sequence"] == 2 * scale
