"""Encoders: from a model's files to vectors that do not depend on the batch they were computed in.

locate      where a model's files are: a folder, a hub id, `package:NAME`
folder      what is in them, read without running anything; what is refused
spec        EncoderSpec: everything that changes a vector, and its version
describe    settings → EncoderSpec
exported    an exported encoder's folder and its manifest; hashes: what versions are made of
elastic     the first dimensions of vectors, the first layers of a model
positions   what a model knows of a token's place
long        texts beyond a model's window: which methods it allows; extended, rotary: other positions, in torch;
            pieces: windows; late: chunks out of whole documents
stock       a model as torch runs it: loaded, its vectors, its tokenizer
exporting   transformer → ONNX graph by torch; graph: an ONNX graph that the folder brings
head        pooling, dense layers and normalisation inside the graph; writer: how its nodes are written
fp16, int8  the transformer's graph at another precision
parity      the gate: an exported graph must reproduce the model it was made from
coded       codes: a binarizer behind the graph
space       an affine map behind the vectors, fitted on a sample; spaced: encoders with one
decoders/   encoders out of decoder-only language models: prompts, Token Prepending, trained poolings, GGUF files
prepare     graphs exported into the cache or a folder of their own, built once, behind the gate
checking    an exported encoder held to the model it was made from
batching    length-sorted batches under a token budget
running     rows through the graph, in batches that are halved where memory ends
session     Encoder: inputs to rows, and what the graph gives to vectors
aspects     which further vectors a point has, and which of them one run makes; composite: an encoder with its aspects
exits       one graph for several exits of a model; merging: what such a graph is made of

torch, transformers and onnx are loaded by an export only; onnxruntime when an encoder is opened.
"""

from __future__ import annotations

from pipeline.encoders.aspects import MAIN, check_late, describe_aspects, prepare_aspects
from pipeline.encoders.checking import check
from pipeline.encoders.composite import CompositeEncoder, Reading, load_encoders
from pipeline.encoders.describe import codes_folder, describe
from pipeline.encoders.prepare import export, prepare
from pipeline.encoders.session import Encoder, load_encoder, load_plain_encoder, prepare_encoder
from pipeline.encoders.spaced import export_spaced, read_sample
from pipeline.encoders.spec import EncoderSpec

__all__ = [
    "MAIN",
    "CompositeEncoder",
    "Encoder",
    "EncoderSpec",
    "Reading",
    "check",
    "check_late",
    "codes_folder",
    "describe",
    "describe_aspects",
    "export",
    "export_spaced",
    "load_encoder",
    "load_encoders",
    "load_plain_encoder",
    "prepare",
    "prepare_aspects",
    "prepare_encoder",
    "read_sample",
]
