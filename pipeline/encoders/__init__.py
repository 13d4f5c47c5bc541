"""Encoders: from a model's files to vectors that do not depend on the batch they were computed in.

locate      where a model's files are: a folder, a hub id, `package:NAME`
folder      what is in them, read without running anything; what is refused
spec        EncoderSpec: everything that changes a vector, and its version
export      transformer → ONNX graph by torch; graph: an ONNX graph that the folder brings
head        pooling, dense layers and normalisation inside the graph
fp16, int8  the transformer's graph at another precision
parity      the gate: an exported graph must reproduce the model it was made from
coded       codes: a binarizer behind the graph
prepare     the cache of exported graphs, built once, behind the gate
batching    length-sorted batches under a token budget
session     Encoder: the graph, run by onnxruntime

torch, transformers and onnx are loaded by an export only; onnxruntime when an encoder is opened.
"""

from __future__ import annotations

from pipeline.encoders.prepare import prepare
from pipeline.encoders.session import Encoder, load_encoder, load_plain_encoder, prepare_encoder
from pipeline.encoders.spec import EncoderSpec, codes_folder, describe

__all__ = [
    "Encoder",
    "EncoderSpec",
    "codes_folder",
    "describe",
    "load_encoder",
    "load_plain_encoder",
    "prepare",
    "prepare_encoder",
]
