"""A prepared run: everything a lane needs, picklable, decided once by the driver."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.chunking import Chunker, TooLong
from pipeline.codes import LAYOUT
from pipeline.config import Settings
from pipeline.encoders import LATE, Encoder, EncoderSpec, codes_folder
from pipeline.errors import UsageError
from pipeline.stores import Store, collection
from pipeline.tokens import Tokenizer
from pipeline.versions import CodesContract, Contract


@dataclass(frozen=True)
class Job:
    """What every lane of a run is given.

    `collection` is the physical collection behind the alias; `spec` is the encoder every lane must find; `run` names
    the run once its ledger is open; `lease` is the token of the lease under which lanes may write, "" without one.
    """

    settings: Settings
    spec: EncoderSpec
    collection: str
    chunker_version: str
    run: str = ""
    lease: str = ""

    @property
    def widths(self) -> dict[str, int]:
        """The vectors of a point by name with their widths, in the order of the encoder's columns."""
        return collection.vector_widths(self.settings.store, self.spec.dims, self.spec.codes)


def check_target(settings: Settings) -> None:
    """Raise UsageError unless a store and a collection are named."""
    for key, example in (("url", "--store edge:./index"), ("collection", "--collection docs")):
        if not getattr(settings.store, key):
            raise UsageError(
                f"no store.{key} is set", "A store and a collection to write to", f"Add {example}"
            )


def make_chunker(settings: Settings, spec: EncoderSpec, tokenizer: Tokenizer) -> Chunker:
    """The chunker of these settings, cutting by the encoder's own tokens."""
    return Chunker(tokenizer, settings.chunking, spec.max_tokens, _too_long(settings, spec))


def _too_long(settings: Settings, spec: EncoderSpec) -> TooLong:
    """What happens to documents that are longer than a chunk: where chunks were asked for, they are cut into them."""
    method = spec.long.method if spec.long else "split"
    if method in ("error", "truncate") and settings.chunking.max_tokens:
        raise UsageError(
            f"encoder.long = {method!r} and chunking.max_tokens = {settings.chunking.max_tokens}",
            "One of the two: a document that is cut into chunks is never too long",
            "Leave one out; encoder.max_tokens says how long a document may be",
        )
    if method == LATE and (not settings.chunking.max_tokens or settings.chunking.overlap_tokens):
        raise UsageError(
            f"encoder.long = {method!r} with chunking.max_tokens = {settings.chunking.max_tokens} and "
            f"chunking.overlap_tokens = {settings.chunking.overlap_tokens}",
            "Chunks shorter than the encoder's window, which do not overlap: each sees the others anyway",
            "Set chunking.max_tokens, for example to 200, and chunking.overlap_tokens to 0",
        )
    if method == "truncate":
        return "truncate"
    return "split" if method == "split" or settings.chunking.max_tokens else "error"


def window_tokens(settings: Settings, encoder: Encoder) -> int:
    """How many tokens are gathered before they are sorted into batches."""
    return settings.run.window_tokens or 16 * encoder.batch_tokens


def make_contract(settings: Settings, spec: EncoderSpec, chunker_version: str) -> Contract:
    """What a collection made by this run promises."""
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

    Raises CollectionMismatch that names both sides where the encoder, its codes, the chunking, the payload profile, the
    dimension, the distance or the vector's name differ.
    """
    alias = settings.store.collection
    physical = collection.resolve(store, alias)
    if physical is None:
        return None
    found = Contract.read(collection.read_metadata(store, physical), alias)
    found.check_codes(contract.codes, alias)
    found.check_encoder(contract.encoder_version, contract.model, alias)
    found.check_chunker(contract.chunker_version, alias)
    found.check_profile(contract.profile, alias)
    collection.check_vectors(
        store, physical, settings.store, contract.dims, contract.codes.spec if contract.codes else None
    )
    return physical


def open_job(store: Store, settings: Settings, spec: EncoderSpec, chunker_version: str) -> Job:
    """Check the collection, or make it, and say what the lanes are to do.

    Safe to repeat: a crash leaves no visible half-made collection.
    """
    contract = make_contract(settings, spec, chunker_version)
    physical = check_collection(store, settings, contract) or collection.create(
        store, settings.store.collection, settings.store, contract.dims, contract.metadata(), spec.codes
    )
    return Job(settings, spec, physical, chunker_version)
