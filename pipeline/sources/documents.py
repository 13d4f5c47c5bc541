"""Rows of any file become DOCUMENTS; what cannot is rejected with a reason.

    null_id, null_namespace, bad_sequence   nothing says which document it is, or which version
    duplicate                               another row of the source has the same document and wins
    unknown_operation                       neither an upsert nor a delete
    invalid_utf8                            bytes in a string that are not UTF-8
    too_large                               more text than an Arrow string holds (2 GiB)
    empty_text                              null, empty or blank text
    kills_lane                              lanes died on it; nothing but its key is read

A row gets the first of these that applies. A deletion needs no more than its key: its text is "", its
metadata {}.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.schemas import DOCUMENTS, DocumentBatch, Rejected
from pipeline.sources.columns import Columns
from pipeline.sources.findings import Findings
from pipeline.sources.keys import Keys, is_utf8, read_keys, texts
from pipeline.sources.template import written
from pipeline.sources.values import Column, byte_lengths, json_values, to_json, undecodable

_OPERATIONS = {
    **dict.fromkeys(("upsert", "insert", "update", "create", "read", "u", "i", "c", "r"), "upsert"),
    **dict.fromkeys(("delete", "remove", "d"), "delete"),
}
KILLS_LANE = "kills_lane"
_TEXT_LIMIT = 2**31 - 1  # bytes that an Arrow string array can hold


def to_documents(
    batch: pa.RecordBatch, first_row: int, columns: Columns, superseded: NDArray[np.int64], where: str
) -> DocumentBatch:
    """Turn the rows of a batch into documents, in order, and reject those that cannot be.

    `first_row` is the number of the batch's first row in its file, `superseded` the sorted row numbers of
    the file that are duplicates. Every row is in one of the two halves of the result.
    """
    findings = Findings(batch.num_rows)
    keys = read_keys(batch, columns, findings)
    _reject_duplicates(first_row, superseded, findings)
    deletes = _deletes(batch, columns, findings)
    text = _text(batch, columns, findings, deletes)
    metadata = _metadata(batch, columns, findings, deletes)

    def kept(array: Column) -> Column:
        return array if findings.good.all() else array.filter(pa.array(findings.good))

    documents = pa.record_batch(
        [
            kept(keys.ids),
            kept(keys.namespaces),
            kept(text).cast(pa.string()),
            pa.array([line for line, good in zip(metadata, findings.good, strict=True) if good], pa.string()),
            kept(pa.array(keys.sequences)),
            kept(pa.array(np.where(deletes, "delete", "upsert"), pa.string())),
            kept(pa.array(first_row + np.arange(batch.num_rows, dtype=np.int64))),
        ],
        schema=DOCUMENTS,
    )
    return DocumentBatch(documents, _rejected(keys, findings, first_row, columns, where))


def to_rejected(
    batch: pa.RecordBatch,
    first_row: int,
    columns: Columns,
    superseded: NDArray[np.int64],
    where: str,
    poison: str,
) -> DocumentBatch:
    """Reject all rows of a batch, of which only the key columns are needed: lanes died on them, as `poison` says."""
    findings = Findings(batch.num_rows)
    keys = read_keys(batch, columns, findings)
    _reject_duplicates(first_row, superseded, findings)
    findings.add(np.ones(batch.num_rows, np.bool_), KILLS_LANE, poison)
    none = pa.RecordBatch.from_pylist([], schema=DOCUMENTS)
    return DocumentBatch(none, _rejected(keys, findings, first_row, columns, where))


def _rejected(
    keys: Keys, findings: Findings, first_row: int, columns: Columns, where: str
) -> tuple[Rejected, ...]:
    return tuple(
        Rejected(
            keys.ids[row].as_py() or None,
            where,
            first_row + row,
            "lane" if reason == KILLS_LANE else "source",
            reason,
            message,
            (keys.namespaces[row].as_py() or None) if columns.namespace_column else columns.namespace,
            None if reason == "bad_sequence" else int(keys.sequences[row]),
        )
        for row, reason, message in findings.items()
    )


def named(
    batch: pa.RecordBatch, first_row: int, columns: Columns, superseded: NDArray[np.int64]
) -> list[tuple[str, str]]:
    """(namespace, document id) of the rows that name a document and neither delete it nor lose to another row.

    A row that `to_documents` rejects for anything else is still its document's.
    """
    findings = Findings(batch.num_rows)
    keys = read_keys(batch, columns, findings)
    deleted = _deletes(batch, columns, findings) & findings.good
    known = byte_lengths(keys.ids) > 0
    if columns.namespace_column:
        known &= byte_lengths(keys.namespaces) > 0
    kept = pa.array(known & ~deleted & ~_superseded(first_row, superseded, batch.num_rows))
    ids, namespaces = keys.ids.filter(kept).to_pylist(), keys.namespaces.filter(kept).to_pylist()
    return list(zip(namespaces, ids, strict=True))


def _superseded(first_row: int, superseded: NDArray[np.int64], rows: int) -> NDArray[np.bool_]:
    """bool[rows]: True for rows that are in `superseded`."""
    start, stop = np.searchsorted(superseded, [first_row, first_row + rows])
    lost = np.zeros(rows, np.bool_)
    lost[superseded[start:stop] - first_row] = True
    return lost


def _reject_duplicates(first_row: int, superseded: NDArray[np.int64], findings: Findings) -> None:
    findings.add(
        _superseded(first_row, superseded, len(findings.good)),
        "duplicate",
        "another row has the same id and a higher sequence, or comes later; give each document one row",
    )


def _deletes(batch: pa.RecordBatch, columns: Columns, findings: Findings) -> NDArray[np.bool_]:
    """bool[n]: True for rows that delete their document."""
    if not columns.operation:
        return np.zeros(batch.num_rows, np.bool_)
    values, _ = texts(batch.column(columns.operation))
    operations = [_OPERATIONS.get((value or "").strip().lower()) for value in values.to_pylist()]
    findings.add(
        np.array([operation is None for operation in operations], np.bool_),
        "unknown_operation",
        f"column {columns.operation!r} names no known operation; write one of {', '.join(_OPERATIONS)}",
    )
    return np.array([operation == "delete" for operation in operations], np.bool_)


def _text(batch: pa.RecordBatch, columns: Columns, findings: Findings, deletes: NDArray[np.bool_]) -> Column:
    """The rows' texts without nulls, "" where the row is bad or deletes."""
    if columns.template:
        text = _rendered(batch, columns, findings, deletes)
    else:
        parts = []
        for name in columns.text:
            values, wrong = texts(batch.column(name))
            if wrong is not None:
                findings.add(wrong & ~deletes, "invalid_utf8", _not_utf8(name))
            parts.append(values)
        text = parts[0] if len(parts) == 1 else _joined(parts)
    if pa.types.is_large_string(text.type):
        large = byte_lengths(text) > _TEXT_LIMIT
        findings.add(
            large & ~deletes,
            "too_large",
            f"the text has more than {_TEXT_LIMIT} bytes; cut the document in several",
        )
        text = _emptied(text, large)
    blank = _blank(text)
    findings.add(blank & ~deletes, "empty_text", "there is no text; give the document one, or delete it")
    return _emptied(text, blank | deletes)


