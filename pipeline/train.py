"""Codes trained on documents, on the vectors of a collection, or on those of a file; or beside older codes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.codes import Binarizer, load_codes, save_codes
from pipeline.codes.folder import SPEC
from pipeline.config import Settings
from pipeline.encoders import describe, load_plain_encoder
from pipeline.errors import CollectionMismatch, EncoderError, UsageError
from pipeline.lane.embedding import draw_chunks, embed_chunks, embed_texts
from pipeline.schemas import Observer, Progress
from pipeline.sources import open_source
from pipeline.stores import Purpose, Store, collection, count_stored, open_collection, scan_vectors
from pipeline.versions import Contract
from pipeline.versions.maps import procrustes, to_unit

if TYPE_CHECKING:
    from pipeline.codes.compatible import CompatibleReport
    from pipeline.codes.training import TrainingReport

VECTOR_COLUMN = "vector"

MOST_VECTORS = 20_000
"""Of more, so many are drawn: mining neighbours takes the square of their number."""


@dataclass(frozen=True)
class Sample:
    """Vectors float32[n, dims] to train on, and the version of the encoder that made them; "" where that is unknown."""

    vectors: NDArray[np.float32]
    encoder_version: str


def of_documents(uri: str, settings: Settings, observe: Observer) -> Sample:
    """The chunks of documents, read, chunked and embedded as a run would."""
    observe(Progress("preparing the encoder"))
    encoder = load_plain_encoder(settings.encoder)
    try:
        with tempfile.TemporaryDirectory(prefix="headwater-") as scratch:
            source = open_source(uri, settings.source, Path(scratch))
            chunks = embed_chunks(source, settings, encoder, observe)
    finally:
        encoder.close()
    return Sample(chunks.vectors, encoder.spec.version)


def of_collection(settings: Settings, observe: Observer) -> Sample:
    """The vectors that a collection holds; raises CollectionMismatch where it holds codes alone."""
    alias = settings.store.collection
    store, physical = open_collection(settings.store, Purpose.SEARCH)
    with closing(store):
        contract = Contract.read(collection.read_metadata(store, physical), alias)
        if contract.codes and not contract.codes.keep_vectors:
            raise CollectionMismatch(
                f"collection {alias!r} holds codes without their vectors",
                "Vectors to train on",
                "Train on the documents instead: --documents",
            )
        rows = np.array(list(_scroll(store, physical, contract, observe)), np.float32)
    version = contract.encoder_version
    if contract.codes:
        version = load_codes(Path(contract.codes.folder)).spec.encoder_version
    return Sample(rows.reshape(-1, contract.dims), version)


def of_file(file: Path) -> Sample:
    """The vectors in the column `vector` of a Parquet file: lists of numbers, all of one length."""
    try:
        column = pq.read_table(file, columns=[VECTOR_COLUMN])[VECTOR_COLUMN].combine_chunks()
        widths = set(pc.list_value_length(column).to_pylist())
        if len(widths) != 1 or None in widths:
            raise pa.ArrowInvalid(f"column {VECTOR_COLUMN!r} holds lists of {len(widths)} lengths")
        flat = pc.list_flatten(column).cast(pa.float32()).to_numpy(zero_copy_only=False)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise UsageError(
            f"vectors {file} cannot be read: {error}",
            f"A Parquet file with lists of numbers, all of one length, in the column {VECTOR_COLUMN!r}",
            "Check --from",
        ) from None
    return Sample(flat.reshape(len(column), -1), "")


def check_out(folder: Path) -> None:
    """Raise UsageError where a folder holds codes already: vectors may be coded with these."""
    if (folder / SPEC).exists():
        raise UsageError(f"{folder} holds codes already", "A new folder", "Choose another --out")


def train(
    sample: Sample, out: Path, observe: Observer, *, bits: int, dims: int, epochs: int, seed: int
) -> dict[str, Any]:
    """Train codes on at most MOST_VECTORS of a sample and write them to the folder `out`; the report as JSON values.

    A crash leaves no codes. Raises EncoderError for vectors that cannot be trained on.
    """
    from pipeline.codes.training import TrainingOptions, train_codes  # torch takes seconds to import

    options = TrainingOptions(bits=bits, dims=dims, epochs=epochs, seed=seed)
    binarizer, report = train_codes(
        sample.vectors[_drawn(len(sample.vectors))],
        options,
        encoder_version=sample.encoder_version,
        watch=lambda epoch, recall: observe(Progress(_stage(epoch, recall), epoch, options.epochs)),
    )
    save_codes(binarizer, out)
    return {**_said(binarizer, out), "vectors": report.vectors, **_course(report)}


def train_beside(
    before: Settings,
    after: Settings,
    old_codes: Path,
    documents: str,
    out: Path,
    observe: Observer,
    *,
    epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Train codes of the encoder of `after` that rank beside `old_codes`, which are of that of `before`; the report.

    A crash leaves no codes. Both embed the same chunks, at most MOST_VECTORS, cut for the old one, and a rotation
    (`procrustes`) into the old space is what training starts from. Raises EncoderError for the same encoder twice, old
    codes of another one, or too few chunks.
    """
    from pipeline.codes.compatible import train_compatible  # torch takes seconds to import
    from pipeline.codes.training import LEAST_VECTORS, TrainingOptions

    observe(Progress("preparing the encoders"))
    old, new = (describe(settings.encoder).plain for settings in (before, after))
    if old.version == new.version:
        raise EncoderError(
            f"{old.source} and {new.source} are one encoder, version {old.version[:12]}",
            "Two encoders of different versions",
            "Go on with the codes that there are: they are of this encoder",
        )
    stored = load_codes(old_codes, old.version)
    with closing(load_plain_encoder(before.encoder)) as encoder:
        chunks = draw_chunks(documents, before, encoder, MOST_VECTORS, seed, LEAST_VECTORS, observe)
        first = embed_texts(chunks, encoder, observe)
    with closing(load_plain_encoder(after.encoder)) as encoder:
        second = embed_texts(chunks, encoder, observe)
    into_old = procrustes(to_unit(second), to_unit(first))
    binarizer, report = train_compatible(
        first,
        second,
        stored,
        (into_old.weight, into_old.bias),
        TrainingOptions(epochs=epochs, seed=seed),
        new.version,
        lambda epoch, recall: observe(Progress(_stage(epoch, recall), epoch, epochs)),
    )
    save_codes(binarizer, out)
    beside = {"compatible_with": stored.fingerprint, "texts": report.texts}
    return {**_said(binarizer, out), **beside, **_course(report)}


