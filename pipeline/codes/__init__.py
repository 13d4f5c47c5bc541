"""Binary codes: learned recurrent binarization and codes that need no training. numpy, until something is trained.

packing      codes as bytes and as integers; exact integer scores
binarizer    vectors → codes, the same bits on every machine
untrained    sign, rotation, PCA, ITQ as binarizers
quantizers   int8, int4, product quantization: what codes are compared with
network      the binarizer in torch
training     from float vectors and pairs to a binarizer
graph        the binarizer in ONNX, behind an encoder
layout       codes as a store ranks by them
folder       a codes folder on disk
"""

from pipeline.codes.binarizer import Binarizer, BinarizerSpec, Codes
from pipeline.codes.folder import load_codes, save_codes
from pipeline.codes.layout import LAYOUT, CodesSpec, Room, codes_room, query_rows, to_rows
from pipeline.codes.packing import from_values, inner_products, pack, to_values, unpack
from pipeline.codes.untrained import make_binarizer

__all__ = [
    "LAYOUT",
    "Binarizer",
    "BinarizerSpec",
    "Codes",
    "CodesSpec",
    "Room",
    "codes_room",
    "from_values",
    "inner_products",
    "load_codes",
    "make_binarizer",
    "pack",
    "query_rows",
    "save_codes",
    "to_rows",
    "to_values",
    "unpack",
]
