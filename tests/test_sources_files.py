"""Which files a source consists of, in which order, and with which columns of their paths."""

from __future__ import annotations

import io
import sys

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig
from pipeline.errors import SourceError, UsageError
from pipeline.sources import open_source, read_split

fsspec = pytest.importorskip("fsspec")


def table(*ids: str) -> pa.Table:
    return pa.table({"id": list(ids), "text": [f"text of {name}" for name in ids]})


def texts(uri, scratch, config=None) -> list[str]:
    config = config or SourceConfig()
    source = open_source(str(uri), config, scratch)
    assert not source.unreadable
    return [
        document["document_id"]
        for split in source.splits
        for batch in read_split(split, config)
        for document in batch.documents.to_pylist()
    ]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    for name in (
        "b.parquet",
        "a.parquet",
        "deep/c.parquet",
        "deep/er/d.pq",
        "_hidden/x.parquet",
        ".y.parquet",
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table(file.stem), file)
    (root / "README.md").write_text("no data")
    (root / "_SUCCESS").write_text("")
    return root


def test_a_directory_is_read_in_the_order_of_its_paths(tree, tmp_path):
    assert texts(tree, tmp_path) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.parquet", [".y", "a", "b"]),
        ("[ab].parquet", ["a", "b"]),
        ("[!.b]*.parquet", ["a"]),
        ("?.parquet", ["a", "b"]),
        ("*/*.parquet", ["x", "c"]),
        ("deep/**/*.p*", ["c", "d"]),
        ("**/d.pq", ["d"]),
        ("d*/er/*", ["d"]),
    ],
)
def test_globs(tree, tmp_path, pattern, expected):
    assert texts(tree / pattern, tmp_path) == expected


def test_a_file_may_be_named_like_a_glob(tmp_path):
    pq.write_table(table("1"), tmp_path / "docs[1]*.parquet")
    assert texts(tmp_path / "docs[1]*.parquet", tmp_path) == ["1"]


def test_relative_paths_and_file_uris_are_the_same_source(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    pq.write_table(table("1"), tmp_path / "a b" / "ü.parquet")
    monkeypatch.chdir(tmp_path)
    sources = [
        open_source(uri, SourceConfig(), tmp_path / "scratch")
        for uri in (
            "a b/ü.parquet",
            str(tmp_path / "a b" / "ü.parquet"),
            (tmp_path / "a b" / "ü.parquet").as_uri(),
        )
    ]
    assert sources[0] == sources[1] == sources[2]


@pytest.mark.parametrize("uri", ["missing.parquet", "missing/*.parquet", "empty", "empty/*", "other"])
def test_nothing_there_is_a_usage_error_that_says_what_was_looked_for(tmp_path, uri):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "data.csv").write_text("id,text")
    with pytest.raises(UsageError, match=uri.replace("*", r"\*")) as error:
        open_source(str(tmp_path / uri), SourceConfig(), tmp_path / "scratch")
    assert error.value.need
    assert error.value.do


@pytest.mark.parametrize("uri", ["zzz://bucket/x.parquet", "s3://key:hunter2@bucket/x.parquet"])
def test_uris_that_cannot_be_used(tmp_path, uri):
    with pytest.raises(UsageError) as error:
        open_source(uri, SourceConfig(), tmp_path)
    assert "hunter2" not in str(error.value)


def test_partitions_become_typed_columns(tmp_path):
    places = {
        "year=2023/lang=en": "1",
        "year=2024/lang=de": "2",
        "year=__HIVE_DEFAULT_PARTITION__/lang=a%20b": "3",
    }
    for place, name in places.items():
        (tmp_path / "d" / place).mkdir(parents=True)
        pq.write_table(table(name), tmp_path / "d" / place / "part.parquet")
    for uri in (tmp_path / "d", tmp_path / "d" / "*" / "*" / "*.parquet"):
        source = open_source(str(uri), SourceConfig(), tmp_path / "scratch")
        rows = [
            row
            for s in source.splits
            for b in read_split(s, SourceConfig())
            for row in b.documents.to_pylist()
        ]
        assert {row["document_id"]: row["metadata"] for row in rows} == {
            "1": '{"lang":"en","year":2023}',
            "2": '{"lang":"de","year":2024}',
            "3": '{"lang":"a b"}',
        }


def test_a_partition_column_has_one_type(tmp_path):
    for code in ("12", "x"):
        (tmp_path / "d" / f"code={code}").mkdir(parents=True)
        pq.write_table(table(code), tmp_path / "d" / f"code={code}" / "part.parquet")
    source = open_source(str(tmp_path / "d"), SourceConfig(), tmp_path / "scratch")
    assert [split.partitions for split in source.splits] == [(("code", "12"),), (("code", "x"),)]


def test_a_partition_column_can_have_a_role(tmp_path):
    for tenant in ("x", "y"):
        (tmp_path / "d" / f"tenant={tenant}").mkdir(parents=True)
        pq.write_table(table("1"), tmp_path / "d" / f"tenant={tenant}" / "part.parquet")
    config = SourceConfig(namespace_column="tenant")
    source = open_source(str(tmp_path / "d"), config, tmp_path / "scratch")
    rows = [
        row for split in source.splits for b in read_split(split, config) for row in b.documents.to_pylist()
    ]
    assert [(row["namespace"], row["metadata"]) for row in rows] == [("x", "{}"), ("y", "{}")]


