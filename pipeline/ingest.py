"""A run: from a source and settings to a collection in step, whatever executes the splits."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.book import Book
from pipeline.config import Settings, StoreConfig
from pipeline.encoders import prepare_encoder
from pipeline.job import Job, check_target, make_chunker, open_job
from pipeline.schemas import Counts, Observer, Progress, Split, SplitAck, Unreadable
from pipeline.sources import Source, open_source
from pipeline.stores import Store, collection
from pipeline.sync import Ledger, plan_hash, write_rejected

RUN_KEY = "headwater_run"  # in the collection's metadata: the run that wrote to it last


class Executor(Protocol):
    """Runs splits on lanes. It owns the lanes and the store, and decides who may open it."""

    def open_store(self, config: StoreConfig) -> Store:
        """The store as the driver sees it; lanes may share it or open their own."""

    def run(
        self, job: Job, splits: Sequence[Split], stop: threading.Event
    ) -> Generator[tuple[Split, SplitAck]]:
        """Run the splits in any order and yield their trailers as they come.

        After `stop` is set no new split begins and running ones end early. A dead lane is replaced and its splits
        run again; an error that would meet every split is raised.
        """

    def progress(self) -> int:
        """Documents done so far in the splits that are running now."""

    def close(self) -> None:
        """End the lanes, then close the store."""


@dataclass(frozen=True)
class Summary:
    """What a run did, with everything that earlier attempts of the same run had committed.

    `seconds` is the wall time of this attempt; `resumed_splits` were committed by earlier ones.
    """

    counts: Counts
    seconds: float
    run: str
    collection: str
    encoder_version: str
    resumed_splits: int
    failed: tuple[Unreadable, ...]
    interrupted: bool
    dead_letter: Path | None

    @property
    def exit_code(self) -> int:
        """0 all indexed, 1 something could not be read, 3 done with rejected documents, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.failed else 3 if self.counts.rejected else 0

    def as_dict(self) -> dict[str, Any]:
        """The summary as JSON values; the counts at the top level."""
        return {
            **self.counts.as_dict(),
            "seconds": round(self.seconds, 3),
            "run": self.run,
            "collection": self.collection,
            "encoder_version": self.encoder_version,
            "resumed_splits": self.resumed_splits,
            "failed": [vars(failed) for failed in self.failed],
            "interrupted": self.interrupted,
            "dead_letter": str(self.dead_letter) if self.dead_letter else None,
        }


def ingest(
    uri: str,
    settings: Settings,
    executor: Executor,
    stop: threading.Event,
    observe: Observer = lambda _: None,
) -> Summary:
    """Bring the collection in step with the source.

    After a crash at any moment, the same call ends with exactly the points of an uninterrupted run; splits whose
    acknowledgement was committed are not read again. Raises HeadwaterError where nothing sensible can go on.
    """
    began = time.perf_counter()
    check_target(settings)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-"))
        observe(Progress("reading the source"))
        source = open_source(uri, settings.source, Path(scratch))
        observe(Progress("preparing the encoder"))
        spec, tokenizer = prepare_encoder(settings.encoder)
        chunker = make_chunker(settings, spec, tokenizer)
        stack.callback(executor.close)
        store = executor.open_store(settings.store)
        job = open_job(store, settings, spec, chunker.version)
        return _run(source, job, store, executor, stop, observe, began)


def state_folder(settings: Settings) -> Path:
    """Where runs remember what is done: as configured, beside an edge store, or in the user's state folder."""
    if settings.run.state:
        return Path(settings.run.state).expanduser()
    kind, _, place = settings.store.url.partition(":")
    if kind == "edge":
        return Path(place).expanduser() / ".headwater"
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "headwater"


def _run(
    source: Source,
    job: Job,
    store: Store,
    executor: Executor,
    stop: threading.Event,
    observe: Observer,
    began: float,
) -> Summary:
    folder = state_folder(job.settings) / job.collection
    config = job.settings.source.model_dump(mode="json")
    plan = plan_hash(source.uri, config, job.chunker_version, job.spec.version, job.collection)
    ledger = _open_ledger(folder, plan, store, job.collection)
    pending = [split for split in source.splits if split not in ledger]
    book = Book(ledger, store, ledger.counts(source.splits), job.settings.run.commit_every_s)
    with _watching(executor, book, source.rows, observe):
        try:
            with closing(executor.run(job, pending, stop)) as trailers:
                for split, ack in trailers:
                    book.add(split, ack)
        finally:
            book.commit()
    interrupted = stop.is_set() and book.open_splits(pending) > 0
    failed = (*source.unreadable, *book.failed)
    dead_letter = folder / f"rejected-{ledger.run_id}.parquet"
    wrote = write_rejected(dead_letter, itertools.chain(ledger.rejected(source.splits), book.uncommitted))
    if not failed and not interrupted:
        ledger.finish()
    return Summary(
        counts=book.counts,
        seconds=time.perf_counter() - began,
        run=ledger.run_id,
        collection=job.collection,
        encoder_version=job.spec.version,
        resumed_splits=len(source.splits) - len(pending),
        failed=failed,
        interrupted=interrupted,
        dead_letter=dead_letter if wrote else None,
    )


def _open_ledger(folder: Path, plan: str, store: Store, physical: str) -> Ledger:
    """Resume or begin a run, and write in the collection's metadata that this run writes to it now."""
    last_run = str(collection.read_metadata(store, physical).get(RUN_KEY, ""))
    ledger = Ledger.open(folder, plan, last_run)
    if ledger.run_id != last_run:
        store.update_collection(physical, metadata={RUN_KEY: ledger.run_id})
    return ledger


@contextmanager
def _watching(executor: Executor, book: Book, total: int | None, observe: Observer) -> Iterator[None]:
    """Report progress a few times a second; what was reported never shrinks, even if a dead lane's split restarts."""
    over = threading.Event()

    def watch() -> None:
        done = 0
        while not over.wait(0.25):
            done = max(done, book.counts.read + executor.progress())
            observe(Progress("indexing", done, total))
        observe(Progress("indexing", max(done, book.counts.read), total))

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
