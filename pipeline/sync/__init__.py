"""What is already done.

ledger     which splits of an unfinished run are committed
history    what the ledgers tell of runs, past and present
rejected   the dead-letter file
"""

from pipeline.sync.history import Run, runs
from pipeline.sync.ledger import Header, Ledger, now, plan_hash
from pipeline.sync.rejected import write_rejected

__all__ = ["Header", "Ledger", "Run", "now", "plan_hash", "runs", "write_rejected"]
