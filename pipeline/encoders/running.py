"""Rows through the graph: in batches of similar length, halved where they do not fit into memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import logs, metrics
from pipeline.encoders.batching import plan_batches
from pipeline.encoders.parity import Run, pad
from pipeline.encoders.runtime import is_out_of_memory
from pipeline.errors import EncoderError

# Padded tokens a batch. On two cores MiniLM and mpnet-base run as fast at 512 as at 1024 and 5 to 20 % slower beyond,
# where the activations leave the cache. More cores get more, so that each has rows to work on.
_CPU_TOKENS_PER_THREAD, _CPU_LEAST_TOKENS, _CPU_MOST_TOKENS = 256, 1024, 4096
# A GPU wants enough rows to fill it.
_CUDA_TOKENS = 16384

log = logs.logger(__name__)

Rows = Sequence[NDArray[np.int32]]
"""Token ids as the model takes them, int32[tokens] each."""


class Embedded(NamedTuple):
    """float32[n, ·] of n inputs, and the numbers of those that do not fit into memory: their rows are NaN."""

    vectors: NDArray[np.float32]
    too_large: list[int]


RunBatches = Callable[[Rows], Iterator[tuple[list[int], NDArray[np.floating] | None]]]
"""Rows → which of them ran together, and what the graph gave for those; None for one that does not fit alone."""

RunRows = Callable[[Rows, int], Embedded]
"""Rows and the length of a vector → a vector a row."""


class Runner:
    """A graph and its budget. Thread-safe, as a session is.

    batch_tokens: padded tokens a batch; lowered when a batch did not fit, so that later ones need not find out again.
    """

    def __init__(self, run: Run, pad_id: int, batch_tokens: int) -> None:
        self._run: Run | None = run
        self._pad_id = pad_id
        self.batch_tokens = batch_tokens

    def batches(self, rows: Rows) -> Iterator[tuple[list[int], NDArray[np.floating] | None]]:
        """Run the graph over rows of similar length; yield their numbers, and None for one too large for memory."""
        waiting = plan_batches([len(row) for row in rows], self.batch_tokens)[::-1]
        while waiting:
            batch = waiting.pop()
            result = self._run_batch([rows[index] for index in batch])
            if result is not None or len(batch) == 1:
                yield batch, result
            else:
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]

    def vectors(self, rows: Rows, width: int) -> Embedded:
        """What the graph gives where that is one vector a row, float32[n, width]."""
        vectors, too_large = np.empty((len(rows), width), dtype=np.float32), list[int]()
        for batch, result in self.batches(rows):
            vectors[batch] = np.nan if result is None else result
            too_large += batch if result is None else []
        return Embedded(vectors, too_large)

    def close(self) -> None:
        """Free the session's memory; nothing can be run afterwards."""
        self._run = None

    def _run_batch(self, rows: list[NDArray[np.int32]]) -> NDArray[np.floating] | None:
        """What the graph gives for one batch, or None if it does not fit into memory."""
        if self._run is None:
            raise EncoderError("a closed encoder", "An open one", "")
        longest = max(map(len, rows))
        size = len(rows) * longest
        since = time.perf_counter()
        try:
            found = self._run(*pad(rows, self._pad_id))
        except Exception as error:
            if not is_out_of_memory(error):
                raise EncoderError(
                    f"running {len(rows)} inputs of {longest} tokens failed: {error}", "A model that runs"
                ) from error
            if len(rows) > 1:
                self.batch_tokens = max(size // 2, 1)
            log.warning("out_of_memory", batch_tokens=size, going_on_with=self.batch_tokens)
            metrics.record(metrics.RETRIES, 1, "OutOfMemory")
            return None
        metrics.record(metrics.ENCODER_SECONDS, time.perf_counter() - since)
        tokens = sum(len(row) for row in rows)
        metrics.record(metrics.ENCODER_TOKENS, tokens, "text")
        metrics.record(metrics.ENCODER_TOKENS, size - tokens, "padding")
        return found


def default_batch_tokens(provider: Literal["cpu", "cuda"], threads: int) -> int:
    """How many padded tokens a batch has where the settings leave it open."""
    if provider == "cuda":
        return _CUDA_TOKENS
    return min(max(_CPU_LEAST_TOKENS, _CPU_TOKENS_PER_THREAD * threads), _CPU_MOST_TOKENS)
