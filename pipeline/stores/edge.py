"""The edge store: Qdrant's engine inside this process, over a folder. The embedded default."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import qdrant_edge as engine
from qdrant_client import models
from qdrant_client.http.models import QueryResponse

from pipeline.errors import HeadwaterError, StoreError, StoreFull
from pipeline.stores import edge_models as to
from pipeline.stores.edge_folder import Catalogue
from pipeline.stores.folder_lock import Claim, FolderLock
from pipeline.stores.points import Points
from pipeline.stores.store import VectorsConfig

_FORBIDDEN = set('<>:"/\\|?*\0\x1f')  # what a Qdrant server refuses too

# The engine writes into sparse memory-mapped files: where the disk has no block left for a page, the kernel ends
# the process with SIGBUS, and no error reaches anybody. So room is looked for before.
_RESERVE_BYTES = 32 << 20
_PLENTY_BYTES = 1 << 30
_BYTES_PER_BYTE = 4  # the log, the payload, its indexes, and room for what an estimate misses


class EdgeStore:
    """Collections in a folder, one engine shard each, opened when first used.

    What `upsert` and `delete` did survives SIGKILL; after `flush` it survives power loss too. The engine
    holds the interpreter's lock in every call, so large upserts go in pieces of `batch_points`. Nothing is added
    where less than 32 MiB of the disk would stay free: StoreFull.
    """

    def __init__(self, folder: Path, lock: FolderLock, catalogue: Catalogue, batch_points: int) -> None:
        self._folder = folder
        self._lock = lock
        self._catalogue = catalogue
        self._batch_points = batch_points
        self._shards: dict[str, engine.EdgeShard] = {}
        self._guard = threading.RLock()  # catalogue and shards; the engine is thread-safe by itself

    @classmethod
    def open(cls, folder: Path, batch_points: int = 256, claim: Claim = Claim()) -> EdgeStore:
        """Lock the folder and read its catalogue; raises StoreHeld where another process holds it.

        `claim` is what other processes are told while this one holds the folder.
        """
        lock = FolderLock.take(folder, claim)
        try:
            return cls(folder, lock, Catalogue.read(folder), batch_points)
        except BaseException:
            lock.release()
            raise

    def __repr__(self) -> str:
        return f"EdgeStore({str(self._folder)!r})"

    def get_collections(self) -> models.CollectionsResponse:
        with self._guard:
            names = sorted(self._catalogue.collections)
        return models.CollectionsResponse(
            collections=[models.CollectionDescription(name=name) for name in names]
        )

    def collection_exists(self, collection_name: str) -> bool:
        with self._guard:
            return self._catalogue.resolve(collection_name) is not None

    def create_collection(
        self,
        collection_name: str,
        vectors_config: VectorsConfig,
        sparse_vectors_config: Mapping[str, models.SparseVectorParams] | None = None,
        hnsw_config: models.HnswConfigDiff | None = None,
        quantization_config: models.QuantizationConfig | None = None,
        on_disk_payload: bool | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> bool:
        config = models.CreateCollection(
            vectors=vectors_config
            if isinstance(vectors_config, models.VectorParams)
            else dict(vectors_config),
            sparse_vectors=dict(sparse_vectors_config) if sparse_vectors_config else None,
            hnsw_config=hnsw_config,
            quantization_config=quantization_config,
            on_disk_payload=on_disk_payload,
            metadata=deepcopy(metadata),
        )
        with self._guard:
            self._check_new_name(collection_name)
            self._check_room(f"create collection {collection_name!r}")
            with _engine(f"create collection {collection_name!r} in {self._folder}"):
                shard = engine.EdgeShard.create(str(self._folder / collection_name), to.shard_config(config))
            # Only what the catalogue lists exists: a crash before this line leaves an unused folder.
            self._rewrite(self._catalogue.collections | {collection_name: config}, self._catalogue.aliases)
            self._shards[collection_name] = shard
        return True

    def _check_new_name(self, name: str) -> None:
        if not name or name.startswith(".") or len(name.encode()) > 255 or _FORBIDDEN & set(name):
            raise StoreError(
                f"{name!r} cannot name a collection",
                'A name of at most 255 bytes, not starting with a dot, without any of <>:"/\\|?*',
                "Choose another --collection",
            )
        if self._catalogue.resolve(name) is not None or (self._folder / name).exists():
            raise StoreError(
                f"collection, alias or folder {name!r} exists in {self._folder}",
                "A new collection needs a free name",
                "Choose another --collection",
            )

    def get_collection(self, collection_name: str) -> models.CollectionInfo:
        name, shard = self._open(collection_name)
        with _engine(f"read the state of {name!r}"):
            info = shard.info()
        with self._guard:
            return _info(self._catalogue.collections[name], info)

    def delete_collection(self, collection_name: str) -> bool:
        with self._guard:
            if collection_name not in self._catalogue.collections:
                return False
            collections, aliases = self._catalogue.collections, self._catalogue.aliases
            self._rewrite(
                {name: config for name, config in collections.items() if name != collection_name},
                {alias: name for alias, name in aliases.items() if name != collection_name},
            )
            shard = self._shards.pop(collection_name, None)
            if shard is not None:
                with _engine(f"close {collection_name!r}"):
                    shard.close()
            shutil.rmtree(self._folder / collection_name, ignore_errors=True)
        return True

    def update_collection(self, collection_name: str, metadata: dict[str, Any]) -> bool:
        with self._guard:
            name = self._resolve(collection_name)
            config = self._catalogue.collections[name]
            merged = {**(config.metadata or {}), **deepcopy(metadata)}
            changed = {name: config.model_copy(update={"metadata": merged})}
            self._rewrite(self._catalogue.collections | changed, self._catalogue.aliases)
        return True

    def get_aliases(self) -> models.CollectionsAliasesResponse:
        with self._guard:
            pairs = sorted(self._catalogue.aliases.items())
        return models.CollectionsAliasesResponse(
            aliases=[models.AliasDescription(alias_name=alias, collection_name=name) for alias, name in pairs]
        )

    def update_collection_aliases(self, change_aliases_operations: Sequence[models.AliasOperations]) -> bool:
        with self._guard:
            aliases = dict(self._catalogue.aliases)
            for operation in change_aliases_operations:
                _change_alias(aliases, operation, self._catalogue.collections)
            self._rewrite(self._catalogue.collections, aliases)
        return True

    def create_payload_index(
        self, collection_name: str, field_name: str, field_schema: models.PayloadSchemaType
    ) -> None:
        operation = engine.UpdateOperation.create_field_index(field_name, to.INDEXES[field_schema])
        self._update(collection_name, operation, f"index {field_name!r}")

    def upsert(
        self, collection_name: str, points: Points, update_filter: models.Filter | None = None
    ) -> None:
        condition = to.edge_filter(update_filter)
        for batch in points.batches(self._batch_points):
            self._check_room(f"upsert {len(batch)} points into {collection_name!r}", batch)
            with _engine(f"read {len(batch)} points for {collection_name!r}"):
                operation = engine.UpdateOperation.upsert_points(to.edge_points(batch), condition)
            self._update(collection_name, operation, f"upsert {len(batch)} points")

    def too_large(self, collection_name: str, points: Points) -> list[str]:
        """None: there are no requests."""
        return []

    def set_payload(
        self, collection_name: str, payload: dict[str, Any], points: Sequence[str], key: str | None = None
    ) -> None:
        if points:
            operation = engine.UpdateOperation.set_payload(list(points), payload, key)
            self._update(collection_name, operation, f"set the payload of {len(points)} points")

    def overwrite_payloads(
        self, collection_name: str, ids: Sequence[str], payloads: Sequence[dict[str, Any]]
    ) -> None:
        self._check_room(f"overwrite {len(ids)} payloads in {collection_name!r}")
        for id, payload in zip(ids, payloads, strict=True):
            operation = engine.UpdateOperation.overwrite_payload([id], payload)
            self._update(collection_name, operation, f"overwrite the payload of {id}")

    def retrieve(
        self,
        collection_name: str,
        ids: Sequence[str],
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> list[models.Record]:
        name, shard = self._open(collection_name)
        with _engine(f"retrieve {len(ids)} points of {name!r}"):
            found = shard.retrieve(list(ids), to.selector(with_payload), with_vectors)
        return [to.record(one) for one in found]

    def delete(self, collection_name: str, points_selector: Sequence[str] | models.Filter) -> None:
        if isinstance(points_selector, models.Filter):
            operation = engine.UpdateOperation.delete_points_by_filter(to.whole_filter(points_selector))
        elif points_selector:
            operation = engine.UpdateOperation.delete_points(list(points_selector))
        else:
            return
        self._update(collection_name, operation, "delete points")

    def query_batch_points(
        self, collection_name: str, requests: Sequence[models.QueryRequest]
    ) -> list[QueryResponse]:
        name, shard = self._open(collection_name)
        with _engine(f"query {name!r}"):
            batch = engine.QueryBatchRequest([to.edge_query(request) for request in requests])
            answers = shard.query_batch(batch)
        return [QueryResponse(points=[to.scored(one) for one in answer]) for answer in answers]

    def count(self, collection_name: str, count_filter: models.Filter | None = None) -> models.CountResult:
        name, shard = self._open(collection_name)
        with _engine(f"count the points of {name!r}"):
            request = engine.CountRequest(exact=True, filter=to.edge_filter(count_filter))
            return models.CountResult(count=shard.count(request))

    def scroll(
        self,
        collection_name: str,
        scroll_filter: models.Filter | None = None,
        limit: int = 10,
        offset: str | None = None,
        with_payload: bool | Sequence[str] = True,
        with_vectors: bool = False,
    ) -> tuple[list[models.Record], str | None]:
        name, shard = self._open(collection_name)
        with _engine(f"scroll through {name!r}"):
            found, following = shard.scroll(
                engine.ScrollRequest(
                    offset=offset,
                    limit=limit,
                    filter=to.edge_filter(scroll_filter),
                    with_payload=to.selector(with_payload),
                    with_vector=with_vectors,
                )
            )
        return [to.record(one) for one in found], None if following is None else str(following)

    def flush(self) -> None:
        with self._guard:
            shards = dict(self._shards)
        for name, shard in shards.items():
            with _engine(f"flush {name!r}"):
                shard.flush()

    def optimize(self, collection_name: str) -> None:
        name, shard = self._open(collection_name)
        with _engine(f"optimize {name!r}"):
            shard.optimize()

    def close(self) -> None:
        """Flush and close every shard, then let go of the folder; safe to repeat."""
        with self._guard:
            shards, self._shards = self._shards, {}
            try:
                for name, shard in shards.items():
                    with _engine(f"close {name!r}"):
                        shard.flush()
                        shard.close()
            finally:
                self._lock.release()

    def _update(self, collection_name: str, operation: engine.UpdateOperation, what: str) -> None:
        name, shard = self._open(collection_name)
        with _engine(f"{what} in {name!r} of {self._folder}"):
            shard.update(operation)

    def _check_room(self, doing: str, points: Points | None = None) -> None:
        """Raise StoreFull where the disk might not hold these points."""
        free = shutil.disk_usage(self._folder).free
        if free >= _PLENTY_BYTES:
            return
        need = _RESERVE_BYTES
        if points is not None:
            payloads = sum(len(json.dumps(payload)) for payload in points.payloads)
            need += _BYTES_PER_BYTE * (payloads + points.vector_bytes)
        if free < need:
            raise StoreFull(
                f"cannot {doing}: the disk under {self._folder} has {free >> 20} MiB left",
                f"At least {-(-need >> 20)} MiB free",
                "Free some space and run again, or choose another folder",
            )

    def _resolve(self, collection_name: str) -> str:
        name = self._catalogue.resolve(collection_name)
        if name is None:
            raise StoreError(
                f"no collection {collection_name!r} in {self._folder}",
                "",
                "Run headwater ingest first, or check --store and --collection",
            )
        return name

    def _open(self, collection_name: str) -> tuple[str, engine.EdgeShard]:
        """The collection's own name and its shard, opened if it was not."""
        with self._guard:
            name = self._resolve(collection_name)
            if name not in self._shards:
                if not self._lock.held:
                    raise StoreError(f"the edge store {self._folder} is closed")
                with _engine(f"open {name!r} in {self._folder}"):
                    self._shards[name] = engine.EdgeShard.load(str(self._folder / name))
            return name, self._shards[name]

    def _rewrite(self, collections: dict[str, models.CreateCollection], aliases: dict[str, str]) -> None:
        """Write a new catalogue, and go by it only once it is on disk."""
        fresh = Catalogue(collections, aliases)
        with _engine(f"write the catalogue of {self._folder}"):
            fresh.write(self._folder)
        self._catalogue = fresh


