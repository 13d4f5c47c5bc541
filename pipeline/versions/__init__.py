"""What a collection promises its readers.

contract   which encoder and chunker made the vectors, kept in the collection's own metadata
"""

from pipeline.versions.contract import CodesContract, Contract

__all__ = ["CodesContract", "Contract"]
