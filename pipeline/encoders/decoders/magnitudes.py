"""Values that half precision cannot hold: a few dimensions of language models' residual streams grow past it.

SmolLM2-135M's reach 22,983 from its 11th layer on, and their squares, of which its norms take the mean, 5e8; fp16
ends at 65,504. Measured on the gate's own inputs, at fp32.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import TensorProto, helper

from pipeline.encoders.exporting import save_graph
from pipeline.encoders.fp16 import float_values
from pipeline.encoders.head import INPUTS
from pipeline.encoders.parity import Inputs
from pipeline.encoders.runtime import open_session

# Half precision's largest number is 65,504; other texts than these may go four times as far.
_BOUND = 65504 / 4
# A mask's lowest number is hidden anyway, and becomes the lowest half.
_MASK = 1e30
_LONGEST = 512
_PREFIX = "magnitude."


def large_values(model: onnx.ModelProto, inputs: Inputs) -> set[str]:
    """The names of the graph's values that come near the end of half precision for these inputs."""
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    graph = probed.graph
    wanted = sorted(float_values(model) & {name for node in graph.node for name in node.output})
    for name in wanted:
        graph.node.append(helper.make_node("Abs", [name], [f"{_PREFIX}abs.{name}"]))
        graph.node.append(
            helper.make_node("ReduceMax", [f"{_PREFIX}abs.{name}"], [f"{_PREFIX}{name}"], keepdims=0)
        )
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(f"{_PREFIX}{name}", TensorProto.FLOAT, []) for name in wanted
    )
    with TemporaryDirectory() as scratch:
        save_graph(probed, Path(scratch) / "probed.onnx")
        session = open_session(Path(scratch) / "probed.onnx", "cpu", optimise=False)
    most = np.zeros(len(wanted))
    for ids, mask in inputs:
        if ids.shape[1] <= _LONGEST:
            found = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
            most = np.maximum(most, [np.nan_to_num(value, nan=np.inf) for value in found])
    return {name for name, value in zip(wanted, most, strict=True) if _BOUND < value < _MASK}
