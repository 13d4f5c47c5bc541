"""Graphs of several exits of one model in one: equal outputs, and what they share is there once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.encoders.exported import OUTPUT, exit_output
from pipeline.encoders.merging import merge_graphs
from pipeline.encoders.runtime import open_session
from pipeline.errors import EncoderError

WIDTH, VOCABULARY = 8, 16
INPUTS = [(np.arange(6).reshape(2, 3), np.ones((2, 3), np.int64)), (np.array([[7]]), np.array([[1]]))]


def write(folder: Path, name: str, layers: int, seed: int = 0, branch: bool = False) -> Path:
    """A model of embeddings, layers of a product and a tanh, and a mean; its nodes have no names, as some have none."""
    draw = np.random.default_rng(seed)
    weights = [
        draw.normal(size=shape).astype(np.float32) for shape in [(VOCABULARY, WIDTH), *[(WIDTH, WIDTH)] * 3]
    ]
    tensors = [numpy_helper.from_array(each, f"{name}.{n}") for n, each in enumerate(weights[: layers + 1])]
    tensors.append(numpy_helper.from_array(np.array([1]), "axis"))
    nodes = [helper.make_node("Gather", [tensors[0].name, "input_ids"], ["state0"])]
    for n in range(1, layers + 1):
        nodes.append(helper.make_node("MatMul", [f"state{n - 1}", tensors[n].name], [f"product{n}"]))
        nodes.append(helper.make_node("Tanh", [f"product{n}"], [f"state{n}"]))
    last = f"state{layers}"
    if branch:
        inner = helper.make_graph(
            [], "same", [], [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)]
        )
        true = helper.make_node("Constant", [], ["true"], value=numpy_helper.from_array(np.array(True)))
        nodes += [true, helper.make_node("If", ["true"], ["chosen"], then_branch=inner, else_branch=inner)]
        last = "chosen"
    nodes.append(helper.make_node("ReduceMean", [last, "axis"], [OUTPUT], keepdims=0))
    inputs = [
        helper.make_tensor_value_info(n, TensorProto.INT64, ["n", "l"])
        for n in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", WIDTH])
    graph = helper.make_graph(nodes, "g", inputs, [output], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
        str(folder / name),
    )
    return folder / name


def vectors(file: Path, output: str) -> list[np.ndarray]:
    session = open_session(file, "cpu")
    return [session.run([output], {"input_ids": i, "attention_mask": m})[0] for i, m in INPUTS]


def count(file: Path, kind: str) -> int:
    return sum(node.op_type == kind for node in onnx.load(str(file)).graph.node)


def test_exits_share_their_layers_and_weights_and_give_what_each_gives_alone(tmp_path):
    files = [write(tmp_path, "a", 3), write(tmp_path, "b", 1), write(tmp_path, "c", 2)]
    figures = merge_graphs(files, tmp_path / "merged", INPUTS)
    assert {one.difference for one in figures.values()} == {0.0}
    assert len(figures) == 6
    for place, file in enumerate(files):
        for got, expected in zip(
            vectors(tmp_path / "merged", exit_output(place)), vectors(file, OUTPUT), strict=True
        ):
            np.testing.assert_array_equal(got, expected)
    assert (count(tmp_path / "merged", "MatMul"), count(tmp_path / "merged", "ReduceMean")) == (3, 3)
    assert len(onnx.load(str(tmp_path / "merged")).graph.initializer) == 5


def test_models_that_have_nothing_in_common_keep_their_own(tmp_path):
    files = [write(tmp_path, "a", 2), write(tmp_path, "b", 2, seed=1)]
    merge_graphs(files, tmp_path / "merged", INPUTS)
    assert (count(tmp_path / "merged", "MatMul"), count(tmp_path / "merged", "Gather")) == (4, 2)
    first, second = (vectors(tmp_path / "merged", exit_output(place))[0] for place in (0, 1))
    assert np.abs(first - second).max() > 0.1


def test_a_graph_with_branches_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="branches"):
        merge_graphs([write(tmp_path, "a", 2), write(tmp_path, "b", 1, branch=True)], tmp_path / "m", INPUTS)
    assert not (tmp_path / "m").exists()
