"""The head alone, on random token states: what onnxruntime makes of it against numpy, row by row."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from pipeline.encoders.folder import ACTIVATIONS, POOLING_MODES, Dense, Head
from pipeline.encoders.graph import apply_head
from pipeline.encoders.head import OUTPUT, append_head

RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(size=(3, 5, 8)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=np.int64)
OPSETS = (11, 13, 17, 23)


def run(head, opset, states=STATES, mask=MASK, kind=TensorProto.FLOAT):
    shape = ["n", "length", 8]
    value = helper.make_tensor_value_info("given", kind, shape)
    attention = helper.make_tensor_value_info("attention_mask", TensorProto.INT64, shape[:2])
    node = helper.make_node("Identity", ["given"], ["states"])
    body = helper.make_graph([node], "body", [value, attention], [value])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    append_head(model, ["states"], head)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run([OUTPUT], {"given": states, "attention_mask": mask})[0]


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("mode", POOLING_MODES)
def test_a_pooling_mode(mode, opset):
    head = Head((mode,), ())

    np.testing.assert_allclose(run(head, opset), apply_head(head, STATES, MASK), atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
def test_joined_poolings_are_normalised_together(opset):
    head = Head(("cls", "max", "mean"), ("normalize",))

    vectors = run(head, opset)

    assert vectors.shape == (3, 24)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, apply_head(head, STATES, MASK), atol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("activation", ACTIVATIONS.values())
def test_a_dense_layer(tmp_path, activation, opset):
    weights = {"linear.weight": RANDOM.normal(size=(4, 8)), "linear.bias": RANDOM.normal(size=4)}
    save_file(
        {name: value.astype(np.float32) for name, value in weights.items()}, tmp_path / "model.safetensors"
    )
    head = Head(("mean",), (Dense(tmp_path / "model.safetensors", 8, 4, True, activation), "normalize"))

    np.testing.assert_allclose(run(head, opset), apply_head(head, STATES, MASK), atol=1e-6)


@pytest.mark.parametrize("mode", POOLING_MODES)
def test_padding_says_nothing(mode):
    other = STATES + 100 * (MASK == 0)[:, :, None].astype(np.float32)

    np.testing.assert_array_equal(run(Head((mode,), ()), 23, other), run(Head((mode,), ()), 23))


def test_a_vector_of_zeros_stays_finite():
    assert np.isfinite(run(Head(("mean",), ("normalize",)), 23, np.zeros_like(STATES))).all()


def test_states_of_half_precision_are_pooled_in_full():
    large = np.full((1, 2000, 8), 60.0, dtype=np.float16)  # the sum is beyond what fp16 holds

    vectors = run(Head(("mean",), ()), 23, large, np.ones((1, 2000), dtype=np.int64), TensorProto.FLOAT16)

    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, 60, rtol=1e-6)
