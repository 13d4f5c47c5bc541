"""What is already done.

ledger     which splits of an unfinished run are committed
rejected   the dead-letter file
"""

from pipeline.sync.ledger import Ledger, plan_hash
from pipeline.sync.rejected import write_rejected

__all__ = ["Ledger", "plan_hash", "write_rejected"]
