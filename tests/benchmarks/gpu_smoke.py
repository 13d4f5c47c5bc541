"""On a machine with a GPU: do CUDA and the CPU give the same vectors, and how many tokens a second does CUDA run?

    python tests/benchmarks/gpu_smoke.py --model FOLDER_OR_ID

fp32 and fp16, texts of 50, 256 and 512 tokens (as far as the model takes them). Exits with 1 and says why where CUDA
cannot be used, or where vectors differ by more than the precision's bar in `pipeline/encoders/parity.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

import harness
import numpy as np

from pipeline.config import DEFAULT_ENCODER, EncoderConfig
from pipeline.encoders import Encoder, load_encoder
from pipeline.encoders.parity import BARS
from pipeline.errors import HeadwaterError

LENGTHS = (50, 256, 512)


def main() -> int:
    options = _options()
    results: dict[str, Any] = {}
    try:
        for precision in ("fp32", "fp16"):
            results[precision] = measure(options, precision)
    except HeadwaterError as error:
        harness.say(str(error))
        return 1
    settings = {"model": options.model, "batch_tokens": options.batch_tokens}
    file = harness.write_result("gpu_smoke", {"texts": "random tokens"}, settings, options.seed, results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    harness.say(f"written to {file}")
    failed = [name for name, result in results.items() if not result["passed"]]
    if failed:
        harness.say(f"CUDA differs from the CPU at {', '.join(failed)}")
    return 1 if failed else 0


def measure(options: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Parity of CUDA at a precision with the CPU's fp32, and tokens a second at each length."""
    shared = EncoderConfig(model=options.model, max_tokens=options.max_tokens)
    changes = {"precision": precision, "provider": "cuda", "batch_tokens": options.batch_tokens}
    cuda = load_encoder(shared.model_copy(update=changes))
    cpu = load_encoder(shared.model_copy(update={"provider": "cpu"}))
    rows = _rows(
        cuda, np.random.default_rng(options.seed).integers(1, cuda.spec.max_tokens + 1, 64), options.seed
    )
    expected, got = cpu.encode(rows), cuda.encode(rows)
    cosines = (expected * got).sum(axis=1) / np.linalg.norm(expected, axis=1) / np.linalg.norm(got, axis=1)
    difference = float(np.abs(expected - got).max() / max(1.0, float(np.abs(expected).max())))
    bar = BARS[
        "fp16"
    ]  # tensor cores round fp32 products to TF32: a GPU's fp32 is nearer to fp16 than to a CPU's fp32
    return {
        "provider": cuda.provider,
        "difference": difference,
        "least_cosine": float(cosines.min()),
        "passed": bool(difference <= bar.difference and cosines.min() >= bar.least_cosine),
        "tokens_per_second": {str(n): _rate(cuda, n, options) for n in LENGTHS if n <= cuda.spec.max_tokens},
    }


def _rate(encoder: Encoder, length: int, options: argparse.Namespace) -> int:
    """The median of five runs over enough texts for ten batches, after one to warm up."""
    count = max(1, 10 * encoder.batch_tokens // length)
    rows = _rows(encoder, np.full(count, length), options.seed)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        encoder.encode(rows)
        seconds.append(time.perf_counter() - start)
    return round(count * length / statistics.median(seconds[1:]))


def _rows(encoder: Encoder, lengths: np.ndarray, seed: int) -> list[np.ndarray]:
    """Random tokens out of those that a text of all letters and digits has: any model knows them."""
    known = encoder.tokenizer.tokenize(
        "abcdefghijklmnopqrstuvwxyz 0123456789 the of and water river hills"
    ).ids
    generator = np.random.default_rng(seed)
    return [generator.choice(known, size=int(length)).astype(np.int32) for length in lengths]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_ENCODER)
    parser.add_argument("--max-tokens", type=int, default=0, help="0: what the model says")
    parser.add_argument("--batch-tokens", type=int, default=0, help="0: the default of a GPU")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
