"""Sources: documents in Parquet and Arrow files, found, cut into splits and read as DOCUMENTS.

source      opens a source, reads a split            ─ begin here
files       finds files: path, glob, directory, standard input; columns from the path
places      paths and URIs, filesystems, fingerprints
formats     recognises a format ► parquet, ipc       read in pieces of bounded size (windows)
columns     which column means what ► template       structured rows become text
keys        id, namespace, sequence of each row ► duplicates
documents   rows become DOCUMENTS, or are rejected (findings) ► values: Arrow as JSON
"""

from __future__ import annotations

from pipeline.sources.source import Source, open_source, read_named, read_split

__all__ = ["Source", "open_source", "read_named", "read_split"]
