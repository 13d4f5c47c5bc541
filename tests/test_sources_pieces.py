"""Pieces of a split: all of them together are the split, row for row."""

from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SourceConfig
from pipeline.sources import open_source, read_split

ROWS = [
    {
        "id": None if n == 7 else f"d{n % 30}",  # the last ten are newer rows of the first
        "text": "" if n == 12 else f"text {n} " * (n % 5 + 1),
        "tenant": None if n == 15 else "a",
        "version": n,
    }
    for n in range(40)
]
CONFIG = SourceConfig(namespace_column="tenant", sequence="version", batch_rows=4)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, folder / "a.parquet", row_group_size=20)
    with pa.ipc.new_file(str(folder / "b.arrow"), table.schema) as out:
        out.write_table(table, 3)
    found = [
        split
        for name in ("a.parquet", "b.arrow")
        for split in open_source(str(folder / name), CONFIG, folder / "scratch").splits
    ]
    assert [(split.first_row, split.rows) for split in found] == [(0, 20), (20, 20), (0, 40)]
    return found


def read(split):
    """The documents of a split and the rows it rejects."""
    batches = list(read_split(split, CONFIG))
    return (
        [row for batch in batches for row in batch.documents.to_pylist()],
        [one for batch in batches for one in batch.rejected],
    )


@given(st.integers(0, 2), st.sets(st.integers(1, 39)))
def test_the_pieces_of_a_split_give_what_the_split_gives(splits, number, cuts):
    split = splits[number]
    stop = split.first_row + split.rows
    ends = [split.first_row, *sorted(cut for cut in cuts if split.first_row < cut < stop), stop]
    pieces = [read(replace(split, piece=piece)) for piece in pairwise(ends)]
    whole = read(split)
    assert [row for documents, _ in pieces for row in documents] == whole[0]
    assert [one for _, rejected in pieces for one in rejected] == whole[1]
    assert len(whole[0]) + len(whole[1]) == split.rows


def test_poison_is_rejected_with_its_key_and_sequence(splits):
    documents, (rejected,) = read(replace(splits[2], piece=(11, 12), poison="Three lanes died."))
    assert documents == []
    assert (rejected.document_id, rejected.namespace, rejected.sequence) == ("d11", "a", 11)
    assert (rejected.row, rejected.stage, rejected.reason) == (11, "lane", "kills_lane")
    assert rejected.message == "Three lanes died."


@pytest.mark.parametrize(("row", "reason"), [(2, "duplicate"), (7, "null_id"), (15, "null_namespace")])
def test_a_row_that_was_no_document_anyway_keeps_its_reason(splits, row, reason):
    _, (rejected,) = read(replace(splits[2], piece=(row, row + 1), poison="Three lanes died."))
    assert (rejected.stage, rejected.reason) == ("source", reason)


def test_the_text_of_poison_is_not_touched(splits, monkeypatch):
    from pipeline.sources import source

    asked = []
    rows = source.split_rows
    monkeypatch.setattr(
        source,
        "split_rows",
        lambda reader, split, names, size: asked.extend(names) or rows(reader, split, names, size),
    )
    read(replace(splits[0], piece=(3, 4), poison="Three lanes died."))
    assert sorted(asked) == ["id", "tenant", "version"]
