"""Sources: documents in Parquet and Arrow files, found, cut into splits and read as DOCUMENTS.

source      opens a source, reads a split            ─ begin here
survey      which documents one file holds
files       finds files: path, glob, directory, standard input; columns from the path
places      paths and URIs, filesystems, fingerprints
formats     recognises a format ► parquet, ipc       read in pieces of bounded size (windows)
columns     which column means what ► template       structured rows become text
keys        id, namespace, sequence of each row ► duplicates
documents   rows become DOCUMENTS, or are rejected (findings) ► values: Arrow as JSON
"""

from __future__ import annotations

from pipeline.sources.columns import check_columns
from pipeline.sources.files import File, find
from pipeline.sources.places import below, is_remote, locate, normal, reading, spooled_name
from pipeline.sources.source import Opened, Source, open_parts, open_source, read_named, read_split
from pipeline.sources.survey import named_rows

__all__ = [
    "File",
    "Opened",
    "Source",
    "below",
    "check_columns",
    "find",
    "is_remote",
    "locate",
    "named_rows",
    "normal",
    "open_parts",
    "open_source",
    "read_named",
    "read_split",
    "reading",
    "spooled_name",
]
