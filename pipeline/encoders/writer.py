"""Nodes of a graph, written one after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper


@dataclass
class Writer:
    """Nodes and constants of a graph, as they are added; names begin with `prefix`."""

    opset: int
    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:  # noqa: ANN401 - an operator's own
        """Add a node and return the name of its output."""
        name = f"{self.prefix}{len(self.nodes)}.{op}"
        output = output or name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def constant(self, value: NDArray[Any]) -> str:
        """Add a constant and return its name."""
        name = f"{self.prefix}constant.{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 scalar and return its name."""
        return self.constant(np.array(value, dtype=np.float32))

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes the rest."""
        return self.node("Reshape", value, self.constant(np.array(shape, dtype=np.int64)))

    def reduce(self, op: str, value: str, axis: int, keepdims: int) -> str:
        """Reduce along one axis; ReduceMax and ReduceL2 take it as an input since opset 18."""
        if self.opset < 18:
            return self.node(op, value, axes=[axis], keepdims=keepdims)
        return self.node(op, value, self.constant(np.array([axis], dtype=np.int64)), keepdims=keepdims)

    def gelu(self, value: str) -> str:
        """x/2 (1 + erf(x/√2)); the operator is younger than opset 11."""
        erf = self.node("Erf", self.node("Mul", value, self.scalar(0.5**0.5)))
        half = self.node("Mul", value, self.scalar(0.5))
        return self.node("Mul", half, self.node("Add", erf, self.scalar(1.0)))
