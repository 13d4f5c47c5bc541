"""What Markdown's blocks add to a plain text's boundaries: headings lead, code and tables stay whole."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from markdown_it import MarkdownIt
from numpy.typing import NDArray

from pipeline.chunking.boundaries import Boundary, plain_boundaries
from pipeline.tokens import Tokens

_LINE = re.compile(
    r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z"
)  # markdown-it's lines; str.splitlines knows more ends
_PARSER = MarkdownIt("commonmark").enable("table")
# Inline marks are no place to cut, and parsing them costs most of the time.
_PARSER.core.ruler.enableOnly(["normalize", "block"])

# A parsed block costs about a kilobyte, so a document is parsed in pieces of about so many characters. One
# may cut its last block short, which then begins the next piece: the blocks are those of parsing in one go.
# Only a block that fills a piece is taken as it is; its later cuts may be less well chosen.
_PIECE_CHARS = 1 << 15

_WHOLE = {"fence", "code_block", "html_block", "table_open"}


@dataclass(frozen=True)
class Block:
    """A block of Markdown, `text[start:end]` in code points; `kind` is markdown-it's, `level` its nesting."""

    kind: str
    level: int
    start: int
    end: int


def markdown_boundaries(text: str, tokens: Tokens, room: int) -> NDArray[np.uint8]:
    """uint8[n]: the Boundary before each token of a Markdown text; the first entry is meaningless.

    Code, HTML and tables of at most `room` tokens stay in one piece, headings with what follows.
    """
    boundaries = plain_boundaries(text, tokens)
    led = -1  # the token that follows a heading
    for block in blocks(text):
        first, stop = (int(token) for token in np.searchsorted(tokens.starts, (block.start, block.end)))
        if first == stop:
            continue
        inside = boundaries[first + 1 : stop]
        if first != led and boundaries[first] != Boundary.KEEP:
            boundaries[first] = max(boundaries[first], _rank(block))
        if block.kind == "heading_open":
            led = stop
            boundaries[stop : stop + 1] = Boundary.LINE
            inside[:] = Boundary.KEEP  # "1. Results" is no two sentences
        elif block.kind in _WHOLE:
            inside[:] = Boundary.KEEP if stop - first <= room else np.minimum(inside, Boundary.LINE)
    return boundaries


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a Markdown text, outer before inner, in document order."""
    at = 0
    while at < len(text):
        end = text.find("\n", at + _PIECE_CHARS) + 1 or len(text)
        piece = text[at:end]
        lines = [0, *accumulate(len(line) for line in _LINE.findall(piece))]
        parsed = [
            (token, token.map) for token in _PARSER.parse(piece) if token.map and token.type != "inline"
        ]
        tops = [span[0] for token, span in parsed if token.level == 0]
        complete = tops[-1] if end < len(text) and len(tops) > 1 else len(lines) - 1
        for token, (first, stop) in parsed:
            if first < complete:
                yield Block(token.type, token.level, at + lines[first], at + lines[min(stop, complete)])
        at += lines[complete]


def _rank(block: Block) -> Boundary:
    if block.level:
        return Boundary.ITEM
    return Boundary.HEADING if block.kind == "heading_open" else Boundary.PARAGRAPH
