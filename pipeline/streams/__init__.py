"""Sources without an end: a collection kept in step for as long as the process lives.

session     a run without an end: lease, encoder, lane, journal, held for all rounds
watch       a folder or bucket prefix: rounds ► manifest (which file holds which document) ► changes (when to look)
rounds      what is sent in a while is indexed together, its senders told what became of it
stdin       an Arrow stream on standard input ► rounds
delta       a Delta Lake table ► feed (what deltalake tells of it) ► rounds
flight      an Arrow Flight endpoint ► wire (its messages as an Arrow stream) ► rounds
"""

from __future__ import annotations

from pipeline.streams.watch import watch

__all__ = ["watch"]
