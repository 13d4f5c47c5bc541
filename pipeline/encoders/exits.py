"""One graph for several exits of a model, made of the graphs of each: in the cache, behind a gate of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pipeline.config import EncoderConfig
from pipeline.encoders.building import building_beside, put_in_place
from pipeline.encoders.exported import GRAPH, TOKENIZER, read_manifest
from pipeline.encoders.hashes import hash_json
from pipeline.encoders.prepare import in_cache, probe
from pipeline.encoders.spec import EncoderSpec
from pipeline.tokens import load_tokenizer


def prepare_merged(specs: Sequence[EncoderSpec], folders: Sequence[Path], config: EncoderConfig) -> Path:
    """Return a folder with one graph for these encoders, made the first time of theirs in `folders`.

    Crash-safe as `prepare` is: an entry of the cache appears whole, by a rename, once it has passed the gate.
    """
    name = hash_json(["exits", *(spec.version for spec in specs)])
    return in_cache(config, name, lambda entry: _build(specs, folders, entry))


def _build(specs: Sequence[EncoderSpec], folders: Sequence[Path], entry: Path) -> None:
    """Merge into a folder beside the entry's place, pass the gate, rename."""
    from pipeline.encoders.merging import merge_graphs

    with building_beside(entry) as building:
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