def ipc_file(data: pa.Table, rows: int = 1 << 20) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_file(out, data.schema) as writer:
        writer.write_table(data, rows)
    return out.getvalue()


def ipc_stream(data: pa.Table, rows: int = 1 << 20) -> bytes:
    out = io.BytesIO()
    with pa.ipc.new_stream(out, data.schema) as writer:
        writer.write_table(data, rows)
    return out.getvalue()


def parquet(data: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(data, out)
    return out.getvalue()


def feather_file(data: pa.Table, version: int) -> bytes:
    out = io.BytesIO()
    feather.write_feather(data, out, version=version)
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["docs", "docs.arrow", "docs.arrows", "docs.feather", "docs.ipc", "docs.data"]
)
@pytest.mark.parametrize(
    "content", [ipc_file(table("1")), ipc_stream(table("1")), feather_file(table("1"), 2)]
)
def test_arrow_is_known_by_its_first_bytes_whatever_its_name(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert texts(tmp_path / name, tmp_path / "scratch") == ["1"]


def test_files_without_an_extension_are_found_by_their_first_bytes(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "000000_0").write_bytes(parquet(table("1")))
    (tmp_path / "d" / "LICENSE").write_text("a licence")
    assert texts(tmp_path / "d", tmp_path / "scratch") == ["1"]


def test_the_format_can_be_said(tmp_path):
    (tmp_path / "docs.bin").write_bytes(parquet(table("1")))
    (tmp_path / "stream.parquet").write_bytes(ipc_stream(table("2")))
    assert texts(tmp_path / "docs.bin", tmp_path, SourceConfig(format="parquet")) == ["1"]
    assert texts(tmp_path / "stream.parquet", tmp_path, SourceConfig(format="arrows")) == ["2"]


def test_feather_version_1_is_explained(tmp_path):
    (tmp_path / "old.feather").write_bytes(b"FEA1" + bytes(100) + b"FEA1")
    with pytest.raises(SourceError, match="version 1") as error:
        open_source(str(tmp_path / "old.feather"), SourceConfig(), tmp_path / "scratch")
    assert "write_feather" in error.value.got


def give_stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_is_the_same_source_again(tmp_path, monkeypatch):
    content = ipc_stream(table("1", "2", "1"), rows=2)
    give_stdin(monkeypatch, content)
    first = open_source("-", SourceConfig(), tmp_path / "one")
    give_stdin(monkeypatch, content)
    second = open_source("-", SourceConfig(), tmp_path / "two")
    assert first.fingerprint == second.fingerprint
    assert [split.id for split in first.splits] == [split.id for split in second.splits]
    [split] = first.splits
    batches = list(read_split(split, SourceConfig()))
    assert [row["document_id"] for batch in batches for row in batch.documents.to_pylist()] == ["2", "1"]
    assert [(r.uri, r.row, r.reason) for batch in batches for r in batch.rejected] == [("-", 0, "duplicate")]


@pytest.mark.parametrize("content", [b"", b"hello world, this is text"])
def test_standard_input_that_is_no_stream(tmp_path, monkeypatch, content):
    give_stdin(monkeypatch, content)
    with pytest.raises((UsageError, SourceError)) as error:
        open_source("-", SourceConfig(), tmp_path / "scratch")
    assert error.value.got


def test_other_filesystems_by_fsspec(tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("lang=en/1.parquet", "lang=de/2.arrow", "a b/3.arrows"):
        content = {"parquet": parquet, "arrow": ipc_file, "arrows": ipc_stream}[name.split(".")[1]](
            table(name[-9])
        )
        memory.pipe(f"/sources/{name}", content)
    try:
        source = open_source("memory://sources", SourceConfig(), tmp_path)
        assert [split.uri for split in source.splits] == [
            "memory://sources/a%20b/3.arrows",
            "memory://sources/lang=de/2.arrow",
            "memory://sources/lang=en/1.parquet",
        ]
        assert len(texts("memory://sources", tmp_path)) == 3
        assert len(texts("memory://sources/*/*.parquet", tmp_path)) == 1
        assert len(texts("memory://sources/a b/3.arrows", tmp_path)) == 1
    finally:
        memory.rm("/sources", recursive=True)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(st.integers(1, 60), st.integers(1, 9))
def test_splits_of_a_file_cover_its_rows_once(tmp_path_factory, rows, group):
    folder = tmp_path_factory.mktemp("splits")
    pq.write_table(table(*map(str, range(rows))), folder / "d.parquet", row_group_size=group)
    splits = open_source(str(folder / "d.parquet"), SourceConfig(), folder / "scratch").splits
    assert [split.first_row for split in splits] == list(range(0, rows, group))
    assert sum(split.rows or 0 for split in splits) == rows
    assert len({split.id for split in splits}) == len(splits)


def test_a_delta_table_is_refused_and_not_read_with_the_rows_it_has_removed(tree, tmp_path):
    (tree / "_delta_log").mkdir()
    (tree / "_delta_log" / "00000000000000000000.json").write_text("{}")
    with pytest.raises(UsageError, match="headwater watch"):
        texts(tree, tmp_path)
