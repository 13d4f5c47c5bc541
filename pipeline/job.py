"""A prepared run: everything a lane needs, picklable, decided once by the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.chunking import Chunker, TooLong
from pipeline.codes import LAYOUT
from pipeline.config import Settings
from pipeline.encoders import (
    CompositeEncoder,
    Encoder,
    EncoderSpec,
    check_late,
    codes_folder,
    describe_aspects,
    prepare_aspects,
)
from pipeline.errors import UsageError
from pipeline.stores import Store, collection
from pipeline.tokens import Tokenizer
from pipeline.versions import AspectContract, CodesContract, Contract


@dataclass(frozen=True)
class Job:
    """What every lane of a run is given.

    `collection` is the physical collection behind the alias; `spec` is the encoder every lane must find; `run` names
    the run once its ledger is open; `lease` is the token of the lease under which lanes may write, "" without one.
    `aspects` are the encoders of the points' other vectors that every lane must find, by name.
    """

    settings: Settings
    spec: EncoderSpec
    collection: str
    chunker_version: str
    run: str = ""
    lease: str = ""
    aspects: Mapping[str, AspectContract] = field(default_factory=dict)

    @property
    def widths(self) -> dict[str, int]:
        """The vectors of a point by name with their widths, in the order of the encoder's columns."""
        dims = {name: aspect.dims for name, aspect in self.aspects.items()}
        return collection.vector_widths(self.settings.store, self.spec.dims, self.spec.codes, dims)


def check_target(settings: Settings) -> None:
    """Raise UsageError unless a store and a collection are named."""
    for key, example in (("url", "--store edge:./index"), ("collection", "--collection docs")):
        if not getattr(settings.store, key):
            raise UsageError(
                f"no store.{key} is set", "A store and a collection to write to", f"Add {example}"
            )


def make_chunker(settings: Settings, spec: EncoderSpec, tokenizer: Tokenizer) -> Chunker:
    """The chunker of these settings, cutting by the encoder's own tokens."""
    return Chunker(tokenizer, settings.chunking, spec.max_tokens, too_long(settings, spec))


def too_long(settings: Settings, spec: EncoderSpec) -> TooLong:
    """What happens to documents that are longer than a chunk: where chunks were asked for, they are cut into them.

    Raises UsageError for chunks that the encoder's way with long documents cannot have.
    """
    method = spec.settings["long"]
    if method in ("error", "truncate") and settings.chunking.max_tokens:
        raise UsageError(
            f"encoder.long = {method!r} and chunking.max_tokens = {settings.chunking.max_tokens}",
            "One of the two: a document that is cut into chunks is never too long",
            "Leave one out; encoder.max_tokens says how long a document may be",
        )
    check_late(spec, settings.chunking)
    if method == "truncate":
        return "truncate"
    return "split" if method == "split" or settings.chunking.max_tokens else "error"


def window_tokens(settings: Settings, encoder: Encoder | CompositeEncoder) -> int:
    """How many tokens are gathered before they are sorted into batches."""
    return settings.run.window_tokens or 16 * encoder.batch_tokens


def make_contract(settings: Settings, spec: EncoderSpec, chunker_version: str) -> Contract:
    """What a collection made by this run promises; raises UsageError for aspects that do not go with it."""
    aspects = describe_aspects(settings, spec)
    return Contract(
        encoder_version=spec.version,
        model=spec.source,
        precision=spec.precision,
        max_tokens=spec.max_tokens,
        document_prompt=spec.document_prompt,
        query_prompt=spec.query_prompt,
        chunker_version=chunker_version,
        vector_name=collection.full_name(settings.store, spec.codes),
        dims=spec.dims,
        distance=settings.store.distance,
        profile=settings.store.profile,
        codes=_codes_contract(settings, spec),
        settings=spec.unusual_settings,
        aspects={name: _aspect_contract(aspect) for name, aspect in aspects.items()},
    )


def _aspect_contract(spec: EncoderSpec) -> AspectContract:
    return AspectContract(
        encoder_version=spec.version,
        model=spec.source,
        precision=spec.precision,
        max_tokens=spec.max_tokens,
        document_prompt=spec.document_prompt,
        query_prompt=spec.query_prompt,
        dims=spec.dims,
        settings=spec.unusual_settings,
    )


def _codes_contract(settings: Settings, spec: EncoderSpec) -> CodesContract | None:
    if spec.codes is None:
        return None
    return CodesContract(
        folder=str(codes_folder(settings.encoder)),
        fingerprint=spec.codes.fingerprint,
        bits=spec.codes.bits,
        dims=spec.codes.dims,
        scale=spec.codes.scale,
        layout=LAYOUT,
        vector_name=collection.CODES,
        keep_vectors=settings.store.keep_vectors,
    )


def check_collection(store: Store, settings: Settings, contract: Contract) -> str | None:
    """The physical collection behind the alias if there is one and it takes our points.

    Raises CollectionMismatch that names both sides where the encoder, its codes or aspects, the chunking, the payload
    profile, the dimension, the distance or the vector's name differ.
    """
    alias = settings.store.collection
    physical = collection.resolve(store, alias)
    if physical is None:
        return None
    found = Contract.read(collection.read_metadata(store, physical), alias)
    found.check_codes(contract.codes, alias)
    found.check_encoder(contract.encoder_version, contract.model, alias)
    found.check_aspects(contract.aspects, alias)
    found.check_chunker(contract.chunker_version, alias)
    found.check_profile(contract.profile, alias)
    codes = contract.codes.spec if contract.codes else None
    collection.check_vectors(store, physical, settings.store, contract.dims, codes, contract.aspect_dims)
    return physical


def open_job(store: Store, settings: Settings, spec: EncoderSpec, chunker_version: str) -> Job:
    """Check the collection, or make it, and say what the lanes are to do.

    Safe to repeat: a crash leaves no visible half-made collection.
    """
    contract = make_contract(settings, spec, chunker_version)
    physical = check_collection(store, settings, contract)
    if contract.aspects:
        prepare_aspects(settings, spec)
    physical = physical or collection.create(
        store,
        settings.store.collection,
        settings.store,
        contract.dims,
        contract.metadata(),
        spec.codes,
        aspects=contract.aspect_dims,
    )
    return Job(settings, spec, physical, chunker_version, aspects=contract.aspects)
