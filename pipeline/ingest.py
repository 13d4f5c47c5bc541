"""A run: from a source and settings to a collection in step, whatever executes the splits."""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from pipeline import logs, metrics
from pipeline.book import Book
from pipeline.config import Settings, StoreConfig
from pipeline.encoders import describe, describe_aspects, prepare_encoder
from pipeline.errors import CollectionHeld, CountMismatch, DeletesRefused, LeaseLost, StoreHeld, UsageError
from pipeline.job import Job, check_target, make_chunker, open_job, too_long
from pipeline.schemas import Observer, Progress, Split, SplitAck
from pipeline.snapshot import Snapshot
from pipeline.sources import Source, open_source
from pipeline.stores import (
    NEXT,
    Lease,
    Purpose,
    Store,
    Suppressions,
    collection,
    count_stored,
    filling,
    folder_of,
    guarded,
    hold_lease,
    name_of,
)
from pipeline.summary import Summary
from pipeline.sync import Header, Ledger, Run, now, plan_hash, runs, write_rejected
from pipeline.verify import check_held

NOTHING_DONE = "Nothing was done here; run again when it has ended"
log = logs.logger(__name__)

RUN_KEY = "headwater_run"  # in the collection's metadata: the run that wrote to it last


class Executor(Protocol):
    """Runs splits on lanes. It owns the lanes and the store, and decides who may open it."""

    def open_store(self, config: StoreConfig, purpose: Purpose) -> Store:
        """The store as the driver sees it; lanes may share it or open their own. Others are told the purpose."""

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


def ingest(
    uri: str,
    settings: Settings,
    executor: Executor,
    stop: threading.Event,
    observe: Observer = lambda _: None,
) -> Summary:
    """Bring the collection in step with the source.

    After a crash at any moment, the same call ends with exactly the points of an uninterrupted run; splits whose
    acknowledgement was committed are not read again. Raises CollectionHeld where another run works on the
    collection, LeaseLost where one has taken it over meanwhile, CountMismatch where the collection afterwards does not
    hold what was counted, and HeadwaterError where nothing sensible can go on.
    """
    began = time.perf_counter()
    check_target(settings)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="headwater-"))
        observe(Progress("reading the source"))
        source = open_source(uri, settings.source, Path(scratch))
        stack.callback(executor.close)
        # what is wrong with the encoders is said before anything is written
        _describe(settings)
        store, lease = hold_collection(settings, executor, stop, stack)
        observe(Progress("preparing the encoder"))
        spec, tokenizer = prepare_encoder(settings.encoder)
        job = open_job(store, settings, spec, make_chunker(settings, spec, tokenizer).version)
        job = replace(job, lease=lease.token if lease else "")
        ledger = _open_ledger(source, job, store)
        if ledger.finished is not None:
            return Summary.of_finished(*ledger.finished)
        job = replace(job, run=ledger.run_id)
        logs.set_run(job.run)
        if lease:
            lease.run = job.run
        with _failing(ledger):
            was_empty = bool(lease) and not len(ledger) and not count_stored(store, job.collection).points
            book = _index(
                source, job, Book(ledger, store, source.splits, settings.run), executor, stop, observe
            )
            if settings.source.snapshot and not (stop.is_set() or source.unreadable or book.failed):
                observe(Progress("comparing with the store"))
                _remove_absent(source, job, store, book, Path(scratch), stop, observe)
            if lease:
                _verify(job, store, book, lease, was_empty and not (stop.is_set() or book.failed))
            summary = _sum_up(source, job, ledger, book, stop, time.perf_counter() - began)
        ledger.end(summary.as_dict())
        if summary.exit_code in (0, 3):
            metrics.record(metrics.FINISHED, time.time())
        log.info("run_finished", **summary.as_dict())
        return summary


def _describe(settings: Settings) -> None:
    """Raise UsageError or EncoderError for encoders that cannot be, or not with these chunks; nothing is exported."""
    spec = describe(settings.encoder)
    too_long(settings, spec)
    describe_aspects(settings, spec)


def hold_collection(
    settings: Settings, executor: Executor, stop: threading.Event, stack: ExitStack
) -> tuple[Store, Lease | None]:
    """Open the store and take the collection's lease, or raise CollectionHeld; a lease that is lost sets `stop`.

    A stop ends the wait for a lease, with CollectionHeld too.
    """
    name = settings.store.collection
    try:
        store = executor.open_store(settings.store, Purpose.INGEST)
        _check_version(store, name)
        lease = stack.enter_context(hold_lease(store, name, settings.run.id, settings.run.lease_s, stop))
        if name != name_of(name):  # lanes look once what was forgotten
            beside = hold_lease(store, filling(name), settings.run.id, settings.run.lease_s, stop)
            stack.enter_context(beside)
    except StoreHeld as held:
        if (held.purpose, held.collection) != (Purpose.INGEST, name):
            raise
        raise CollectionHeld(held.got, "One run at a time", NOTHING_DONE) from held
    if lease is None:
        return store, None
    return guarded(store, name, lease.token, settings.run.lease_s), lease


