"""Watching a folder or bucket prefix: after every round the collection is what its files say, all together.

    list the files ► note what is new, changed or gone ► remove what no file has ► index what is open ► note it as done

The rule is that of a run over the folder: of the rows of a document the highest sequence wins, among equals the one
that comes last, in the order of the files' names. So the result does not depend on the order in which files came.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from pipeline import logs, metrics
from pipeline.config import Settings
from pipeline.errors import CollectionHeld, LeaseLost, SourceError, TransientError, UsageError
from pipeline.ingest import Executor
from pipeline.schemas import Counts, Rejected, Split, Unreadable
from pipeline.snapshot import allowed, scope
from pipeline.sources import File, Opened, find, is_remote, named_rows, normal, open_parts
from pipeline.stores import DocumentWriter, Key, read_heads, scan_points
from pipeline.streams.changes import Backoff, ticks
from pipeline.streams.delta import is_table, watch_table
from pipeline.streams.flight import SCHEMES, watch_flight
from pipeline.streams.manifest import Manifest, identity, modified
from pipeline.streams.session import Session, session
from pipeline.streams.stdin import watch_stream
from pipeline.summary import Summary
from pipeline.sync import write_rejected

SETTLE_S = 10.0  # what cannot be read may still be being written; unchanged for so long, it is reported
_PAGE = 500  # documents in one request
_FILES = 64  # opened and planned at a time

log = logs.logger(__name__)


def watch(uri: str, settings: Settings, executor: Executor, stop: threading.Event) -> Summary:
    """Keep a collection in step with a folder's or a prefix's files until `stop` is set, or a stream ("-").

    After a crash at any moment the same call goes on where it was. Raises CollectionHeld where another run works on
    the collection, LeaseLost where one has taken it over, UsageError where nothing is there to watch.
    """
    if uri == "-":
        return watch_stream(settings, executor, stop)
    if uri.partition("://")[0] in SCHEMES:
        return watch_flight(uri, settings, executor, stop)
    place = normal(uri)
    if is_table(place):
        return watch_table(place, settings, executor, stop)
    with (
        session(place, settings, executor, stop) as held,
        Manifest.open(held.folder / f"watch-{held.plan[:16]}.sqlite") as manifest,
    ):
        watcher = Watcher(place, settings, held, manifest)
        watcher.begin()
        watcher.follow()
        return watcher.end()


@dataclass
class Trouble:
    """A file that could not be read, as it lay there since `since`; `told` when it was reported."""

    identity: str
    message: str
    since: float
    told: bool = False


class Watcher:
    """Follows one place."""

    def __init__(self, place: str, settings: Settings, held: Session, manifest: Manifest) -> None:
        self._place = place
        self._config = settings.source
        self._gather_s = settings.watch.max_latency_s
        self._commit_every_s = settings.run.commit_every_s
        self._held = held
        self._manifest = manifest
        self._writer = DocumentWriter(held.store, held.job.collection, settings.store.batch_points)
        self._troubles: dict[str, Trouble] = {}
        self._wrong: UsageError | None = None  # what the columns of a file are not
        self._refused = ""
        self._began = time.time()
        self._backoff = Backoff(held.stop)
        self._again = False  # the last round left something that may be done soon

    def begin(self) -> None:
        """Go on with the run that wrote last if this manifest is its own; else believe nothing of it."""
        run = self._manifest.run
        if not run or run != self._held.last_run():
            run = uuid.uuid4().hex[:12]
            self._manifest.begin(run)
        self._held.begin(run)

    def follow(self) -> None:
        """Do rounds until the session is to stop; errors that may pass are waited out.

        Raises UsageError where nothing is there at first, or no file has the columns.
        """
        self._round(self._list())
        if self._wrong and not self._manifest.files():
            raise self._wrong
        for changed in ticks(self._place, self._gather_s, self._held.stop):
            if changed or self._again:
                self._try_round()

    def end(self) -> Summary:
        """Say what was done."""
        failed = [Unreadable(uri, trouble.message) for uri, trouble in self._troubles.items()]
        return self._held.end(failed, self._refused)

    def _try_round(self) -> None:
        try:
            self._round(self._list())
        except (CollectionHeld, LeaseLost):
            raise
        except (TransientError, SourceError, UsageError) as error:  # a place that is gone may come back, too
            self._again = True
            self._backoff.failed(error)
        else:
            self._backoff.over()

    def _list(self) -> dict[str, File]:
        """The files by URI; UsageError where the place is not there, SourceError where it cannot be listed."""
        try:
            found = find(self._place, self._config.format, Path())
        except UsageError:
            if is_remote(self._place) or not Path(self._place).is_dir():
                raise
            return {}  # a folder without files
        return {file.uri: file for file in found}

    def _round(self, files: dict[str, File]) -> None:
        """Bring the collection in step with these files; a crash leaves what the next round does."""
        self._again = False
        known = self._manifest.files()
        for uri in known.keys() - files.keys():
            self._manifest.remove(uri)
        self._troubles = {uri: trouble for uri, trouble in self._troubles.items() if uri in files}
        for uri, file in files.items():
            if known.get(uri) != identity(file):
                self._survey(file)
        if not self._manifest.compared and not self._troubles:
            self._compare()
        self._remove()
        open_files = iter(sorted(self._manifest.open_files() & files.keys()))
        while not self._held.stop.is_set() and (some := list(islice(open_files, _FILES))):
            self._index([files[uri] for uri in some])
        write_rejected(self._held.journal.dead_letter, self._manifest.rejected())
        self._held.tell(self._manifest.watermark() / 1e9)

    def _survey(self, file: File) -> None:
        """Note which documents a new or changed file holds; while it cannot be read, what it held before stays."""
        try:
            opened = open_parts(file, self._config)
            if isinstance(opened, Opened):
                self._manifest.put(file, named_rows(opened))
                self._troubles.pop(file.uri, None)
                return
            message = opened.message
        except SourceError as error:
            message = str(error)
        except UsageError as error:
            self._wrong, message = error, str(error)
        self._trouble(file, message)

    def _trouble(self, file: File, message: str) -> None:
        """Try a file again that cannot be read; report it once it has not changed for a while."""
        trouble = self._troubles.get(file.uri)
        if trouble is None or trouble.identity != identity(file):
            trouble = self._troubles[file.uri] = Trouble(identity(file), message, time.monotonic())
        if not trouble.told and time.monotonic() - trouble.since >= SETTLE_S:
            trouble.told = True
            log.error("file_unreadable", uri=file.uri, error=message)
        self._again = self._again or not trouble.told

    def _compare(self) -> None:
        """Note which stored documents no file holds: all that a manifest cannot know that was not there."""

        def surplus() -> Iterator[Key]:
            for page in scan_points(self._held.store, self._held.job.collection, scope(self._config)):
                ours = [payload["headwater"] for _, payload in page if payload.get("headwater")]
                keys = {(mine["namespace"], mine["document_id"]) for mine in ours}
                yield from keys - self._manifest.holding(list(keys))

        self._manifest.end_comparison(surplus())

    def _remove(self) -> None:
        """Remove documents that are due: those that no file holds, unless they are too many, and overtaken versions."""
        gone = self._manifest.count_due()
        refused = self._guard(gone)
        removed = Counts()
        pages = [] if refused else self._manifest.due(_PAGE, held=False)
        for page in pages:
            removed += self._delete(list(page))
        overtaken = Counts()
        for page in self._manifest.due(_PAGE, held=True):
            heads = read_heads(self._held.store, self._held.job.collection, list(page))
            overtaken += self._delete([key for key, head in heads.items() if head.sequence > page[key]])
        self._held.store.flush()
        self._manifest.settle(removed=not refused)
        self._held.add_removed(replace(overtaken, removed=0) + removed)
        self._refused = refused

    def _guard(self, gone: int) -> str:
        """Why so many documents may not be removed; "" where they may."""
        limit = self._config.max_deletes
        stored = self._manifest.count() + gone if gone else 0
        if gone <= allowed(limit, stored):
            return ""
        refused = (
            f"{gone} of {stored} documents are in no file any more. At most {limit} may go at a time, so they stay. "
            f"Check the source. If they are to go, start again with --max-deletes {gone}."
        )
        if refused != self._refused:
            log.error("deletes_refused", error=refused)
        return refused

    def _delete(self, documents: Sequence[Key]) -> Counts:
        """Delete documents as they are stored now."""
        if not documents:
            return Counts()
        heads = read_heads(self._held.store, self._held.job.collection, documents)
        return Counts(removed=len(heads), points_removed=self._writer.delete(documents, heads))

    def _index(self, files: Sequence[File]) -> None:
        """Index files, each noted as done when the store is durable."""
        book = Files(self._held, self._manifest, self._commit_every_s, self._began)
        splits: list[Split] = []
        for file in files:
            opened = open_parts(file, self._config)
            if isinstance(opened, Opened):
                mine = list(self._manifest.superseded(file, opened.splits))
                book.begin(file, mine)
                splits += mine
            else:
                self._trouble(file, opened.message)
        for split, ack in self._held.run(splits):
            self._held.add(ack)
            if ack.error is not None:
                self._trouble(book.files[split.uri], ack.error)
            elif ack.complete:
                book.add(split, ack.rejected)
        book.commit()


class Files:
    """Files that are being indexed: which splits of theirs are still to come, and what was rejected."""

    def __init__(self, held: Session, manifest: Manifest, commit_every_s: float, since: float) -> None:
        self.files: dict[str, File] = {}
        self._held = held
        self._manifest = manifest
        self._commit_every_s = commit_every_s
        self._since = since
        self._left: dict[str, int] = {}
        self._rejected: dict[str, list[Rejected]] = {}
        self._done: list[File] = []
        self._committed_at = time.monotonic()

    def begin(self, file: File, splits: Sequence[Split]) -> None:
        """Expect these splits of a file."""
        self.files[file.uri] = file
        self._left[file.uri] = len(splits)
        self._rejected[file.uri] = []
        if not splits:
            self._done.append(file)

    def add(self, split: Split, rejected: Sequence[Rejected]) -> None:
        """Note that a split is complete; commit if the last commit is long enough ago."""
        self._left[split.uri] -= 1
        self._rejected[split.uri] += rejected
        if not self._left[split.uri]:
            self._done.append(self.files[split.uri])
        if time.monotonic() - self._committed_at >= self._commit_every_s:
            self.commit()

    def commit(self) -> None:
        """Make the store durable, then note in the manifest which files are done."""
        done, self._done = self._done, []
        self._committed_at = time.monotonic()
        if not done:
            return
        self._held.store.flush()
        self._manifest.finish((file, self._rejected.pop(file.uri)) for file in done)
        for file in done:
            changed = modified(file) / 1e9
            lag = time.time() - changed
            if changed >= self._since:  # what lay there before is no measure of how quick we are
                metrics.record(metrics.WATCH_LAG, lag)
            log.info("file_searchable", uri=file.uri, lag_s=round(lag, 3))
        self._held.tell(self._manifest.watermark() / 1e9)
