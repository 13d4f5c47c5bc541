"""One file of a source by itself: its splits, and which documents its rows name."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.sources.findings import Findings
from pipeline.sources.formats import open_file
from pipeline.sources.keys import read_keys
from pipeline.sources.places import reading, shown
from pipeline.sources.source import KEY_SIZE, Opened, split_rows


def named_rows(file: Opened) -> Iterator[tuple[str, str, int, int]]:
    """(namespace, document id, sequence, row number) of a file's rows that name a document; reads no texts.

    Raises SourceError where the file is damaged.
    """
    if not file.splits:
        return
    reader = open_file(file.file.uri, file.splits[0].format)
    try:
        for split in file.splits:
            row = split.first_row
            for batch in split_rows(reader, split, file.columns.key, KEY_SIZE):
                with reading(f"rows from {row} of {shown(split.uri)}"):
                    findings = Findings(batch.num_rows)
                    keys = read_keys(batch, file.columns, findings)
                    found = zip(
                        keys.namespaces.to_pylist(),
                        keys.ids.to_pylist(),
                        keys.sequences.tolist(),
                        range(row, row + batch.num_rows),
                        findings.good.tolist(),
                        strict=True,
                    )
                yield from ((space, id, sequence, at) for space, id, sequence, at, good in found if good)
                row += batch.num_rows
    finally:
        reader.close()
