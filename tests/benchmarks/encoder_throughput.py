"""Bare encoder: texts in, vectors out, against sentence-transformers' own `encode` with torch and with ONNX.

    python tests/benchmarks/encoder_throughput.py --texts TEXTS.parquet --model FOLDER [--onnx-python PYTHON]

fp32 against fp32, the same texts and threads, tokenizing included on every side, each contestant in a process of its
own, in turn. sentence-transformers gets the batch size it is fastest with, chosen on the first texts. Its ONNX
backend needs optimum-onnx, which is not to be had for the transformers that we use: `--onnx-python` names the Python
of an environment that has both (`pip install "sentence-transformers[onnx]"`). Prints and writes the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np

BATCH_SIZES = (8, 16, 32, 64)
PROBE_TEXTS = 256


class Contestant:
    """A worker process that encodes the texts each time it is asked to."""

    def __init__(self, python: str, kind: str, folder: Path, options: argparse.Namespace) -> None:
        command = [python, __file__, "--worker", kind, "--scratch", str(folder), "--model", options.model]
        command += ["--threads", str(options.threads), "--precision", options.precision]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cpu_seconds: list[float] = []
        self.about = self._answer()

    def run(self) -> float:
        """Seconds for all texts; remembers the processor's seconds too."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        answer = self._answer()
        self.cpu_seconds.append(answer["cpu_seconds"])
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process: it stops at the end of its input."""
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print to standard output too
                return json.loads(line)
        raise SystemExit(f"a worker ended with exit code {self.process.wait()}")


def ours(texts: list[str], options: argparse.Namespace) -> tuple[Callable[[], np.ndarray], dict[str, Any]]:
    from pipeline.config import EncoderConfig
    from pipeline.encoders import load_encoder

    config = EncoderConfig(
        model=options.model, threads=options.threads, precision=options.precision, provider="cpu"
    )
    encoder = load_encoder(config)
    room = encoder.spec.max_tokens - encoder.tokenizer.special_tokens

    def encode() -> np.ndarray:
        tokens = encoder.tokenizer.tokenize_batch(texts)
        return encoder.encode([encoder.tokenizer.model_input(part.ids[:room]) for part in tokens])

    tokens = sum(min(len(encoder.tokenizer.encode(text)), encoder.spec.max_tokens) for text in texts)
    return encode, {"tokens": tokens, "batch_tokens": encoder.batch_tokens}


def theirs(
    texts: list[str], options: argparse.Namespace, backend: str
) -> tuple[Callable[[], np.ndarray], dict[str, Any]]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(options.threads)
    settings: dict[str, Any] = {}
    if backend == "onnx":
        import onnxruntime

        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = options.threads
        settings = {"provider": "CPUExecutionProvider", "session_options": session}
    model = SentenceTransformer(options.model, device="cpu", backend=backend, model_kwargs=settings)
    seconds = {
        size: _timed(lambda s=size: model.encode(texts[:PROBE_TEXTS], batch_size=s))
        for size in BATCH_SIZES * 2
    }
    best = min(seconds, key=lambda size: seconds[size])
    return lambda: model.encode(texts, batch_size=best), {"batch_size": best}


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def work(options: argparse.Namespace) -> None:
    """A worker's life: load, warm up, say so; then one timed run a line of input."""
    folder = Path(options.scratch)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    backend = options.worker.partition("-")[2]
    encode, about = theirs(texts, options, backend) if backend else ours(texts, options)
    np.save(folder / f"{options.worker}.npy", encode())
    sys.stdout.write(json.dumps(about) + "\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        start = time.process_time()
        seconds = _timed(encode)
        sys.stdout.write(json.dumps({"seconds": seconds, "cpu_seconds": time.process_time() - start}) + "\n")
        sys.stdout.flush()


def read_texts(options: argparse.Namespace) -> list[str]:
    import pyarrow.parquet as pq

    texts = [text for text in pq.read_table(options.texts)[options.column].to_pylist() if text]
    random.Random(options.seed).shuffle(texts)
    return texts[: options.limit]


def compare(options: argparse.Namespace) -> None:
    texts = read_texts(options)
    pythons = {"ours": sys.executable, "st-torch": sys.executable}
    if options.onnx_python:
        pythons["st-onnx"] = options.onnx_python
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        contestants = {}
        for kind, python in pythons.items():
            harness.say(f"loading {kind}")
            contestants[kind] = Contestant(python, kind, folder, options)
        seconds = harness.alternate({kind: one.run for kind, one in contestants.items()}, options.rounds)
        about = {kind: {**one.about, "cpu_seconds": one.cpu_seconds} for kind, one in contestants.items()}
        for one in contestants.values():
            one.close()
        vectors = {kind: np.load(folder / f"{kind}.npy") for kind in pythons}
    report(options, texts, about, seconds, vectors)


def report(
    options: argparse.Namespace,
    texts: list[str],
    about: dict[str, Any],
    seconds: dict[str, list[float]],
    vectors: dict[str, np.ndarray],
) -> None:
    tokens = about["ours"]["tokens"]
    rates = {kind: [round(tokens / run) for run in runs] for kind, runs in seconds.items()}
    others = [kind for kind in seconds if kind != "ours"]
    results = {
        "tokens": tokens,
        "tokens_per_second": rates,
        "ratio_of_medians": {
            kind: round(harness.ratio_of_medians(rates, "ours", kind), 3) for kind in others
        },
        "ratio_of_best": {kind: round(harness.ratio_of_best(rates, "ours", kind), 3) for kind in others},
        "ratio_of_cpu_seconds": {kind: round(_cpu_ratio(about, kind), 3) for kind in others},
        "least_cosine": {kind: _least_cosine(vectors["ours"], vectors[kind]) for kind in others},
        "contestants": about,
    }
    settings = {"model": Path(options.model).name, "threads": options.threads, "precision": options.precision}
    dataset = harness.dataset_of(Path(options.texts), len(texts))
    file = harness.write_result(options.name, dataset, settings, options.seed, results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    harness.say(f"written to {file}")


def _cpu_ratio(about: dict[str, Any], kind: str) -> float:
    """Their processor time over ours, medians: what a shared machine does not change (with one thread, none spins)."""
    return statistics.median(about[kind]["cpu_seconds"]) / statistics.median(about["ours"]["cpu_seconds"])


def _least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return round(float(((left * right).sum(axis=1) / norms).min()), 6)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--texts", help="a Parquet file")
    parser.add_argument("--column", default="text")
    parser.add_argument("--model", required=True, help="a sentence-transformers folder")
    parser.add_argument("--limit", type=int, default=1000, help="texts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--onnx-python", default="", help="a Python with sentence-transformers[onnx]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="encoder_throughput", help="of the result's file")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
