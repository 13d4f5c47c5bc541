"""Chunking: documents in, chunks with their tokens and spans out.

    chunker      Chunker: DOCUMENTS to CHUNKS, batch by batch
    cutting      Cutter: where one tokenized document is cut
    boundaries   how strongly white space, lines, sentences and paragraphs ask for a cut
    markdown     what headings, lists, tables and code add to that

A document is tokenized once, with offsets; cuts are chosen by counting those tokens.
"""

from pipeline.chunking.chunker import Chunker, TooLong

__all__ = ["Chunker", "TooLong"]
