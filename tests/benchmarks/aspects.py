"""What further vectors of a point cost: sizes and exits out of one run, and an encoder of their own.

    python tests/benchmarks/aspects.py DOCUMENTS --model FOLDER --layers 3 [--other FOLDER]

Documents a second on one thread, in processor time, contestants in turn; texts are cut so that all encoders take them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import harness
import pyarrow.parquet as pq

from pipeline.config import load
from pipeline.encoders import CompositeEncoder, Encoder, load_encoders

TEXTS, CHARACTERS, ROUNDS, DIMS = 60, 700, 5, 128


def main() -> None:
    given = _arguments()
    texts = [text[:CHARACTERS] for text in pq.read_table(given.documents)["text"].to_pylist()[:TEXTS]]
    both = {"aspects.small.dims": DIMS, "aspects.fast.layers": given.layers}
    asked: dict[str, dict[str, Any]] = {
        "alone": {},
        f"with {DIMS} dims": {"aspects.small.dims": DIMS},
        f"with {DIMS} dims and {given.layers} layers": both,
        f"{given.layers} layers alone": {"encoder.layers": given.layers},
    }
    if given.other:
        asked["with these and another model"] = both | {"aspects.other.model": given.other}
        asked["the other model alone"] = {"encoder.model": given.other}
    encoders = {name: _open(given.model, more) for name, more in asked.items()}
    measured = harness.alternate({name: _timed(one, texts) for name, one in encoders.items()}, ROUNDS)
    dataset = harness.dataset_of(given.documents, TEXTS)
    settings = {
        "model": Path(given.model).name,
        "other": Path(given.other).name,
        "characters": CHARACTERS,
        "threads": 1,
    }
    harness.write_result("aspects", dataset, settings, 0, {"documents_per_cpu_second": measured})


def _open(model: str, more: Mapping[str, Any]) -> Encoder | CompositeEncoder:
    usual = {"encoder.model": model, "encoder.provider": "cpu", "encoder.threads": 1}
    return load_encoders(load(None, {**usual, "store.vector_name": "main", **more}))


def _timed(encoder: Encoder | CompositeEncoder, texts: list[str]) -> Callable[[], float]:
    """Encode the texts once; documents a second of processor time."""
    token_ids = encoder.tokenizer.encode_batch(texts)
    others = {}
    if isinstance(encoder, CompositeEncoder):
        others = {name: reading.tokenizer.encode_batch(texts) for name, reading in encoder.readings.items()}

    def once() -> float:
        began = time.process_time()
        if isinstance(encoder, CompositeEncoder):
            encoder.encode(token_ids, None, others)
        else:
            encoder.encode(token_ids)
        return len(texts) / (time.process_time() - began)

    return once


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("documents", type=Path, help="a Parquet file with a column text")
    parser.add_argument("--model", required=True)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--other", default="", help="another model")
    return parser.parse_args()


if __name__ == "__main__":
    main()
