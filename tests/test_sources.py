"""From a file to documents: what is read, what is rejected and why, and what cannot be read at all."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import SourceConfig
from pipeline.errors import SourceError, UsageError
from pipeline.schemas import DOCUMENTS, check
from pipeline.sources import Source, open_source, read_split
from pipeline.sources import documents as documents_module


def strings(*values: bytes | None) -> pa.Array:
    """A string column of any bytes: Arrow does not look."""
    raw = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers(), raw.null_count)


def write(file: Path, columns: dict[str, object] | pa.Table, rows: int = 1 << 20) -> Path:
    """A table as Parquet, Arrow file or Arrow stream by extension, `rows` to a row group or record batch."""
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pq.write_table(table, file, row_group_size=rows)
    else:
        opener = pa.ipc.new_file if file.suffix == ".arrow" else pa.ipc.new_stream
        with opener(str(file), table.schema) as writer:
            writer.write_table(table, rows)
    return file


def read(source: Source, config: SourceConfig):
    documents, rejected = [], []
    for split in source.splits:
        rows = split.first_row
        for batch in read_split(split, config):
            check(batch.documents, DOCUMENTS)
            assert batch.documents.num_rows + len(batch.rejected) <= config.batch_rows
            rows += batch.documents.num_rows + len(batch.rejected)
            documents += batch.documents.to_pylist()
            rejected += batch.rejected
        assert rows - split.first_row == split.rows
    return documents, rejected


def read_all(uri: Path, **config):
    settings_ = SourceConfig(**config)
    return read(open_source(str(uri), settings_, uri.parent / "_scratch"), settings_)


def reasons(rejected) -> dict[int, str]:
    return {r.row: r.reason for r in rejected}


ALL = ["docs.parquet", "docs.arrow", "docs.arrows"]
TABLE = pa.table(
    {
        "id": ["a", "b", None, "", "b", "d"],
        "text": ["one", "zwei ü", "x", "y", "drei", " \n\t"],
        "year": [1, 2, 3, 4, None, 6],
        "tags": [["x"], [], None, None, ["y", None], None],
    }
)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_every_format_gives_the_same_documents(tmp_path, name, rows):
    documents, rejected = read_all(write(tmp_path / name, TABLE, rows))
    assert [(d["document_id"], d["text"], json.loads(d["metadata"]), d["row"]) for d in documents] == [
        ("a", "one", {"year": 1, "tags": ["x"]}, 0),
        ("b", "drei", {"tags": ["y", None]}, 4),
    ]
    assert {(d["namespace"], d["sequence"], d["operation"]) for d in documents} == {("", 0, "upsert")}
    assert reasons(rejected) == {1: "duplicate", 2: "null_id", 3: "null_id", 5: "empty_text"}
    assert {r.document_id for r in rejected} == {"b", None, "d"}
    assert all(r.message and r.stage == "source" and r.uri == str(tmp_path / name) for r in rejected)


@pytest.mark.parametrize("name", ALL)
def test_opening_twice_gives_the_same_source_and_a_changed_file_another(tmp_path, name):
    file = write(tmp_path / name, TABLE, 2)
    first, second = (open_source(str(file), SourceConfig(), tmp_path / "s") for _ in range(2))
    assert first == second
    assert first.rows == 6
    write(file, pa.concat_tables([TABLE, TABLE]), 2)
    third = open_source(str(file), SourceConfig(), tmp_path / "s")
    assert third.fingerprint != first.fingerprint
    assert not {split.id for split in third.splits} & {split.id for split in first.splits}


def test_a_split_of_a_file_that_changed_is_not_read(tmp_path):
    file = write(tmp_path / "docs.parquet", TABLE)
    [split] = open_source(str(file), SourceConfig(), tmp_path / "s").splits
    write(file, pa.concat_tables([TABLE, TABLE]))
    with pytest.raises(SourceError, match="changed"):
        next(read_split(split, SourceConfig()))
    file.unlink()
    with pytest.raises(SourceError, match="gone"):
        next(read_split(split, SourceConfig()))


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int32(), pa.string()),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["docs.parquet", "docs.arrow"])
def test_ids_and_texts_of_every_string_type(tmp_path, kind, name):
    column = pa.array(["ä", "b", None], pa.string()).cast(kind)
    documents, rejected = read_all(write(tmp_path / name, {"id": column, "text": column}))
    assert [(d["document_id"], d["text"]) for d in documents] == [("ä", "ä"), ("b", "b")]
    assert reasons(rejected) == {2: "null_id"}


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.int64(), pa.uint64(), pa.dictionary(pa.int8(), pa.int32())], ids=str
)
def test_integer_ids_become_decimal_strings(tmp_path, kind):
    ids = pa.array([1, None, 100]).cast(kind.value_type if pa.types.is_dictionary(kind) else kind)
    ids = ids.dictionary_encode() if pa.types.is_dictionary(kind) else ids
    documents, rejected = read_all(write(tmp_path / "docs.arrow", {"id": ids, "text": ["x"] * 3}))
    assert [d["document_id"] for d in documents] == ["1", "100"]
    assert reasons(rejected) == {1: "null_id"}


def test_uuid_ids_are_written_as_usual(tmp_path):
    ids = pa.array([bytes(range(16)), None], pa.uuid())
    documents, _ = read_all(write(tmp_path / "docs.arrow", {"id": ids, "text": ["x", "y"]}))
    assert [d["document_id"] for d in documents] == ["00010203-0405-0607-0809-0a0b0c0d0e0f"]


@pytest.mark.parametrize(
    ("columns", "config"),
    [
        ({"id": [1.5]}, {}),
        ({"id": [True]}, {}),
        ({"id": pa.array([0], pa.timestamp("us"))}, {}),
        ({"id": [["x"]]}, {}),
        ({"text": [5]}, {}),
        ({"version": ["1"]}, {"sequence": "version"}),
        ({"version": [1.0]}, {"sequence": "version"}),
        ({"op": [1]}, {"operation": "op"}),
        ({"tenant": [1]}, {"namespace_column": "tenant"}),
        ({"pause": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}, {}),
    ],
)
def test_a_column_of_a_type_its_role_cannot_have(tmp_path, columns, config):
    [(name, column)] = columns.items()
    file = write(tmp_path / "docs.arrow", {"id": ["a"], "text": ["x"]} | columns)
    with pytest.raises(UsageError, match=name) as error:
        read_all(file, **config)
    assert str(pa.array(column).type) in error.value.got
    assert error.value.need
    assert error.value.do


@pytest.mark.parametrize(
    ("config", "known"),
    [
        ({"id": "ids"}, "id"),
        ({"text": ("text", "tittle")}, "title"),
        ({"template": "{Titel}"}, "title"),
        ({"metadata": ("title_",)}, "title"),
        ({"sequence": "seq"}, ""),
        ({"operation": "oper"}, ""),
        ({"namespace_column": "tenant"}, ""),
    ],
)
def test_a_missing_column_is_named_with_those_there_are(tmp_path, config, known):
    file = write(tmp_path / "docs.parquet", {"id": ["a"], "text": ["x"], "title": ["y"]})
    with pytest.raises(UsageError, match="no column") as error:
        read_all(file, **config)
    assert "id, text, title" in error.value.need
    assert known in error.value.do


@pytest.mark.parametrize(
    "config",
    [{"namespace": "a", "namespace_column": "text"}, {"template": "{text"}, {"id": "twice"}],
)
def test_a_mapping_that_says_too_little_or_too_much(tmp_path, config):
    table = pa.table([["a"], ["x"], ["1"], ["2"]], names=["id", "text", "twice", "twice"])
    file = write(tmp_path / "docs.arrow", table)
    with pytest.raises(UsageError):
        read_all(file, **{"metadata": ()} | config)


def test_texts_are_joined_with_a_blank_line(tmp_path):
    columns = {"id": list("abcde"), "title": ["T", None, "T", " ", None], "text": ["B", "B", "", "B", None]}
    documents, rejected = read_all(write(tmp_path / "d.parquet", columns), text=("title", "text"))
    assert [d["text"] for d in documents] == ["T\n\nB", "B", "T", "B"]
    assert {d["metadata"] for d in documents} == {"{}"}
    assert reasons(rejected) == {4: "empty_text"}


def test_a_template_makes_the_text_and_its_columns_stay_metadata_unless_listed_as_text(tmp_path):
    columns = {"id": ["a", "b"], "title": ["Lamp", None], "price": [9.5, None], "text": ["Red", None]}
    documents, rejected = read_all(
        write(tmp_path / "d.parquet", columns), template="{title}: {price} EUR\n{text}"
    )
    assert [(d["text"], d["metadata"]) for d in documents] == [
        ("Lamp: 9.5 EUR\nRed", '{"price":9.5,"title":"Lamp"}')
    ]
    assert reasons(rejected) == {1: "empty_text"}
    documents, _ = read_all(tmp_path / "d.parquet", template="{title}")
    assert json.loads(documents[0]["metadata"]) == {"price": 9.5, "text": "Red", "title": "Lamp"}


def test_metadata_is_what_was_asked_for(tmp_path):
    file = write(tmp_path / "d.parquet", {"id": ["a"], "text": ["x"], "a": [1], "b": [2]})
    assert read_all(file)[0][0]["metadata"] == '{"a":1,"b":2}'
    assert read_all(file, metadata=("b", "id"))[0][0]["metadata"] == '{"b":2,"id":"a"}'
    assert read_all(file, metadata="")[0][0]["metadata"] == "{}"


def test_operations_in_their_spellings(tmp_path):
    spellings = ["insert", "update", "UPSERT", "c", "u", "r", "delete", " D ", "truncate", None]
    columns = {"id": [str(i) for i in range(10)], "text": ["x"] * 7 + [None, "x", "x"], "op": spellings}
    documents, rejected = read_all(write(tmp_path / "d.parquet", columns), operation="op")
    assert [d["operation"] for d in documents] == ["upsert"] * 6 + ["delete"] * 2
    assert [d["text"] for d in documents] == ["x"] * 6 + [""] * 2
    assert reasons(rejected) == {8: "unknown_operation", 9: "unknown_operation"}


def test_a_deletion_needs_no_more_than_its_key(tmp_path):
    columns = {
        "id": ["a", "b", None],
        "text": strings(b"\xff", None, b"x"),
        "note": strings(b"\xff", b"x", b"x"),
        "op": ["d"] * 3,
    }
    for config in ({}, {"template": "{text}"}):
        documents, rejected = read_all(write(tmp_path / "d.parquet", columns), operation="op", **config)
        assert [(d["document_id"], d["text"], d["metadata"]) for d in documents] == [
            ("a", "", "{}"),
            ("b", "", "{}"),
        ]
        assert reasons(rejected) == {2: "null_id"}


def test_the_last_row_of_a_document_wins_even_if_it_deletes(tmp_path):
    columns = {"id": ["a", "a"], "text": ["x", None], "op": ["u", "d"]}
    documents, rejected = read_all(write(tmp_path / "d.parquet", columns), operation="op")
    assert [d["operation"] for d in documents] == ["delete"]
    assert reasons(rejected) == {0: "duplicate"}


def test_sequences_that_order_nothing_are_rejected(tmp_path):
    columns = {"id": list("abc"), "text": ["x"] * 3, "v": pa.array([1, None, 2**64 - 1], pa.uint64())}
    documents, rejected = read_all(write(tmp_path / "d.parquet", columns), sequence="v")
    assert [(d["document_id"], d["sequence"], d["metadata"]) for d in documents] == [("a", 1, "{}")]
    assert reasons(rejected) == {1: "bad_sequence", 2: "bad_sequence"}


@pytest.mark.parametrize("name", ALL)
def test_bytes_that_are_not_utf8_are_rejected_by_column(tmp_path, name):
    bad, good = b"caf\xe9", b"x"
    nested = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4, 5, 6], pa.int32()), strings(*[good] * 5, bad))
    columns = {
        "id": strings(b"a", bad, b"c", b"d", b"e", b"f"),
        "text": strings(good, good, bad, good, good, good),
        "note": strings(None, good, good, bad, good, good),
        "kind": pa.DictionaryArray.from_arrays(pa.array([0, 0, 0, 0, 1, 0]), strings(good, bad)),
        "tags": nested,
    }
    if name.endswith("parquet"):  # pyarrow refuses to decode a page with such a dictionary
        columns["kind"] = columns["kind"].dictionary_decode()
    documents, rejected = read_all(write(tmp_path / name, columns))
    assert [d["document_id"] for d in documents] == ["a"]
    assert [(r.row, r.reason) for r in rejected] == [(row, "invalid_utf8") for row in range(1, 6)]
    for r, column in zip(rejected, ["id", "text", "note", "kind", "tags"], strict=True):
        assert repr(column) in r.message
    template_documents, template_rejected = read_all(tmp_path / name, template="{text} {tags}", metadata=())
    assert [d["document_id"] for d in template_documents] == ["a", "d", "e"]
    assert {reasons(template_rejected)[row] for row in (1, 2, 5)} == {"invalid_utf8"}


def test_namespaces(tmp_path):
    file = write(tmp_path / "d.parquet", {"id": ["a", "b"], "text": ["x", "y"], "tenant": ["t", None]})
    assert {d["namespace"] for d in read_all(file, namespace="all")[0]} == {"all"}
    documents, rejected = read_all(file, namespace_column="tenant")
    assert [(d["namespace"], d["metadata"]) for d in documents] == [("t", "{}")]
    assert reasons(rejected) == {1: "null_namespace"}


def test_a_large_document_is_a_batch_of_its_own(tmp_path):
    large = "word " * 10_000_000
    table = pa.table({"id": list("abcd"), "text": ["x", "y", large, "z"]})
    for name in ALL:
        file = write(tmp_path / name, table)
        [split] = open_source(str(file), SourceConfig(), tmp_path / "s").splits
        sizes = [
            batch.documents.column("document_id").to_pylist() for batch in read_split(split, SourceConfig())
        ]
        assert ["c"] in sizes
        assert list(chain.from_iterable(sizes)) == list("abcd")
        file.unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    st.sampled_from(ALL),
    st.integers(1, 9),
    st.booleans(),
)
def test_batches_are_bounded_in_rows_and_bytes(tmp_path_factory, lengths, name, rows, views):
    text = pa.array(["x" * length for length in lengths], pa.string_view() if views else pa.string())
    file = write(tmp_path_factory.mktemp("d") / name, {"id": pa.array(range(len(lengths))), "text": text})
    config = SourceConfig(batch_rows=rows, batch_bytes=1024)
    source = open_source(str(file), config, file.parent / "s")
    batches = [batch.documents for split in source.splits for batch in read_split(split, config)]
    assert all(b.num_rows <= rows for b in batches)
    assert all(b.num_rows == 1 or pc.sum(pc.binary_length(b.column("text"))).as_py() <= 1024 for b in batches)
    assert [row for b in batches for row in b.column("row").to_pylist()] == list(range(len(lengths)))


def test_more_text_than_a_column_holds_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(documents_module, "_TEXT_LIMIT", 100)
    columns = {"id": ["a", "b"], "text": pa.array(["x" * 101, "y"], pa.large_string())}
    documents, rejected = read_all(write(tmp_path / "d.parquet", columns))
    assert [d["document_id"] for d in documents] == ["b"]
    assert reasons(rejected) == {0: "too_large"}


@pytest.mark.parametrize("name", ALL)
def test_a_file_without_rows_is_a_source_without_splits(tmp_path, name):
    source = open_source(str(write(tmp_path / name, TABLE.slice(0, 0))), SourceConfig(), tmp_path / "s")
    assert (source.splits, source.unreadable, source.rows) == ((), (), 0)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("keep", [0, 3, 0.5, -12])
def test_a_truncated_file_is_unreadable_and_the_others_are_read(tmp_path, name, keep):
    write(tmp_path / "d" / f"a-{name}", pa.table({"id": ["gone"] * 50, "text": ["x"] * 50}))
    write(tmp_path / "d" / f"b-{name}", pa.table({"id": ["kept", "gone"], "text": ["x", "y"]}))
    broken = tmp_path / "d" / f"a-{name}"
    content = broken.read_bytes()
    broken.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    source = open_source(str(tmp_path / "d"), SourceConfig(), tmp_path / "s")
    assert [file.uri for file in source.unreadable] == [str(broken)]
    assert str(broken) in source.unreadable[0].message
    documents, _ = read(source, SourceConfig())
    assert [d["document_id"] for d in documents] == ["kept", "gone"]
    with pytest.raises(SourceError, match=broken.name):
        open_source(str(broken), SourceConfig(), tmp_path / "s")


def test_a_stream_may_end_without_its_end_mark(tmp_path):
    file = write(tmp_path / "d.arrows", {"id": ["a"], "text": ["x"]})
    file.write_bytes(file.read_bytes()[:-8])
    assert len(read_all(file)[0]) == 1


def test_garbage_is_unreadable(tmp_path):
    (tmp_path / "d.parquet").write_bytes(b"PAR1" + bytes(range(256)) * 10 + b"PAR1")
    with pytest.raises(SourceError, match=r"d\.parquet"):
        open_source(str(tmp_path / "d.parquet"), SourceConfig(), tmp_path / "s")


def corrupt(file: Path, column: int, group: int) -> None:
    """Overwrite the pages of one column chunk."""
    chunk = pq.ParquetFile(file).metadata.row_group(group).column(column)
    with file.open("r+b") as out:
        out.seek(chunk.dictionary_page_offset or chunk.data_page_offset)
        out.write(b"\xff" * chunk.total_compressed_size)


def test_a_corrupt_page_of_text_is_met_while_reading(tmp_path):
    table = pa.table({"id": [str(i) for i in range(100)], "text": [f"text {i}" for i in range(100)]})
    file = write(tmp_path / "d.parquet", table, 50)
    corrupt(file, column=1, group=1)
    source = open_source(str(file), SourceConfig(), tmp_path / "s")
    assert not source.unreadable
    assert sum(batch.documents.num_rows for batch in read_split(source.splits[0], SourceConfig())) == 50
    with pytest.raises(SourceError, match=r"row group 1 of .*d\.parquet"):
        list(read_split(source.splits[1], SourceConfig()))


def test_a_corrupt_page_of_ids_makes_a_file_unreadable_and_its_rows_beat_no_others(tmp_path):
    table = pa.table({"id": [str(i) for i in range(100)], "text": [f"text {i}" for i in range(100)]})
    write(tmp_path / "d" / "1.parquet", table.slice(0, 10))
    corrupt(write(tmp_path / "d" / "2.parquet", table, 50), column=0, group=1)
    write(tmp_path / "d" / "3.parquet", table.slice(5, 10))
    source = open_source(str(tmp_path / "d"), SourceConfig(), tmp_path / "s")
    assert [Path(file.uri).name for file in source.unreadable] == ["2.parquet"]
    documents, rejected = read(source, SourceConfig())
    assert [d["document_id"] for d in documents] == [*map(str, range(5)), *map(str, range(5, 15))]
    assert set(reasons(rejected).values()) == {"duplicate"}
    assert len(rejected) == 5


def test_columns_are_checked_file_by_file(tmp_path):
    write(tmp_path / "d" / "1.parquet", {"id": ["a"], "text": ["x"], "year": [1]})
    write(tmp_path / "d" / "2.parquet", {"text": ["y"], "id": [2], "year": ["two"]})
    documents, _ = read_all(tmp_path / "d")
    assert [(d["document_id"], d["metadata"]) for d in documents] == [
        ("a", '{"year":1}'),
        ("2", '{"year":"two"}'),
    ]
    write(tmp_path / "d" / "3.parquet", {"id": ["a"], "body": ["x"]})
    with pytest.raises(UsageError, match=r"3\.parquet has no column 'text'"):
        read_all(tmp_path / "d")


def test_many_small_record_batches_share_a_split(tmp_path):
    table = pa.table({"id": pa.array(range(25_000)), "text": ["x"] * 25_000})
    source = open_source(str(write(tmp_path / "d.arrow", table, 1000)), SourceConfig(), tmp_path / "s")
    assert [(s.start, s.stop, s.first_row, s.rows) for s in source.splits] == [
        (0, 10, 0, 10_000),
        (10, 20, 10_000, 10_000),
        (20, 25, 20_000, 5_000),
    ]
    assert [d["row"] for d in read(source, SourceConfig())[0]] == list(range(25_000))


def test_scratch_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "s").write_text("a file")
    with pytest.raises(SourceError, match="spooled"):
        open_source(str(write(tmp_path / "d.parquet", TABLE)), SourceConfig(), tmp_path / "s")