def _check_version(store: Store, name: str) -> None:
    """Raise UsageError for another version of a collection that is not there: no ingest makes one."""
    if name != name_of(name) and collection.resolve(store, name) is None:
        maker = "headwater reindex --to ENCODER" if name.endswith(NEXT) else "headwater promote"
        raise UsageError(
            f"there is no {name!r}",
            f"A version of {name_of(name)!r} that is there: {maker} makes this one",
            f"Run that with --collection {name_of(name)} first, or ingest into {name_of(name)}",
        )


@contextmanager
def _failing(ledger: Ledger) -> Iterator[None]:
    """Write in the ledger what ends the run before its time."""
    try:
        yield
    except LeaseLost:  # the run that took over may have resumed this one: the last word is its
        raise
    except Exception as error:
        ledger.fail(logs.redacted(str(error) or repr(error)))
        raise


def state_folder(settings: Settings) -> Path:
    """Where runs remember what is done: as configured, in the store's folder, or in the user's state folder."""
    if settings.run.state:
        return Path(settings.run.state).expanduser()
    if folder := folder_of(settings.store.url):
        return folder / ".headwater"
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "headwater"


def history(settings: Settings) -> list[Run]:
    """The runs that this machine remembers of a store and a collection, or of all, the latest first."""
    name, store = settings.store.collection, logs.redacted(settings.store.url)
    found = runs(state_folder(settings).glob("*__*"))
    return [run for run in found if name in ("", run.header.collection) and store in ("", run.header.store)]


def _open_ledger(source: Source, job: Job, store: Store) -> Ledger:
    """Resume or begin a run, and write in the collection's metadata that this run writes to it now."""
    settings = job.settings
    config = settings.source.model_dump(mode="json", exclude={"max_deletes"})  # it changes no point
    header = Header(
        run=settings.run.id,
        plan=plan_hash(source.uri, config, job.chunker_version, job.spec.version, job.collection),
        source=logs.redacted(source.uri),
        collection=settings.store.collection,
        encoder_version=job.spec.version,
        splits=len(source.splits),
        documents=source.rows,
        began=now(),
        store=logs.redacted(settings.store.url),
    )
    last_run = str(collection.read_metadata(store, job.collection).get(RUN_KEY, ""))
    ledger = Ledger.open(state_folder(settings) / job.collection, header, last_run)
    if ledger.finished is None and ledger.run_id != last_run:
        store.update_collection(job.collection, metadata={RUN_KEY: ledger.run_id})
    return ledger


def _index(
    source: Source, job: Job, book: Book, executor: Executor, stop: threading.Event, observe: Observer
) -> Book:
    """Run the splits that are not committed, and book their trailers."""
    book.begin()
    with _watching(executor, book, source.rows, observe):
        try:
            with closing(executor.run(job, book.open_splits(), stop)) as trailers:
                for split, ack in trailers:
                    book.add(split, ack)
        finally:
            book.commit()
    return book


def _remove_absent(
    source: Source,
    job: Job,
    store: Store,
    book: Book,
    scratch: Path,
    stop: threading.Event,
    observe: Observer,
) -> None:
    """Remove the documents that the source, all of which is indexed, does not have; book what went, or why not."""
    config = job.settings.source
    forgotten = Suppressions(store, job.settings.store.collection)
    snapshot = Snapshot.take(source, config, store, job.collection, forgotten, scratch / "snapshot")
    try:
        gone = snapshot.remove(store, job.collection, config.max_deletes, stop, observe)
    except DeletesRefused as refused:
        book.refused = str(refused)
    else:
        book.add_removed(gone)


def _verify(job: Job, store: Store, book: Book, lease: Lease, was_empty: bool) -> None:
    """Check that the collection holds what the trailers say; if not, nothing of this run is believed any more."""
    lease.check()
    try:
        check_held(store, job.collection, book.counts - book.earlier, was_empty)
    except CountMismatch:
        store.update_collection(job.collection, metadata={RUN_KEY: ""})  # so that no ledger is resumed
        raise


def _sum_up(
    source: Source, job: Job, ledger: Ledger, book: Book, stop: threading.Event, seconds: float
) -> Summary:
    """The summary of this attempt, with the dead-letter file written."""
    wrote = write_rejected(
        ledger.dead_letter, itertools.chain(ledger.rejected(source.splits), book.uncommitted)
    )
    return Summary(
        counts=book.counts,
        earlier=book.earlier,
        seconds=seconds,
        run=ledger.run_id,
        collection=job.collection,
        encoder_version=job.spec.version,
        resumed_splits=book.resumed_splits,
        failed=(*source.unreadable, *book.failed),
        interrupted=stop.is_set() and (job.settings.source.snapshot or bool(book.open_splits())),
        dead_letter=ledger.dead_letter if wrote else None,
        refused=book.refused,
    )


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
