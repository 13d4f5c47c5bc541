"""Documents for tests: words drawn by a seed, written as Parquet with several row groups."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

WORDS = [
    "river",
    "stone",
    "water",
    "bridge",
    "night",
    "window",
    "signal",
    "process",
    "memory",
    "socket",
    "kernel",
    "thread",
    "paper",
    "garden",
    "market",
    "winter",
    "engine",
    "forest",
    "mountain",
    "letter",
    "history",
    "question",
    "answer",
    "number",
    "colour",
    "music",
    "island",
    "harbour",
]


def rows(count: int, seed: int = 0, most_words: int = 150) -> list[dict[str, Any]]:
    """Rows with id, text and metadata of every simple type; some texts make one chunk and some several."""
    draw = random.Random(seed)
    return [
        {
            "id": f"doc-{number}",
            "text": " ".join(draw.choices(WORDS, k=draw.randint(3, most_words))) + ".",
            "year": 2000 + number % 20,
            "score": number / 7,
            "draft": number % 3 == 0,
            "tags": draw.sample(WORDS, 2),
        }
        for number in range(count)
    ]


def write(file: Path, documents: list[dict[str, Any]], row_group: int = 10) -> Path:
    """Write rows as Parquet; one row group of `row_group` rows is one split."""
    pq.write_table(pa.Table.from_pylist(documents), file, row_group_size=row_group)
    return file


def texts(count: int) -> dict[str, str]:
    """Id -> text of two sentences; the same for the same count."""
    draw = random.Random(7)
    return {
        f"d{n}": f"{' '.join(draw.sample(WORDS, 6))} no {n} stands. {' '.join(draw.sample(WORDS, 6))} item {n} ends."
        for n in range(count)
    }
