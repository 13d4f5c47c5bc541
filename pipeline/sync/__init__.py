"""What is already done, and what is still to be done.

ledger     which splits of an unfinished run are committed
journal    what a run without an end says of itself
history    what the ledgers tell of runs, past and present
rejected   the dead-letter file
traces     what files say of single documents, and its removal
buckets    two sides of any size, compared in bounded memory
"""

from pipeline.sync.buckets import COUNT, KEY, KEYS, Buckets, absent, ids_of, key_of, keys_of
from pipeline.sync.history import Run, runs
from pipeline.sync.journal import Journal
from pipeline.sync.ledger import Header, Ledger, now, plan_hash
from pipeline.sync.rejected import write_rejected
from pipeline.sync.traces import count_traces, remove_traces, trace_files

__all__ = [
    "COUNT",
    "KEY",
    "KEYS",
    "Buckets",
    "Header",
    "Journal",
    "Ledger",
    "Run",
    "absent",
    "count_traces",
    "ids_of",
    "key_of",
    "keys_of",
    "now",
    "plan_hash",
    "remove_traces",
    "runs",
    "trace_files",
    "write_rejected",
]
