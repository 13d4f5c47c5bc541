"""The manifest of a watched source: which file holds which document, and what of that the store may not show yet.

A SQLite file. What is about to be written is noted before, and what was written is noted after the store is durable,
so after a crash everything that may be half done is known. The store stays the truth: a manifest that is lost, or
behind which another run has written to the collection, costs a comparison of everything, never correctness.

    file   what lies there, as it was last read; `done`: all of it is searchable
    holds  every row that names a document, by its rank among the rows of the same document
    due    documents that a file has lost: gone, or now as another file has them
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from pipeline.errors import StoreError
from pipeline.schemas import Rejected, Split
from pipeline.sources import File
from pipeline.stores import Key

_TABLES = """
create table if not exists run (id text not null, compared integer not null);
create table if not exists file (
    id integer primary key, uri text not null unique, name text not null, identity text not null,
    modified integer not null, done integer not null);
create table if not exists holds (
    namespace text not null, document text not null, file integer not null, row integer not null,
    sequence integer not null, primary key (namespace, document, file, row)) without rowid;
create index if not exists holds_of_file on holds (file, row);
create table if not exists due (namespace text not null, document text not null, primary key (namespace, document))
    without rowid;
create table if not exists rejected (
    file integer not null, row integer not null, document_id text, stage text not null, reason text not null,
    message text not null, namespace text, sequence integer, primary key (file, row)) without rowid;
"""

# The rule of every source: the highest sequence wins, among equals the row that comes last.
_BEST = """
select file from holds join file on file.id = holds.file where namespace = due.namespace and document = due.document
    order by sequence desc, name desc, row desc limit 1
"""
_LOST = """
select mine.row from holds as mine where mine.file = ? and exists (
    select 1 from holds as other join file on file.id = other.file
    where other.namespace = mine.namespace and other.document = mine.document
    and (other.sequence, file.name, other.row) > (mine.sequence, ?, mine.row))
    order by mine.row
