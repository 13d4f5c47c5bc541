"""The query side: reads a collection's contract, loads the encoder it names, searches.

reader     Reader: what a RAG backend opens once
following  which collection an alias stands for, and the swap to another one
searcher   a physical collection searched with the encoder its contract names
"""

from pipeline.search.reader import Reader
from pipeline.search.searcher import Result, Searcher

__all__ = ["Reader", "Result", "Searcher"]