def _change_alias(
    aliases: dict[str, str], operation: models.AliasOperations, collections: Mapping[str, object]
) -> None:
    """Apply one change to a copy of the aliases; StoreError where a server would refuse."""
    match operation:
        case models.CreateAliasOperation(create_alias=new):
            alias, name = new.alias_name, new.collection_name
        case models.RenameAliasOperation(rename_alias=change):
            alias, name = change.new_alias_name, aliases.pop(change.old_alias_name, "")
        case models.DeleteAliasOperation(delete_alias=old):
            aliases.pop(old.alias_name, None)
            return
    if name not in collections or alias in collections:
        raise StoreError(
            f"alias {alias!r} for collection {name!r}",
            "The collection must exist, and no collection may have the alias's name",
        )
    aliases[alias] = name


def _info(config: models.CreateCollection, info: engine.ShardInfo) -> models.CollectionInfo:
    hnsw = config.hnsw_config or models.HnswConfigDiff()
    return models.CollectionInfo(
        status=models.CollectionStatus.GREEN,
        optimizer_status=models.OptimizersStatusOneOf.OK,
        points_count=info.points_count,
        indexed_vectors_count=info.indexed_vectors_count,
        segments_count=info.segments_count,
        payload_schema={key: to.index_info(found) for key, found in info.payload_schema.items()},
        config=models.CollectionConfig(
            params=models.CollectionParams(
                vectors=config.vectors,
                sparse_vectors=config.sparse_vectors,
                on_disk_payload=config.on_disk_payload,
            ),
            hnsw_config=to.hnsw_info(hnsw),
            wal_config=models.WalConfig(wal_capacity_mb=32, wal_segments_ahead=0),
            optimizer_config=models.OptimizersConfig(default_segment_number=0, flush_interval_sec=0),
            quantization_config=config.quantization_config,
            metadata=deepcopy(config.metadata),
        ),
    )


@contextmanager
def _engine(doing: str) -> Iterator[None]:
    """Turn whatever the engine raises into our errors; it tells its own apart by their text alone."""
    try:
        yield
    except HeadwaterError:
        raise
    except BaseException as error:
        # A panic of the engine is a BaseException of a class that cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise edge_error(error, doing) from error


def edge_error(error: BaseException, doing: str) -> StoreError:
    """Our error for one of the engine's: StoreFull or StoreError."""
    message = str(error)
    if "No space left" in message or "os error 28" in message or getattr(error, "errno", None) == 28:
        return StoreFull(f"cannot {doing}: {message}", "Free disk space", "Free some space and run again")
    return StoreError(f"cannot {doing}: {message}")
