"""`headwater versions list`: all physical collections of a name, and what each of them is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.config import Settings
from pipeline.stores import Store, collection, count_stored
from pipeline.upgrade.promotion import settle
from pipeline.upgrade.versions import Version, Versions, count_points, opened, read_record, unused
from pipeline.versions import Contract

Role = Literal["serving", "next", "previous", "other", "unused"]


@dataclass(frozen=True)
class Listed:
    """A version of a collection. `by_version`: points by the encoder version that made their vectors.

    `bridges`: the fingerprints of those that mapped some of them. `since`: when it took its role, "" where that is not
    on record. A version that is `unused` has no alias: what made it died before it was whole; of an `other` one the
    alias is not ours. `vector_bytes`: points times what their vectors take as they are written, an estimate: without
    payloads, graph and quantization, which no store tells.
    """

    role: Role
    physical: str
    model: str
    encoder_version: str
    dims: int
    codes_bits: int
    documents: int
    points: int
    vector_bytes: int
    by_version: dict[str, int]
    bridges: tuple[str, ...]
    since: str
    way: str

    def as_dict(self) -> dict[str, Any]:
        """The version as JSON values."""
        return asdict(self)


def list_versions(settings: Settings) -> list[Listed]:
    """The versions of a collection, the serving one first; fills in what a crash has left out of the record."""
    with opened(settings) as (store, versions):
        settle(store, versions)
        roles: dict[str, Role] = {versions.serving.physical: "serving"}
        if versions.next:
            roles[versions.next.physical] = "next"
        if versions.previous:
            roles[versions.previous.physical] = "previous"
        free = unused(store, versions.name)
        others = [name for name in collection.versions(store, versions.name) if name not in roles]
        roles |= {name: "unused" if name in free else "other" for name in others}
        return [_listed(store, versions, name, role) for name, role in roles.items()]


_SINCE: dict[Role, tuple[str, ...]] = {
    "serving": ("promoted", "rolled_back"),
    "next": ("began",),
    "previous": ("replaced",),
}


def _listed(store: Store, versions: Versions, physical: str, role: Role) -> Listed:
    contract = Contract.read(collection.read_metadata(store, physical), physical)
    said, held = read_record(store, physical), count_stored(store, physical)
    version = Version(versions.name, physical, contract)
    return Listed(
        role,
        physical,
        contract.model,
        contract.encoder_version,
        contract.dims,
        contract.codes.bits if contract.codes else 0,
        held.documents,
        held.points,
        held.points * version.vector_bytes,
        count_points(store, version),
        tuple(sorted(set(contract.compatible.values()))),
        max((said.get(name, "") for name in _SINCE.get(role, ())), default=""),
        said.get("way", ""),
    )
