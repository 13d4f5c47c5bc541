"""Sources without an end: a collection kept in step for as long as the process lives.

session     a run without an end: lease, encoder, lane, journal, held for all rounds
watch       a folder or bucket prefix: rounds ► manifest (which file holds which document) ► changes (when to look)
stdin       an Arrow stream on standard input
"""

from __future__ import annotations

from pipeline.streams.watch import watch

__all__ = ["watch"]
