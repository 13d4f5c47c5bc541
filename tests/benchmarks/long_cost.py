"""What each way with long texts costs: tokens a CPU second and peak memory, and whether short texts keep their vectors.

    python tests/benchmarks/long_cost.py --model MODEL [--tokens 512,1024,2048,4096]

Each measurement is a process of its own, with one thread; CPU seconds, so that others on the machine count less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import say, write_result
from numpy.typing import NDArray

from pipeline.config import EncoderConfig
from pipeline.encoders import Encoder, load_encoder

METHODS = ("truncate", "pcw", "rp", "gp", "pi", "pi-dynamic", "pi+scaling")
_WINDOW, _LONGEST = 512, 4096
_TOKENS_A_RUN = 8192
_ROUNDS = 3
_NOTE = (
    "One thread, texts of so many random tokens one after the other; tokens of the text a CPU second, the best of "
    f"three. Truncation reads the first {_WINDOW} alone. Memory is the peak of the whole process. Texts within the "
    "window: "
)


def main() -> None:
    """Measure every method at every length; with --one, one of them in this process."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", default="512,1024,2048,4096")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    lengths = [int(part) for part in given.tokens.split(",")]
    if given.one:
        sys.stdout.write(json.dumps(_measure(given.model, given.one, lengths[0])) + "\n")
        return
    rows = []
    for method in METHODS:
        for tokens in lengths:
            rows.append(_apart(given.model, method, tokens))
            say(str(rows[-1]))
    same = _unchanged(given.model)
    note = _NOTE + ", ".join(f"{name} {'to the bit' if equal else 'changed'}" for name, equal in same.items())
    write_result(
        "long_cost", {"kind": "random tokens"}, {"threads": 1}, 0, {"note": f"{note}.", "rows": rows}
    )


def _encoder(model: str, method: str) -> Encoder:
    name, _, scaling = method.partition("+")
    most = _WINDOW if name == "truncate" else _LONGEST
    config = EncoderConfig(model=model, long=name, max_tokens=most, attention_scaling=bool(scaling))
    return load_encoder(config.model_copy(update={"provider": "cpu", "threads": 1}))


def _texts(tokens: int, count: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(tokens)
    return [generator.integers(2000, 20_000, tokens, dtype=np.int32) for _ in range(count)]


def _measure(model: str, method: str, tokens: int) -> dict[str, Any]:
    """Tokens a CPU second of the texts, whatever is left out of them, and this process's peak memory."""
    encoder = _encoder(model, method)
    texts = [text[: encoder.spec.max_tokens] for text in _texts(tokens, max(1, _TOKENS_A_RUN // tokens))]
    encoder.encode(texts[:1])
    speeds = []
    for _ in range(_ROUNDS):
        since = time.process_time()
        encoder.encode(texts)
        speeds.append(tokens * len(texts) / (time.process_time() - since))
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    return {"method": method, "tokens": tokens, "threads": 1} | {
        "tokens_per_second": round(max(speeds)),
        "peak_mib": round(peak),
    }


def _apart(model: str, method: str, tokens: int) -> dict[str, Any]:
    _encoder(model, method).close()  # exported before, so that its memory does not count
    command = [sys.executable, __file__, "--model", model, "--tokens", str(tokens), "--one", method]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def _unchanged(model: str) -> dict[str, bool]:
    """For each method, whether texts within the window have the plain model's vectors, bit for bit."""

    def vectors(method: str, texts: Sequence[NDArray[np.int32]]) -> NDArray[np.float32]:
        encoder = _encoder(model, method)
        return np.concatenate([encoder.encode([text]) for text in texts])

    plain = _encoder(model, "truncate")
    texts = [text for tokens in (1, 7, 128, plain.spec.max_tokens) for text in _texts(tokens, 1)]
    expected = np.concatenate([plain.encode([text]) for text in texts])
    return {method: bool((vectors(method, texts) == expected).all()) for method in METHODS[1:]}


if __name__ == "__main__":
    main()