def _emptied(text: Column, where: NDArray[np.bool_]) -> Column:
    return pc.if_else(pa.array(where), pa.scalar("", text.type), text) if where.any() else text


def _not_utf8(column: str) -> str:
    return f"column {column!r} is not UTF-8; write it as UTF-8"


def _rendered(
    batch: pa.RecordBatch, columns: Columns, findings: Findings, deletes: NDArray[np.bool_]
) -> Column:
    template = columns.template
    assert template is not None
    values: dict[str, list[str]] = {}
    for name in template.columns:
        array = batch.column(name)
        valid = is_utf8(array)  # before anything looks into the column
        strings = written(array)
        if not valid:
            wrong = undecodable(strings)
            findings.add(wrong & ~deletes, "invalid_utf8", _not_utf8(name))
            strings = ["" if bad else string for string, bad in zip(strings, wrong, strict=True)]
        values[name] = strings
    return pa.array(template.render(values), pa.large_string())


def _joined(parts: list[Column]) -> Column:
    """Several texts as one, with a blank line between; those that are null or blank are left out."""
    separator = pa.scalar("\n\n", pa.large_string())
    joined = parts[0].cast(pa.large_string())
    for part in parts[1:]:
        large = part.cast(pa.large_string())
        # not null_handling="skip" over all parts at once: pyarrow 26 loses the rows where every part is null
        both = pc.binary_join_element_wise(joined, large, separator)
        alone = pc.if_else(pa.array(_blank(joined)), large, joined)
        joined = pc.if_else(pa.array(_blank(joined) | _blank(large)), alone, both)
    return joined


def _blank(text: Column) -> NDArray[np.bool_]:
    """bool[n]: True for null, empty and white-space-only."""
    spaces: Column = pc.utf8_is_space(text)
    blank = spaces.fill_null(True).to_numpy(zero_copy_only=False)
    return np.asarray((byte_lengths(text) == 0) | blank, np.bool_)


def _metadata(
    batch: pa.RecordBatch, columns: Columns, findings: Findings, deletes: NDArray[np.bool_]
) -> list[str]:
    """The rows' metadata as JSON objects, keys sorted, nulls left out; of no use where the row is bad."""
    lists = []
    for name in columns.metadata:
        array = batch.column(name)
        valid = is_utf8(array)
        values = json_values(array)
        if not valid:
            findings.add(undecodable(values) & ~deletes, "invalid_utf8", _not_utf8(name))
        lists.append(values)
    if not lists:
        return ["{}"] * batch.num_rows
    rows = (
        {name: value for name, value in zip(columns.metadata, row, strict=True) if value is not None}
        for row in zip(*lists, strict=True)
    )
    return ["{}" if gone else to_json(row) for row, gone in zip(rows, deletes.tolist(), strict=True)]
