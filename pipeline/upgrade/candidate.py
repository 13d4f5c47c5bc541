"""The candidate: the version that is being built, found or made, and the decision how it is to be filled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from pipeline.codes import load_codes
from pipeline.config import DEFAULT_ENCODER, Settings
from pipeline.encoders import EncoderSpec, describe, prepare_encoder
from pipeline.errors import UpgradeRefused, UsageError
from pipeline.job import make_chunker, make_contract
from pipeline.stores import NEXT, Store, collection, settings_like
from pipeline.upgrade.vectors import Carrier, as_they_are, mapped
from pipeline.upgrade.versions import Version, Versions, moment, record
from pipeline.versions import Bridge, CodesContract, Contract, load_bridge


class Way(StrEnum):
    """How a collection gets to another encoder."""

    NOTHING = "nothing to do"
    IN_PLACE = "in place"
    FAMILY = "compatible family"
    PAYLOAD = "blue/green from payload"
    SOURCE = "blue/green from the source"


WHY = {
    Way.NOTHING: "the collection holds vectors of this encoder alone",
    Way.IN_PLACE: "the collection is of this encoder's family: what a bridge has mapped is embedded anew",
    Way.FAMILY: "stored vectors are mapped at once by a bridge, or stay as codes that the new ones rank beside; they "
    "are embedded anew document by document",
    Way.PAYLOAD: "the chunks stay as they are, and are embedded anew from their texts in the payloads",
    Way.SOURCE: "the source is read, cut and embedded anew",
}


@dataclass(frozen=True)
class Target:
    """The encoder that a collection is to go over to, and the contract that its version of it will have."""

    spec: EncoderSpec
    contract: Contract
    settings: Settings
    bridge: Bridge | None = None

    def carrier(self, serving: Version) -> Carrier:
        """What takes over the vectors of the version that serves, or its codes; UpgradeRefused where it has none."""
        held, codes = serving.contract, self.contract.codes
        if self.bridge is None:
            assert held.codes is not None
            assert codes is not None
            return Carrier(held.codes.vector_name, codes.fingerprint, as_they_are)
        if held.codes and not held.codes.keep_vectors:
            raise UpgradeRefused(
                f"collection {serving.alias!r} holds codes without their vectors",
                "Vectors, which a bridge maps",
                "Leave --bridge out: the chunks are embedded anew",
            )
        change = mapped(self.bridge)
        if codes:
            change = mapped(self.bridge, load_codes(Path(codes.folder)), codes.keep_vectors)
        return Carrier(held.vector_name, self.bridge.fingerprint, change)


def aim(
    store: Store, versions: Versions, settings: Settings, source: str, bridge: Path | None
) -> tuple[Way, Target]:
    """Decide how the collection gets to the encoder of the settings; exports it if that never happened.

    Raises UpgradeRefused where chunks cannot stay as they are, or do not suffice, without a source, UsageError for
    flags that do not go together, EncoderError for a bridge between others.
    """
    held = versions.serving.contract
    _check_asked(versions.name, held, settings, source, bridge)
    spec, tokenizer = prepare_encoder(settings.encoder)
    cut_by = make_chunker(settings, spec, tokenizer).version
    if not source:
        _check_chunks(versions.name, held, spec, settings, cut_by)
    if spec.version == held.encoder_version and not source:
        if (
            bridge
        ):  # a command that is repeated until all is embedded; with one to another encoder it is a mistake
            load_bridge(bridge, new_version=_plain_version(held))
        return (Way.IN_PLACE if held.compatible else Way.NOTHING), Target(spec, held, settings)
    kept = frozenset() if source else held.chunker_versions - {cut_by}
    fresh = _settings_of(store, settings, versions, spec)
    contract = replace(make_contract(fresh, spec, cut_by), also_cut_by=tuple(sorted(kept)))
    if source:
        return Way.SOURCE, Target(spec, contract, fresh)
    if bridge:
        return Way.FAMILY, _bridged(bridge, versions.name, held, Target(spec, contract, fresh))
    family = _codes_beside(versions.name, held, contract.codes)
    target = Target(spec, replace(contract, compatible=family), fresh)
    return (Way.FAMILY if family else Way.PAYLOAD), target


def _check_asked(name: str, held: Contract, settings: Settings, source: str, bridge: Path | None) -> None:
    """Raise UpgradeRefused or UsageError for what no encoder could be brought over by."""
    if held.aspects or settings.aspects:
        raise UpgradeRefused(
            f"the points of collection {name!r} have, or are to have, further vectors: "
            f"{', '.join(sorted({*held.aspects, *settings.aspects}))}",
            "One vector a point: no other is brought over",
            "Ingest into another --collection with the new encoder, and let readers search that",
        )
    if source and bridge:
        raise UsageError("--bridge and --from", "One of them: a bridge maps the chunks that there are", "")


def _bridged(folder: Path, name: str, held: Contract, target: Target) -> Target:
    """The target whose vectors stored ones are mapped to."""
    if target.spec.version in held.compatible:  # mapped there and back, they would be taken for embedded
        raise UpgradeRefused(
            f"collection {name!r} still holds points of {target.spec.source!r}, which a bridge has mapped",
            "Other vectors than those of the encoder to go to",
            f"Leave --bridge out, or embed them first: headwater reindex --to {held.model}",
        )
    plain = describe(target.settings.encoder.model_copy(update={"codes": ""}))
    bridge = load_bridge(folder, _plain_version(held), plain.version)
    compatible = dict.fromkeys(sorted(held.encoder_versions), bridge.fingerprint)
    return replace(target, contract=replace(target.contract, compatible=compatible), bridge=bridge)


def open_candidate(store: Store, versions: Versions, way: Way, target: Target) -> Version:
    """Find the candidate, or make it empty; call it with the lease of its alias.

    A crash leaves no candidate or the whole of an empty one. Raises UpgradeRefused where another one is being built.
    """
    found = Version.read(store, versions.name + NEXT)
    if found is None:
        alias = versions.name + NEXT
        contract, config = target.contract, target.settings.store
        physical = collection.create(
            store,
            alias,
            config,
            contract.dims,
            contract.metadata(),
            target.spec.codes,
            versions.serving.physical,
        )
        record(
            store,
            physical,
            {"began": moment(), "way": str(way), "why": WHY[way], "from": versions.serving.physical},
        )
        return Version(alias, physical, contract)
    _check_same(found.contract, target.contract, versions.name)
    return found.write(
        store, replace(found.contract, compatible=target.contract.compatible or found.contract.compatible)
    )


def _check_chunks(name: str, held: Contract, spec: EncoderSpec, settings: Settings, cut_by: str) -> None:
    """Raise UpgradeRefused unless the chunks that there are, as they are, are all that the encoder needs."""
    if cut_by not in held.chunker_versions and not _same_cutting(held, settings):
        raise UpgradeRefused(
            f"collection {name!r} was cut with chunker {held.chunker_version}, and these [chunking] settings make "
            f"{cut_by}",
            "Chunks as they are, to embed them anew",
            "Restore the [chunking] settings, or give the documents to cut anew: --from docs.parquet",
        )
    if spec.version != held.encoder_version and spec.row == "document":
        raise UpgradeRefused(
            f"encoder.long = {spec.settings['long']!r}, and collection {name!r} holds chunks without the documents "
            "around them",
            "Whole documents: a chunk's vector is made of its tokens' states in all of its document",
            "Give the documents: --from docs.parquet; or another encoder.long, which embeds chunks by themselves",
        )


def _codes_beside(name: str, held: Contract, codes: CodesContract | None) -> dict[str, str]:
    """The versions whose codes may stay beside these, by what was trained for it; {} where nothing was.

    Raises UpgradeRefused where points are to have vectors, too: old ones have none of the new encoder's.
    """
    if codes is None or held.codes is None:
        return {}
    if load_codes(Path(codes.folder)).spec.compatible_with != held.codes.fingerprint:
        return {}
    if codes.keep_vectors:
        raise UpgradeRefused(
            f"the codes in {codes.folder} rank beside those of collection {name!r}, and vectors are to be kept, too",
            "Codes alone: vectors of two encoders do not go together as their codes do",
            "Set store.keep_vectors = false; or, where the collection holds vectors, map them: --bridge DIR",
        )
    return dict.fromkeys(sorted(held.encoder_versions), codes.fingerprint)


def _check_same(held: Contract, wanted: Contract, name: str) -> None:
    """Raise UpgradeRefused unless the candidate that is there is the one that is wanted."""
    codes = held.codes and wanted.codes and held.codes.keep_vectors != wanted.codes.keep_vectors
    bridge = held.compatible and wanted.compatible and held.compatible != wanted.compatible
    differing = {
        f"encoder, {wanted.model!r}, version {wanted.encoder_version}": held.encoder_version
        != wanted.encoder_version,
        "chunker": held.chunker_versions != wanted.chunker_versions,
        "store.keep_vectors": codes,
        "bridge": bridge,
    }
    other = [what for what, differs in differing.items() if differs]
    if other:
        raise UpgradeRefused(
            f"{name}{NEXT} is being built for {held.model!r}, version {held.encoder_version}, and this is another "
            f"{' and another '.join(other)}",
            "The encoder, bridge, chunks and codes that it was begun with",
            "Go on with what it was begun with, or throw it away: headwater retire --next",
        )


def _same_cutting(held: Contract, settings: Settings) -> bool:
    """Whether the settings still cut as the collection was cut: then the encoder's tokenizer alone is another one."""
    how = settings.encoder.model_copy(update={"model": DEFAULT_ENCODER})
    spec, tokenizer = prepare_encoder(held.encoder_config(how))
    return make_chunker(settings, spec, tokenizer).version in held.chunker_versions


def _settings_of(store: Store, settings: Settings, versions: Versions, spec: EncoderSpec) -> Settings:
    """The settings of the candidate: what readers of the collection go by stays as it is, all else unless it is set."""
    held = versions.serving.contract
    like = settings_like(store, versions.serving.physical, held.vector_name)
    if spec.codes:  # which are the small copy in memory
        del like["quantization"]
    changes = {name: value for name, value in like.items() if name not in settings.store.model_fields_set}
    changes |= {
        "collection": versions.name + NEXT,
        "profile": held.profile,
        "distance": held.distance,
    }
    if held.codes is None:
        changes["vector_name"] = held.vector_name
    return settings.model_copy(update={"store": settings.store.model_copy(update=changes)})


def _plain_version(held: Contract) -> str:
    """The version of the encoder that made the vectors, without codes."""
    if held.codes is None:
        return held.encoder_version
    return load_codes(Path(held.codes.folder)).spec.encoder_version
