"""One graph for several exits of a model, made of the graphs of each: in the cache, behind a gate of its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.config import EncoderConfig
from pipeline.encoders.describe import cache_folder
from pipeline.encoders.exported import GRAPH, TOKENIZER, is_whole, read_manifest
from pipeline.encoders.hashes import hash_json
from pipeline.encoders.prepare import lock, probe, put_in_place
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import EncoderError
from pipeline.tokens import load_tokenizer


def prepare_merged(specs: Sequence[EncoderSpec], folders: Sequence[Path], config: EncoderConfig) -> Path:
    """Return a folder with one graph for these encoders, made the first time of theirs in `folders`.

    Crash-safe as `prepare` is: an entry of the cache appears whole, by a rename, once it has passed the gate.
    """
    cache = cache_folder(config)
    entry = cache / hash_json(["exits", *(spec.version for spec in specs)])
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with lock(cache / f".{entry.name}.lock"):
            if not is_whole(entry):
                _build(specs, folders, entry)
    except OSError as error:
        raise EncoderError(
            f"the encoder cache {cache} cannot be written: {error}",
            f"A folder we may write, with room for the model ({specs[0].source})",
            "Set encoder.cache, or free some space",
        ) from error
    return entry


def _build(specs: Sequence[EncoderSpec], folders: Sequence[Path], entry: Path) -> None:
    """Merge into a folder beside the entry's place, pass the gate, rename."""
    from pipeline.encoders.merging import merge_graphs

    building = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".building."))
    try:
        shutil.copyfile(folders[0] / TOKENIZER, building / TOKENIZER)
        first = read_manifest(folders[0])
        inputs = probe(load_tokenizer(building / TOKENIZER), first["vocabulary"], first["pad_id"], specs[0])
        figures = merge_graphs([folder / GRAPH for folder in folders], building / GRAPH, inputs)
        manifest = {
            **first,
            "exits": [spec.version for spec in specs],
            "parity": {name: asdict(measured) for name, measured in figures.items()},
        }
        put_in_place(building, manifest, entry)
    finally:
        shutil.rmtree(building, ignore_errors=True)
