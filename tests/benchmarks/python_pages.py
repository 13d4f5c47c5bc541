"""A judged set of long documents, out of Python's own documentation: a module's synopsis finds the module's page.

    apt-get download python3.11-doc && dpkg -x python3.11-doc_*.deb DEBIAN
    python tests/benchmarks/python_pages.py DEBIAN/usr/share/doc/python3.11/html/_sources/library SET

SET gets documents.parquet, queries.parquet and qrels.parquet, as `headwater evaluate retrieval` reads them. A page is
what follows the lines that say the synopsis: without them, and without the heading, which says the same again.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from harness import say

_HEAD = re.compile(
    r"^\.\. module:: +(\S+)\n(?:   :.*\n)*?   :synopsis: +(.+(?:\n {6,}\S.*)*)\n(?:   :.*\n)*", re.M
)
_ROLE = re.compile(r":[\w:]+:`[!~]?([^`<]*?)(?: *<[^`]*>)?`")
_FEWEST = 200  # characters; a page with fewer is a heading for others


class Page(NamedTuple):
    """A module's page, and what is said of the module in a line."""

    module: str
    synopsis: str
    text: str


def main() -> None:
    """Write the set and say what is in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    files = sorted(given.sources.glob("*.rst.txt"))
    found = [page for file in files if (page := _read(file.read_text("utf-8")))]
    pages = list({page.module: page for page in reversed(found)}.values())  # the first page of each module
    given.out.mkdir(parents=True, exist_ok=True)
    names = [page.module for page in pages]
    synopses = {"id": names, "text": [page.synopsis for page in pages]}
    _write(given.out, "documents", {"id": names, "text": [page.text for page in pages]})
    _write(given.out, "queries", synopses)
    _write(given.out, "qrels", {"query_id": names, "document_id": names, "relevance": [1] * len(names)})
    say(f"{len(pages)} pages, {sum(len(page.text) for page in pages):,} characters")


def _read(source: str) -> Page | None:
    """The page of a file; none where it has no synopsis or hardly any text."""
    found = _HEAD.search(source)
    if not found:
        return None
    text = _ROLE.sub(r"\1", source[found.end() :]).strip()
    return Page(found[1], " ".join(found[2].split()), text) if len(text) >= _FEWEST else None


def _write(folder: Path, name: str, columns: dict[str, list[str]] | dict[str, list[str] | list[int]]) -> None:
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


if __name__ == "__main__":
    main()
