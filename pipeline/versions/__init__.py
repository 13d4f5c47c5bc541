"""What a collection promises its readers, and how one encoder's vectors become comparable with another's.

contract       which encoder and chunker made the vectors, kept in the collection's own metadata
aspects        the same of a collection's further vectors
maps           from one space into another, in closed form
tuning         a map trained by the new encoder's ranking, in torch
balance        mapped and native vectors on one scale
bridge         the maps between two encoders, documents one way and queries the other
fitting        from vectors of the same texts to a bridge, chosen by held-out retrieval
bridge_folder  a bridge on disk
"""

from pipeline.versions.aspects import AspectContract
from pipeline.versions.bridge import Bridge, BridgeSpec
from pipeline.versions.bridge_folder import load_bridge, save_bridge
from pipeline.versions.contract import CodesContract, Contract
from pipeline.versions.fitting import BridgeOptions, fit_bridge

__all__ = [
    "AspectContract",
    "Bridge",
    "BridgeOptions",
    "BridgeSpec",
    "CodesContract",
    "Contract",
    "fit_bridge",
    "load_bridge",
    "save_bridge",
]
