"""What deltalake tells of a table: its rows as they are, and what its commits changed."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.config import SourceConfig
from pipeline.errors import ChangesLost, HeadwaterError, SourceError, UsageError
from pipeline.sources import is_remote
from pipeline.sync import KEYS, Buckets, absent

CHANGE, VERSION = "_change_type", "_commit_version"  # reserved by Delta Lake: no table has such columns

_ENABLED = "delta.enableChangeDataFeed"
_OURS = (CHANGE, VERSION, "_commit_timestamp")
_DELETES = f"{CHANGE} = 'delete'"
_UPSERTS = f"{CHANGE} IN ('insert', 'update_postimage')"
_BEFORE = f"{CHANGE} = 'update_preimage'"
_AFTER = f"{CHANGE} = 'update_postimage'"
_LOST = ("not found", "Invalid table version", "does not have change data enabled", "No such file")


class Feed:
    """A table at one version; it gives batches with its columns and CHANGE (`upsert`, `delete`).

    And VERSION, unless a column is the sequence. A column that says the operation of a row is taken into account.
    Methods raise SourceError where the table cannot be read.
    """

    def __init__(self, uri: str, table: Any, config: SourceConfig) -> None:  # noqa: ANN401 - of an extra
        self.uri = uri
        self._table = table
        self._operation = config.operation
        self._numbered = not config.sequence
        self._key = list(filter(None, (config.id, config.namespace_column, VERSION)))

    @classmethod
    def open(cls, uri: str, config: SourceConfig) -> Feed:
        """Raise UsageError where deltalake is not installed, or the table has no change data feed."""
        try:
            import deltalake
        except ImportError:
            raise UsageError(
                f"{uri} is a Delta Lake table, and deltalake is not installed",
                "The extra 'delta'",
                "pip install -c constraints.txt '.[delta]'",
            ) from None
        with _reading(uri):
            feed = cls(uri, deltalake.DeltaTable(uri.partition("?")[0] if is_remote(uri) else uri), config)
        feed._check()
        return feed

    @property
    def id(self) -> str:
        """Another one for a table that was made anew at the same place."""
        return _id(self._table)

    @property
    def version(self) -> int:
        """That of the last commit."""
        return int(self._table.version())

    @property
    def fields(self) -> dict[str, Any]:
        """The type of each column, as Delta Lake writes it."""
        return {
            field["name"]: field["type"] for field in json.loads(self._table.schema().to_json())["fields"]
        }

    def refresh(self) -> None:
        """Go on to the last commit; UsageError where the feed has been switched off, or the table was made anew."""
        with _reading(self.uri):
            before = self.version
            self._table.update_incremental()  # which takes the commits of any table
            if self.version != before and self.id != _id(type(self._table)(self._table.table_uri)):
                raise another_table(self.uri)
        self._check()

    def committed_at(self) -> float:
        """When the last commit was made, in seconds since 1970."""
        with _reading(self.uri):
            return float(self._table.history(1)[0]["timestamp"]) / 1000

    def rows(self) -> Iterator[pa.RecordBatch]:
        """The table's rows as they are, as upserts of its version."""
        from deltalake import QueryBuilder

        with _reading(self.uri):
            found = QueryBuilder().register("t", self._table).execute("SELECT * FROM t")
            for batch in pa.RecordBatchReader.from_stream(found):
                yield self._marked(batch, "upsert")

    def changes(self, first: int, last: int, scratch: Path) -> Iterator[pa.RecordBatch]:
        """What these commits changed, in no order but that all deletes come first: a row that is rewritten is both.

        A row that an update gave another id or namespace is deleted under its former one. Writes 16 bytes to `scratch`
        for each row before and after an update. Raises ChangesLost where the feed does not hold all of these commits.
        """
        with _reading(self.uri):
            for batch in self._read(first, last, _DELETES):
                yield self._marked(batch, "delete")
            yield from self._moved(first, last, scratch)
            for batch in self._read(first, last, _UPSERTS):
                yield self._marked(batch, "upsert")

    def _read(
        self, first: int, last: int, where: str, columns: list[str] | None = None
    ) -> pa.RecordBatchReader:
        return pa.RecordBatchReader.from_stream(
            self._table.load_cdf(
                starting_version=first, ending_version=last, predicate=where, columns=columns
            )
        )

    def _moved(self, first: int, last: int, scratch: Path) -> Iterator[pa.RecordBatch]:
        """The rows before updates, as deletes, whose documents are not those after them."""
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            before, after = (Buckets(Path(folder) / name, KEYS) for name in ("before", "after"))
            for where, keys in ((_BEFORE, before), (_AFTER, after)):
                for batch in self._read(first, last, where, [*self._key, CHANGE]):
                    keys.add(self._keys(batch))
            moved = np.concatenate(list(absent(before, after)))
        if len(moved):
            for batch in self._read(first, last, _BEFORE):
                gone = np.isin(self._keys(batch)["key"], moved)
                yield self._marked(batch, "delete").filter(pa.array(gone))

    def _keys(self, batch: pa.RecordBatch) -> NDArray[Any]:
        """KEYS[n]: of each row, its document and commit."""
        rows = zip(*(batch.column(name).to_pylist() for name in self._key), strict=True)
        hashes = (hashlib.blake2b(repr(row).encode(), digest_size=16).digest() for row in rows)
        return np.frombuffer(b"".join(hashes), KEYS)

    def _marked(self, batch: pa.RecordBatch, operation: str) -> pa.RecordBatch:
        names = [name for name in batch.schema.names if name not in (*_OURS, self._operation)]
        columns = {name: _plain(batch.column(name)) for name in names}
        says = operation == "upsert" and self._operation
        columns[CHANGE] = batch.column(says) if says else pa.repeat(operation, batch.num_rows)
        if self._numbered:
            known = VERSION in batch.schema.names
            columns[VERSION] = (
                batch.column(VERSION).cast(pa.int64())
                if known
                else pa.repeat(pa.scalar(self.version, pa.int64()), batch.num_rows)
            )
        return pa.RecordBatch.from_pydict(columns)

    def _check(self) -> None:
        if self._table.metadata().configuration.get(_ENABLED, "false").lower() != "true":
            raise UsageError(
                f"{self.uri} is a Delta Lake table without a change data feed",
                f"{_ENABLED} = true",
                "Set it as a property of the table; all rows are read once, and what changes from then on",
            )
        if self._operation and self._operation not in self.fields:
            raise UsageError(
                f"{self.uri} has no column {self._operation!r}",
                f"Its columns are {', '.join(self.fields)}",
                "Set source.operation to one of them, or leave it out: the feed says what is deleted",
            )


def _id(table: Any) -> str:  # noqa: ANN401 - of an extra
    return str(table.metadata().id)


def another_table(uri: str) -> UsageError:
    """The error for a table that is not the one that was indexed."""
    return UsageError(
        f"{uri} is another table than the one that was indexed, its versions begin anew",
        "A collection of its own",
        "Name another with --collection",
    )


def _plain(array: pa.Array[Any]) -> pa.Array[Any]:
    """The same without views: a view keeps, and an IPC file holds, all that the memory it looks at holds."""
    kind = _plain_type(array.type)
    return array if kind == array.type else array.cast(kind)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    match kind:
        case pa.ListType():
            return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)))
        case pa.StructType():
            return pa.struct([field.with_type(_plain_type(field.type)) for field in kind])
        case pa.MapType():
            return pa.map_(_plain_type(kind.key_type), _plain_type(kind.item_type))
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turn what deltalake raises into SourceError, and into ChangesLost where a commit or its files are gone."""
    try:
        yield
    except (HeadwaterError, GeneratorExit):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        kind = ChangesLost if any(word in reason for word in _LOST) else SourceError
        raise kind(f"Delta Lake table {uri} cannot be read: {reason[:500]}") from error
