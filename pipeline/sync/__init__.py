"""What is already done, and what is still to be done.

ledger     which splits of an unfinished run are committed
history    what the ledgers tell of runs, past and present
rejected   the dead-letter file
buckets    two sides of any size, compared in bounded memory
"""

from pipeline.sync.buckets import COUNT, KEY, KEYS, Buckets, absent, ids_of, key_of, keys_of
from pipeline.sync.history import Run, runs
from pipeline.sync.ledger import Header, Ledger, now, plan_hash
from pipeline.sync.rejected import write_rejected

__all__ = [
    "COUNT",
    "KEY",
    "KEYS",
    "Buckets",
    "Header",
    "Ledger",
    "Run",
    "absent",
    "ids_of",
    "key_of",
    "keys_of",
    "now",
    "plan_hash",
    "runs",
    "write_rejected",
]