"""

Row = tuple[str, str, int, int]
"""A row that names a document: namespace, document id, sequence, row number."""


class Manifest:
    """What is known of a watched source; for one thread. Every method that changes something is one transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    @classmethod
    @contextmanager
    def open(cls, file: Path) -> Iterator[Self]:
        """Open or make a manifest; one that SQLite cannot read is made anew. StoreError where none can be."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with closing(_connect(file)) as database:
                yield cls(database)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(
                f"the manifest {file} cannot be used: {error}",
                "A folder with room to remember which file holds which document",
                "Name one with --set run.state=DIR",
            ) from error

    @property
    def run(self) -> str:
        """The run that it belongs to; "" for a new one."""
        found = self._database.execute("select id from run").fetchone()
        return found[0] if found else ""

    @property
    def compared(self) -> bool:
        """Whether nothing is in the collection but what files hold, or `due` lists."""
        found = self._database.execute("select compared from run").fetchone()
        return bool(found and found[0])

    def begin(self, run: str) -> None:
        """Belong to a run, believing nothing: all files are to be read, and the collection is to be compared."""
        with self._database as database:
            database.execute("delete from run")
            database.execute("insert into run values (?, 0)", (run,))
            database.execute("update file set done = 0")

    def end_comparison(self, surplus: Iterable[Key]) -> None:
        """Note stored documents that no file holds."""
        with self._database as database:
            database.executemany("insert or ignore into due values (?, ?)", surplus)
            database.execute("update run set compared = 1")

    def files(self) -> dict[str, str]:
        """The identity of each file, by URI."""
        return dict(self._database.execute("select uri, identity from file"))

    def open_files(self) -> set[str]:
        """The URIs of the files that are not done."""
        return {uri for (uri,) in self._database.execute("select uri from file where not done")}

    def put(self, file: File, rows: Iterable[Row]) -> None:
        """Note a new or changed file before anything of it is written; what it has lost becomes due."""
        with self._database as database:
            database.execute("create temporary table if not exists was as select * from due limit 0")
            database.execute("delete from was")
            database.execute(
                "insert into was select distinct namespace, document from holds"
                " where file = (select id from file where uri = ?)",
                (file.uri,),
            )
            number = self._forget(database, file.uri)
            values = (number, file.uri, unquote(file.uri), identity(file), modified(file))
            database.execute("insert into file values (?, ?, ?, ?, ?, 0)", values)
            database.executemany(
                f"insert into holds (namespace, document, sequence, row, file) values (?, ?, ?, ?, {number})",
                rows,
            )
            database.execute(
                "insert or ignore into due select namespace, document from was where not exists (select 1 from holds"
                " where holds.namespace = was.namespace and holds.document = was.document and holds.file = ?)",
                (number,),
            )

    def remove(self, uri: str) -> None:
        """Note that a file is gone; its documents become due."""
        with self._database as database:
            database.execute(
                "insert or ignore into due select namespace, document from holds"
                " where file = (select id from file where uri = ?)",
                (uri,),
            )
            self._forget(database, uri)

    def _forget(self, database: sqlite3.Connection, uri: str) -> int:
        """Drop a file, and give the number that its next version gets."""
        found = database.execute("select id from file where uri = ?", (uri,)).fetchone()
        if found is None:
            return int(database.execute("select coalesce(max(id), 0) + 1 from file").fetchone()[0])
        for table, column in (("holds", "file"), ("rejected", "file"), ("file", "id")):
            database.execute(f"delete from {table} where {column} = ?", found)
        return int(found[0])

    def due(self, page: int, *, held: bool) -> Iterator[dict[Key, int]]:
        """Documents that are due, with the sequence of their best row, which some file holds, or (-1) none does.

        At most `page` at a time.
        """
        best = _BEST.replace("select file from", "select sequence from")
        found = self._database.execute(
            f"select * from (select namespace, document, ({best}) as best from due) where (best is not null) = ?",
            (held,),
        )
        while rows := found.fetchmany(page):
            yield {(namespace, document): -1 if best is None else best for namespace, document, best in rows}

    def count_due(self) -> int:
        """How many documents are due that no file holds."""
        query = f"select count(*) from due where not exists ({_BEST})"
        return int(self._database.execute(query).fetchone()[0])

    def count(self) -> int:
        """How many documents files hold."""
        query = "select count(*) from (select distinct namespace, document from holds)"
        return int(self._database.execute(query).fetchone()[0])

    def holding(self, documents: Sequence[Key]) -> set[Key]:
        """Those of the documents that a file holds."""
        query = "select 1 from holds where namespace = ? and document = ? limit 1"
        return {key for key in documents if self._database.execute(query, key).fetchone()}

    def settle(self, *, removed: bool) -> None:
        """Note that what was due is durable; files that now have the best version of a document are to be read again.

        `removed` False keeps those due that no file holds.
        """
        with self._database as database:
            database.execute(f"update file set done = 0 where id in (select ({_BEST}) from due)")
            database.execute(f"delete from due where ? or exists ({_BEST})", (removed,))

    def superseded(self, file: File, splits: Sequence[Split]) -> Iterator[Split]:
        """The splits of a file, with the rows that lose to other rows of the same document."""
        (number,) = self._database.execute("select id from file where uri = ?", (file.uri,)).fetchone()
        lost = [row for (row,) in self._database.execute(_LOST, (number, unquote(file.uri)))]
        for split in splits:
            stop = None if split.rows is None else split.first_row + split.rows
            here = tuple(row for row in lost if row >= split.first_row and (stop is None or row < stop))
            yield replace(split, superseded=here)

    def finish(self, files: Iterable[tuple[File, Sequence[Rejected]]]) -> None:
        """Note that all of these files is durable in the store, and what of them was rejected."""
        with self._database as database:
            for file, rejected in files:
                (number,) = database.execute("select id from file where uri = ?", (file.uri,)).fetchone()
                database.execute("update file set done = 1 where id = ?", (number,))
                database.execute("delete from rejected where file = ?", (number,))
                columns = "document_id, row, stage, reason, message, namespace, sequence"
                named = ", ".join(f":{name}" for name in columns.split(", "))
                database.executemany(
                    f"insert or replace into rejected (file, {columns}) values ({number}, {named})",
                    map(vars, rejected),
                )

    def rejected(self) -> Iterator[Rejected]:
        """The rows that are rejected now."""
        query = (
            "select document_id, uri, row, stage, reason, message, namespace, sequence"
            " from rejected join file on id = file order by name, row"
        )
        for values in self._database.execute(query):
            yield Rejected(*values)

    def watermark(self) -> int:
        """Nanoseconds since 1970 of the newest change such that it and all older ones are searchable, or 0."""
        query = (
            "select coalesce(max(modified), 0) from file where done"
            " and modified < coalesce((select min(modified) from file where not done), 9223372036854775807)"
        )
        return int(self._database.execute(query).fetchone()[0])


def identity(file: File) -> str:
    """What changes when a file, or its columns from the path, do."""
    return f"{file.fingerprint} {file.partitions}"


def modified(file: File) -> int:
    """When a file changed last, in nanoseconds since 1970."""
    return int(file.fingerprint.rpartition("-")[2])


def _connect(file: Path) -> sqlite3.Connection:
    try:
        return _prepared(file)
    except sqlite3.DatabaseError:  # not a database, or a damaged one: nothing that cannot be found out again
        for part in (file, *file.parent.glob(f"{file.name}-*")):
            part.unlink(missing_ok=True)
        return _prepared(file)


def _prepared(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file)
    try:
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = full")
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database
