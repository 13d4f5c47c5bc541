"""The lane: takes a split from bytes to acknowledged points.

reading    a split as windows of chunks
sieve      which documents are to be embedded, by what the store holds of them
windows    what travels through a lane
pipe       a queue bounded in bytes
writing    embedded windows as points, and what became of their documents
embedding  all chunks of a source as vectors, without a store
tally      the counts of a running split
lane       the three threads
"""

from pipeline.lane.lane import Lane
from pipeline.lane.reading import split_windows

__all__ = ["Lane", "split_windows"]
