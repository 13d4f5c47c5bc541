"""Stores: where points live. Everything of Qdrant is in here.

store.py        what every store does: a small subset of QdrantClient's methods
points.py       points on their way to a store
connect.py      from a URL to an open store
edge.py         Qdrant's engine in this process, over a folder (edge_folder.py, edge_models.py)
folder_lock.py  who holds a folder
server.py       a Qdrant server over gRPC or REST (server_client.py, server_errors.py, server_points.py, pace.py)
permission.py   whether a writer may still write, asked before each request
local.py        qdrant-client's local mode, over a folder that other programs can open, or in memory for tests
collection.py   collections by alias: make, find, check
likeness.py     what a collection is like, said as settings; what others put into it
heads.py        what a document's first point says of it
lease.py        one run at a time on a collection
scan.py         all that a collection holds
documents.py    whole documents, read while others may write
writer.py       the write protocol: whole documents or what was there before
tombstones.py   what was deleted, so that no older version brings it back
suppressions.py what was forgotten, so that nothing brings it back
erasure.py      where something of a document lies, and its removal
nearest.py      many queries in one request
quantized.py    vectors ranked by Qdrant's own quantization, for comparisons
filters.py      conditions on metadata as a user types them
profiles.py     where payloads keep text and metadata, by the client that reads them
"""

from pipeline.stores.collection import NEXT, PREVIOUS, name_of
from pipeline.stores.connect import folder_of, open_collection, open_store, store_exists
from pipeline.stores.documents import Chunk, read_documents
from pipeline.stores.erasure import count_held, holders, remove_held
from pipeline.stores.filters import Filter, parse_filter
from pipeline.stores.folder_lock import Purpose, Seat
from pipeline.stores.heads import MARKS, WRITING, Head, Key, read_heads
from pipeline.stores.lease import Lease, filling, guarded, hold_lease, look_s, outlast
from pipeline.stores.likeness import Foreign, read_foreign, settings_like
from pipeline.stores.nearest import CodedQueries, Hit, nearest, nearest_by_codes
from pipeline.stores.points import Points
from pipeline.stores.profiles import DOCUMENT_ID, NAMESPACE, OURS, Profile, profile_named
from pipeline.stores.scan import (
    Held,
    count_stored,
    count_version,
    scan_documents,
    scan_heads,
    scan_points,
    scan_vectors,
)
from pipeline.stores.store import Store
from pipeline.stores.suppressions import Subject, Suppressions
from pipeline.stores.tombstones import Tombstones
from pipeline.stores.writer import DocumentWriter, Written

__all__ = [
    "DOCUMENT_ID",
    "MARKS",
    "NAMESPACE",
    "NEXT",
    "OURS",
    "PREVIOUS",
    "WRITING",
    "Chunk",
    "CodedQueries",
    "DocumentWriter",
    "Filter",
    "Foreign",
    "Head",
    "Held",
    "Hit",
    "Key",
    "Lease",
    "Points",
    "Profile",
    "Purpose",
    "Seat",
    "Store",
    "Subject",
    "Suppressions",
    "Tombstones",
    "Written",
    "count_held",
    "count_stored",
    "count_version",
    "filling",
    "folder_of",
    "guarded",
    "hold_lease",
    "holders",
    "look_s",
    "name_of",
    "nearest",
    "nearest_by_codes",
    "open_collection",
    "open_store",
    "outlast",
    "parse_filter",
    "profile_named",
    "read_documents",
    "read_foreign",
    "read_heads",
    "remove_held",
    "scan_documents",
    "scan_heads",
    "scan_points",
    "scan_vectors",
    "settings_like",
    "store_exists",
]
