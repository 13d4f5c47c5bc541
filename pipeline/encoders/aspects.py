"""Aspects: further vectors of a point, each by an encoder of its own: another size of the main one, or another model.

Which of them one run of a graph makes together is decided here: sizes of one encoder are slices of its largest, and
exits of one model (its last layer, and earlier ones) are outputs of one graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ChunkingConfig, EncoderConfig, Settings
from pipeline.encoders.describe import describe
from pipeline.encoders.exits import prepare_merged
from pipeline.encoders.exported import TOKENIZER
from pipeline.encoders.long import PLAIN
from pipeline.encoders.prepare import prepare
from pipeline.encoders.spec import EncoderSpec
from pipeline.errors import HeadwaterError, UsageError
from pipeline.tokens import load_tokenizer

_ALL = 1 << 30  # layers

MAIN = ""
"""The name of the main encoder among its aspects."""


@dataclass(frozen=True)
class Exit:
    """Encoders that differ in the size of their vectors alone: their dims by name, the widest first.

    That one is run, and the others are slices of its vectors, normalised again.
    """

    dims: Mapping[str, int]

    @property
    def widest(self) -> str:
        """The name of the one that is run."""
        return next(iter(self.dims))

    @property
    def width(self) -> int:
        """Its dims."""
        return self.dims[self.widest]


class Run(NamedTuple):
    """A graph that is run: its exits with their encoders, the settings and the prepared folder it is opened with."""

    exits: tuple[Exit, ...]
    specs: tuple[EncoderSpec, ...]
    config: EncoderConfig
    folder: Path


def aspect_configs(settings: Settings) -> dict[str, EncoderConfig]:
    """The settings of the aspects' encoders, by the names of their vectors.

    Raises UsageError where the point has no place for them: the main vector has no name, or theirs, or is a code.
    """
    names, main = ", ".join(settings.aspects), settings.store.vector_name
    if settings.aspects and (not main or main in settings.aspects or MAIN in settings.aspects):
        raise UsageError(
            f"aspects {names} with store.vector_name = {main!r}",
            "A name for every vector of a point, the main encoder's too, and no name twice",
            "Add --set store.vector_name=main",
        )
    if settings.aspects and settings.encoder.codes:
        raise UsageError(
            f"aspects {names} with encoder.codes",
            "Points of codes, which have no further vectors, or points of several vectors",
            "Leave one of the two out",
        )
    return {name: aspect.encoder(settings.encoder) for name, aspect in settings.aspects.items()}


def describe_aspects(settings: Settings, main: EncoderSpec) -> dict[str, EncoderSpec]:
    """The specs of the aspects' encoders by name; `main` is that of the main encoder, by whose tokens chunks are cut.

    Safe at any time, as `describe` is. Raises UsageError where chunks may be longer than one of them takes: nothing
    is truncated.
    """
    specs: dict[str, EncoderSpec] = {}
    for name, config in aspect_configs(settings).items():
        with _about(name):
            specs[name] = spec = describe(config)
            chunk = settings.chunking.max_tokens or main.max_tokens
            _check_length(name, spec, chunk, chunk)
            _check_method(spec, settings.chunking)
    return specs


def prepare_aspects(settings: Settings, main: EncoderSpec) -> list[Run]:
    """What a lane is to run for the main encoder and its aspects, exported if it never was; opens no session.

    Raises UsageError where a chunk with an encoder's own prompt may be longer than it takes.
    """
    configs = {MAIN: settings.encoder, **aspect_configs(settings)}
    specs = {MAIN: main, **describe_aspects(settings, main)}
    found: list[Run] = []
    for together in runs(specs):
        folders = []
        for exit in together:
            with _about(exit.widest):
                folders.append(prepare(specs[exit.widest], configs[exit.widest]))
        config = configs[together[0].widest]
        members = tuple(specs[exit.widest] for exit in together)
        folder = folders[0] if len(folders) == 1 else prepare_merged(members, folders, config)
        found.append(Run(together, members, config, folder))
    _check_inputs(found, main, settings.chunking.max_tokens or main.max_tokens)
    return found


def _check_inputs(found: Sequence[Run], main: EncoderSpec, chunk: int) -> None:
    """Raise UsageError where the longest chunk is more than an encoder takes with its own prompt around it."""
    around = {
        exit.widest: load_tokenizer(run.folder / TOKENIZER, spec.document_prompt).special_tokens
        for run in found
        for exit, spec in zip(run.exits, run.specs, strict=True)
    }
    mains = next(exit for run in found for exit in run.exits if MAIN in exit.dims)
    for run in found:
        for exit, spec in zip(run.exits, run.specs, strict=True):
            with _about(exit.widest):
                _check_length(exit.widest, spec, chunk - around[mains.widest] + around[exit.widest], chunk)


def runs(specs: Mapping[str, EncoderSpec]) -> list[tuple[Exit, ...]]:
    """Which exits one graph gives: those of one model, wherever a text is one row of it. The deepest comes first."""
    groups: dict[str, list[Exit]] = {}
    for exit in exits(specs):
        spec = specs[exit.widest]
        key = replace(_without_size(spec), layers=0) if spec.row == "text" else spec
        groups.setdefault(key.version, []).append(exit)
    deepest_first = (
        sorted(group, key=lambda exit: -(specs[exit.widest].layers or _ALL)) for group in groups.values()
    )
    return [tuple(group) for group in deepest_first]


def exits(specs: Mapping[str, EncoderSpec]) -> list[Exit]:
    """Which encoders are run, and what else their vectors give; each name is in one exit."""
    groups: dict[str, list[str]] = {}
    for name, spec in specs.items():
        groups.setdefault(_without_size(spec).version, []).append(name)
    widest_first = (sorted(names, key=lambda name: -specs[name].dims) for names in groups.values())
    return [Exit({name: specs[name].dims for name in names}) for names in widest_first]


def reads_as(left: EncoderSpec, right: EncoderSpec) -> bool:
    """Whether two encoders take the same tokens for a document."""
    mine, theirs = ((one.tokenizer, one.document_prompt, one.decoder) for one in (left, right))
    return mine == theirs


def _without_size(spec: EncoderSpec) -> EncoderSpec:
    """What encoders have in common whose document vectors are slices of each other's.

    That they are where nothing but a normalisation follows the slice. What is done with a document before it is
    embedded is left out; a query's prompt is not where its tokens are known to the graph.
    """
    if spec.long and spec.long.method in PLAIN:
        spec = replace(spec, long=None)
    sliced = [place for place, module in enumerate(spec.modules) if module.startswith("slice:")]
    if sliced and spec.modules[sliced[-1] + 1 :] not in ((), ("normalize",)):
        return spec
    modules = tuple(module for module in spec.modules if not module.startswith("slice:"))
    known = any(module.startswith("latent-attention:") for module in modules)
    return replace(spec, query_prompt=spec.query_prompt if known else "", dims=0, modules=modules)


def _check_length(name: str, spec: EncoderSpec, longest: int, chunk: int) -> None:
    """Raise UsageError where an encoder takes less than `longest` tokens, which a chunk of `chunk` tokens becomes."""
    if spec.max_tokens < longest:
        raise UsageError(
            f"chunks of up to {longest} tokens, and {spec.source} takes {spec.max_tokens}",
            "Chunks that every encoder takes whole: nothing is truncated",
            f"Set chunking.max_tokens to {chunk - longest + spec.max_tokens} or less, "
            f"or aspects.{name}.long and max_tokens",
        )


def check_late(spec: EncoderSpec, chunking: ChunkingConfig) -> None:
    """Raise UsageError where an encoder is to embed chunks out of their documents, and they are not cut for that."""
    if spec.row == "document" and (not chunking.max_tokens or chunking.overlap_tokens):
        raise UsageError(
            f"encoder.long = {spec.settings['long']!r} with chunking.max_tokens = {chunking.max_tokens} and "
            f"chunking.overlap_tokens = {chunking.overlap_tokens}",
            "Chunks shorter than the encoder's window, which do not overlap: each sees the others anyway",
            "Set chunking.max_tokens, for example to 200, and chunking.overlap_tokens to 0",
        )


def _check_method(spec: EncoderSpec, chunking: ChunkingConfig) -> None:
    check_late(spec, chunking)
    method = spec.settings["long"]
    if method in ("error", "truncate"):
        raise UsageError(
            f"long = {method!r}",
            "A method that embeds a chunk whole: the main encoder's documents are cut, an aspect gets their chunks",
            "Leave it out",
        )


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Say in an error which aspect it is about."""
    try:
        yield
    except HeadwaterError as error:
        if name == MAIN:
            raise
        raise type(error)(f"aspect {name!r}: {error.got}", error.need, error.do) from error
