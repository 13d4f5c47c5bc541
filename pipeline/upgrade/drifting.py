"""The drift report of a collection: against another one, an earlier sample, or between the versions in it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Settings
from pipeline.errors import CollectionMismatch, UsageError
from pipeline.schemas import Observer, Progress
from pipeline.stores import NEXT, PREVIOUS, Purpose, Store, collection, open_collection
from pipeline.upgrade.drift import Sample, compare_samples
from pipeline.upgrade.sampling import sample_vectors


def report_drift(
    settings: Settings,
    against: str,
    points: int,
    save: Path | None = None,
    observe: Observer = lambda _: None,
) -> dict[str, Any]:
    """Compare samples of `points` points, as JSON values.

    `against`: a collection or alias of the same store, or a file that `save` wrote earlier; "": the encoder versions in
    the collection where there are several, else the version that is being built, or the one that is kept. Where there
    is none and the sample is saved, the collection is described alone.
    """
    name = settings.store.collection
    earlier = Sample.load(Path(against)) if against.endswith(".npz") else None
    store, _ = open_collection(settings.store, Purpose.AUDIT)
    with closing(store):
        observe(Progress("reading the store"))
        sample = sample_vectors(store, name, points)
        before, after = _sides(store, name, sample, against, points) if earlier is None else (earlier, sample)
    if save:
        _save(sample, save)
    if before is after and not save:
        raise UsageError(
            f"collection {name!r} holds one encoder version, and neither {NEXT} nor {PREVIOUS} is there",
            "Something to compare it with",
            "Name a collection with --against, or keep a sample with --save drift.npz, and compare a later one with it",
        )
    observe(Progress("comparing"))
    return compare_samples(before, after)


def _sides(store: Store, name: str, sample: Sample, against: str, points: int) -> tuple[Sample, Sample]:
    """What is compared: the older first. One twice where there is nothing else."""
    if against:
        if not store.collection_exists(against):
            raise CollectionMismatch(
                f"no collection {against!r} in the store", "One of the same store", "Check --against"
            )
        return sample_vectors(store, against, points), sample
    versions, counts = np.unique(sample.versions, return_counts=True)
    if len(versions) > 1:
        first, second = versions[np.argsort(-counts)[:2]].tolist()
        return sample.of_version(first), sample.of_version(second)
    if collection.resolve(store, name + NEXT):
        return sample, sample_vectors(store, name + NEXT, points)
    if collection.resolve(store, name + PREVIOUS):
        return sample_vectors(store, name + PREVIOUS, points), sample
    return sample, sample


def _save(sample: Sample, file: Path) -> None:
    if file.suffix != ".npz":
        raise UsageError(f"--save {file}", "A file that ends in .npz", "Say --save drift.npz")
    try:
        sample.save(file)
    except OSError as error:
        raise UsageError(
            f"--save {file} cannot be written: {error.strerror or error}", "", "Check --save"
        ) from None
