"""A graph in fp16 or int8."""

from __future__ import annotations

import onnx


def convert(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """The same graph at a precision."""
    if precision != "fp32":
        raise NotImplementedError
    return model