def _said(binarizer: Binarizer, out: Path) -> dict[str, Any]:
    spec = binarizer.spec
    return {
        "out": str(out),
        "fingerprint": binarizer.fingerprint,
        "encoder_version": spec.encoder_version,
        "bits": spec.bits,
        "dims": spec.dims,
        "bytes": spec.bytes,
        "float_bytes": 4 * spec.input_dims,
    }


def _course(report: TrainingReport | CompatibleReport) -> dict[str, Any]:
    return {
        "recall@10_before": round(report.recall[0], 4),
        "recall@10": round(max(report.recall), 4),
        "best_epoch": report.best_epoch,
        "epochs": len(report.recall) - 1,
        "seconds": round(report.seconds, 1),
    }


def _stage(epoch: int, recall: float | None) -> str:
    if recall is None:
        return f"training on all vectors: epoch {epoch}"
    return f"training: epoch {epoch}, held-out recall@10 {recall:.3f}"


def _scroll(
    store: Store, physical: str, contract: Contract, observe: Observer
) -> Iterator[NDArray[np.float32]]:
    wanted = _drawn(count_stored(store, physical).points)
    for done, vector in enumerate(scan_vectors(store, physical, contract.vector_name)):
        if done % 1000 == 0:
            observe(Progress("reading vectors", done, len(wanted)))
        if done < len(wanted) and wanted[done]:
            yield np.array(vector, np.float32)


def _drawn(count: int) -> NDArray[np.bool_]:
    """Which of so many vectors are trained on: all, or MOST_VECTORS at random."""
    wanted = np.zeros(count, np.bool_)
    wanted[np.random.default_rng(0).permutation(count)[:MOST_VECTORS]] = True
    return wanted
