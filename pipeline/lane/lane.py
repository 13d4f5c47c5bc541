"""The lane: takes a split from bytes to acknowledged points.

    thread "read"    read ► chunk + tokenize   ─┐ windows, bounded in bytes
    calling thread   encode                    ─┤ embedded windows, bounded in bytes
    thread "write"   upsert ► acknowledge      ─┘

A plain class that knows neither Ray nor how splits are handed out; the same lane runs under every executor.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import logs
from pipeline.encoders import MAIN, CompositeEncoder, Encoder, load_encoders
from pipeline.errors import BrokenInvariant, CollectionMismatch, InputsTooLarge, SourceError
from pipeline.job import Job, make_chunker, window_tokens
from pipeline.lane.pipe import Pipe, PipeClosed
from pipeline.lane.reading import split_windows
from pipeline.lane.sieve import Sieve
from pipeline.lane.tally import Tally
from pipeline.lane.windows import Window, document_numbers, token_arrays
from pipeline.lane.writing import SplitWriter
from pipeline.schemas import Split, SplitAck
from pipeline.stores import Store, Suppressions, Tombstones, guarded

log = logs.logger(__name__)

Embedded = tuple[Window, NDArray[np.float32]]


class Lane:
    """Runs splits with one encoder and one store; `run_split` may be called from several threads at once.

    Two splits at a time keep the encoder busy while one begins and the other ends.
    """

    def __init__(self, job: Job, encoder: Encoder | CompositeEncoder, store: Store) -> None:
        self._job = job
        self._encoder = encoder
        settings = job.settings
        self._store = guarded(store, settings.store.collection, job.lease, settings.run.lease_s)
        self._chunker = make_chunker(job.settings, encoder.spec, encoder.tokenizer)
        self._sieve = Sieve(
            store,
            job.collection,
            job.spec.version,
            Tombstones(store, job.collection) if job.settings.source.sequence else None,
            Suppressions(store, job.settings.store.collection),
        )
        self._readings = encoder.readings if isinstance(encoder, CompositeEncoder) else {}
        self._window_tokens = window_tokens(job.settings, encoder)
        self._stop = threading.Event()
        self._running: dict[str, Tally] = {}
        self._fits = False  # whether the encoder ever had memory for an input

    @classmethod
    def open(cls, job: Job, store: Store) -> Self:
        """Load the job's encoder on this machine, and its aspects; raise CollectionMismatch if one is another here."""
        encoder = load_encoders(job.settings)
        wanted = {MAIN: job.spec.version} | {name: one.encoder_version for name, one in job.aspects.items()}
        found = encoder.specs if isinstance(encoder, CompositeEncoder) else {MAIN: encoder.spec}
        for name, spec in found.items():
            if spec.version != wanted[name]:
                raise CollectionMismatch(
                    f"encoder {spec.source!r} has version {spec.version} on this machine and {wanted[name]} on the "
                    "driver's",
                    "Every machine must hold the same model files",
                    "Install the same model on all machines, or name a hub id with a revision",
                )
        return cls(job, encoder, store)

    def stop(self) -> None:
        """End running splits at their next window; their acknowledgements say `complete=False`."""
        self._stop.set()

    def progress(self) -> dict[str, int]:
        """Documents done so far in each running split, by split id."""
        return {split: done.counts.read for split, done in list(self._running.items())}

    def run_split(self, split: Split) -> SplitAck:
        """Index a split and return its trailer.

        Safe to repeat after a crash at any moment: point ids are deterministic and a document's head is written
        last. The acknowledgement is returned only when the store has applied every point of it.
        """
        tally = Tally()
        self._running[split.id] = tally
        try:
            with logs.about(split.id):
                log.debug("split_begun", uri=split.uri)
                error = self._pump(split, tally)
        finally:
            del self._running[split.id]
        complete = error is None and not tally.cut
        if complete:
            tally.check_trailer(split)
        tally.counts.verify()
        return SplitAck(split.id, tally.counts, tuple(tally.rejected), complete, error, dict(tally.seconds))

    def _pump(self, split: Split, tally: Tally) -> str | None:
        """Run the three threads; return the message of a source that broke half-way, else None."""
        limit = self._job.settings.run.queue_bytes
        windows: Pipe[Window] = Pipe(limit)
        embedded: Pipe[Embedded] = Pipe(limit)
        broken: str | None = None
        with ThreadPoolExecutor(2, thread_name_prefix=f"split-{split.id[:8]}") as threads:
            # Their log lines are about this split, too.
            reading = threads.submit(copy_context().run, self._read, split, windows, tally)
            writing = threads.submit(copy_context().run, self._write, split, embedded, tally)
            try:
                self._encode(windows, embedded, tally)
            except SourceError as error:
                broken = str(error)
            except PipeClosed:
                pass  # the writing thread failed; its result below raises why
            finally:
                windows.abandon()
                embedded.end()
            reading.result()
            writing.result()
        return broken

    def _read(self, split: Split, windows: Pipe[Window], tally: Tally) -> None:
        """Fill the first pipe until the split ends, breaks, or nobody reads on."""
        error: BaseException | None = None
        source = self._job.settings.source
        try:
            since = time.perf_counter()
            for window in split_windows(
                split,
                source,
                self._chunker,
                self._window_tokens,
                self._sieve.sift,
                self._encoder.late,
                self._readings,
            ):
                tally.spend("read", since)
                tally.rows += window.rows
                tally.made += window.chunks.num_rows
                windows.put(window, window.nbytes)
                since = time.perf_counter()
        except PipeClosed:
            pass
        except BaseException as broken:  # noqa: BLE001 - raised again by the thread that encodes
            error = broken
        windows.end(error)

    def _encode(self, windows: Pipe[Window], embedded: Pipe[Embedded], tally: Tally) -> None:
        for window in windows:
            if self._stop.is_set():
                tally.cut = True
                return
            since = time.perf_counter()
            window, vectors = self._vectors(window)
            width = sum(self._job.widths.values())
            if vectors.shape != (window.chunks.num_rows, width):
                raise BrokenInvariant(
                    f"vectors of shape {vectors.shape} for {window.chunks.num_rows} chunks",
                    f"One row of {width} numbers a chunk",
                )
            tally.spend("encode", since)
            embedded.put((window, vectors), window.nbytes + vectors.nbytes)

    def _vectors(self, window: Window) -> Embedded:
        """A window with the vectors of its chunks; those too large for memory are named in it, and lack some.

        Raises InputsTooLarge where nothing has ever fitted: then it is no document's fault.
        """
        try:
            vectors = self._encode_chunks(window.chunks)
        except InputsTooLarge as error:
            self._fits = self._fits or len(error.rows) < window.chunks.num_rows
            if not self._fits:
                raise
            ids = window.chunks.column("point_id")
            too_large = {ids[row].as_py(): "out_of_memory" for row in error.rows}
            return replace(window, without={**window.without, **too_large}), error.vectors
        self._fits = self._fits or bool(len(vectors))
        return window, vectors

    def _encode_chunks(self, chunks: pa.RecordBatch) -> NDArray[np.float32]:
        token_ids, documents = token_arrays(chunks), document_numbers(chunks)
        if not isinstance(self._encoder, CompositeEncoder):
            return self._encoder.encode(token_ids, documents)
        # without chunks, a window has CHUNKS' columns alone
        others = {name: token_arrays(chunks, name) if len(token_ids) else [] for name in self._readings}
        return self._encoder.encode(token_ids, documents, others)

    def _write(self, split: Split, embedded: Pipe[Embedded], tally: Tally) -> None:
        """Write embedded windows and count what the store acknowledged."""
        job = self._job
        writer = SplitWriter(
            split, self._store, job.collection, job.settings.store, job.spec.version, job.widths
        )
        try:
            for window, vectors in embedded:
                since = time.perf_counter()
                done, rejected = writer.write(window, vectors)
                tally.spend("write", since)
                tally.arrived += window.chunks.num_rows
                tally.counts += done
                tally.rejected.extend(rejected)
        except BaseException:
            embedded.abandon()
            raise

    def close(self) -> None:
        """Free the encoder; the store belongs to whoever opened it."""
        self._encoder.close()
