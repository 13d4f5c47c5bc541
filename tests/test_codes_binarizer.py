"""Codes: the same bits from numpy, onnxruntime and torch, packed and scored exactly; folders that say what they are."""

import json
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from pipeline.codes import (
    BinarizerSpec,
    from_values,
    inner_products,
    load_codes,
    make_binarizer,
    pack,
    save_codes,
    to_values,
    unpack,
)
from pipeline.codes.binarizer import Binarizer, Layer, apply, on_grid, to_unit
from pipeline.codes.graph import append_binarizer, to_graph
from pipeline.codes.network import BinarizerNetwork
from pipeline.errors import EncoderError, UsageError

BITS = [1, 2, 3, 4]


def vectors(n, width=48, seed=0):
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((n, width)) @ generator.standard_normal((width, width)) + 0.5
    return mixed.astype(np.float32)


def deep_binarizer(bits, width=48, dims=40, hidden=24, seed=3):
    """Blocks with two hidden layers and skewed biases."""
    generator = np.random.default_rng(seed)

    def block(wide, out, largest):
        sizes = [wide, hidden, hidden, out]
        layers = [
            (generator.standard_normal((b, a)) / np.sqrt(a), generator.standard_normal(b) * 0.3)
            for a, b in pairwise(sizes)
        ]
        return on_grid(layers, largest)

    later = range(bits - 1)
    return Binarizer(
        BinarizerSpec("learned", "v1", width, dims, bits, "norm"),
        block(width, dims, 1.0),
        tuple(block(dims, width, 2.0) for _ in later),
        tuple(block(width, dims, 2.0) for _ in later),
        generator.standard_normal((dims, width)).astype(np.float32),
        np.zeros(width, np.float32),
    )


def run_graph(model, feeds):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["codes", "scales"], feeds)


@pytest.mark.parametrize("bits", BITS)
def test_onnxruntime_gives_the_same_bits_as_numpy(bits):
    rows = vectors(10_000, 32)
    for binarizer in (deep_binarizer(bits, 32), make_binarizer("itq", rows[:300], 32, bits)):
        codes = binarizer.encode(rows)
        packed, scales = run_graph(to_graph(binarizer), {"vectors": rows})
        assert (packed == codes.packed).all()
        np.testing.assert_allclose(scales[:, 0], codes.scale, rtol=1e-4)
        share = np.unpackbits(packed).mean()
        assert 0.2 < share < 0.8, "codes that are all alike show nothing"


@pytest.mark.parametrize("bits", BITS)
def test_a_vector_has_one_code_whatever_the_batch_and_order_of_additions(bits):
    rows = vectors(300)
    binarizer = deep_binarizer(bits)
    whole = binarizer.encode(rows)
    alone = np.concatenate([binarizer.encode(rows[n : n + 1]).packed for n in range(len(rows))])
    assert (whole.packed == alone).all()
    # the same sums in another order
    order = np.random.default_rng(1).permutation(48)
    first = tuple(
        layer._replace(weight=layer.weight[:, order]) if n == 0 else layer
        for n, layer in enumerate(binarizer.first)
    )
    flipped = replace(binarizer, first=first, spec=replace(binarizer.spec, bits=1), rebuild=(), refine=())
    unit = to_unit(rows.astype(np.float64))
    assert (flipped.planes(unit[:, order])[:, 0] == binarizer.planes(unit)[:, 0]).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("hidden", [0, 32])
def test_the_folded_network_codes_as_torch_does_but_for_signs_of_almost_nothing(bits, hidden):
    import torch

    rows = vectors(500)
    network = BinarizerNetwork(make_binarizer("rotation", rows, 48, bits), hidden, 2)
    unit = to_unit(rows.astype(np.float64))
    with torch.no_grad():
        for _ in range(20):
            network(torch.from_numpy(unit).float())  # batch normalisation learns what it will fold
        network.eval().double()
        expected = network(torch.from_numpy(unit)).numpy()
        near = np.abs(network.first(torch.from_numpy(unit)).numpy()).min(axis=1) < 1e-4
    folded = network.float().fold(BinarizerSpec("learned", "", 48, 48, bits, "norm"))
    got = to_values(folded.planes(unit)) / 2.0 ** (bits - 1)
    differing = (got != expected).any(axis=1)
    assert (differing & ~near).mean() < 0.01 * bits
    assert (np.sign(got)[~near] == np.sign(expected)[~near]).mean() > 0.9999


def test_sums_are_exact_so_that_no_order_of_additions_can_change_a_sign():
    generator = np.random.default_rng(4)
    unit = to_unit(generator.standard_normal((3, 768)))
    ((weight, bias),) = on_grid(
        [(14 * generator.standard_normal((16, 768)), generator.standard_normal(16))], 1.0
    )
    found = apply((Layer(weight, bias),), unit)
    for row, sums in zip(unit, found, strict=True):
        for weights, start, total in zip(weight, bias, sums, strict=True):
            products = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(weights, row, strict=True)]
            assert Fraction(float(total)) == sum(products, Fraction(float(start)))


def test_the_sign_of_nothing_is_minus_one_everywhere():
    spec = BinarizerSpec("sign", "", 8, 8, 1, "projection")
    identity = on_grid([(np.eye(8), np.zeros(8))], 1.0)
    binarizer = Binarizer(spec, identity, (), (), np.eye(8, dtype=np.float32), np.zeros(8, np.float32))
    rows = np.array([[0] * 8, [0, 1, 0, -1, 0, -0.0, 1e-30, 2]], np.float32)
    expected = pack(np.array([[[0] * 8], [[0, 1, 0, 0, 0, 0, 0, 1]]], bool))
    assert (binarizer.encode(rows).packed == expected).all()
    assert (run_graph(to_graph(binarizer), {"vectors": rows})[0] == expected).all()


def test_only_codes_leave_a_graph_with_a_binarizer_behind_it():
    rows = vectors(50)
    binarizer = deep_binarizer(2)
    value = helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["batch", 48])
    given_rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 48])
    node = helper.make_node("Neg", ["rows"], ["sentence_embedding"])
    graph = helper.make_graph([node], "encoder", [given_rows], [value])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    append_binarizer(model, binarizer)
    assert [output.name for output in model.graph.output] == ["codes", "scales"]
    assert (run_graph(model, {"rows": rows})[0] == binarizer.encode(-rows).packed).all()


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 5), st.integers(0, 2**32 - 1))
def test_packing_loses_nothing_and_values_are_what_the_planes_say(bits, eighths, n, seed):
    planes = np.random.default_rng(seed).random((n, bits, 8 * eighths)) < 0.7
    packed = pack(planes)
    assert packed.shape == (n, bits * eighths)
    assert (unpack(packed, bits) == planes).all()
    values = to_values(planes)
    assert (from_values(values, bits) == packed).all()
    signs = np.where(planes, 1.0, -1.0)
    expected = sum(signs[:, t] * 2.0**-t for t in range(bits)) * 2 ** (bits - 1)
    assert (values == expected).all()
    assert ((values > 0) == planes[:, 0]).all()


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_scores_are_the_weighted_hamming_distances_of_all_pairs_of_planes(bits, eighths, seed):
    generator = np.random.default_rng(seed)
    left, right = (generator.random((3, bits, 8 * eighths)) < 0.9 for _ in range(2))  # skewed
    expected = np.zeros((3, 3), np.int64)
    for i in range(bits):
        for j in range(bits):
            different = (left[:, None, i] ^ right[None, :, j]).sum(axis=2)
            expected += (8 * eighths - 2 * different) << (2 * bits - 2 - i - j)
    assert (inner_products(to_values(left), to_values(right)) == expected).all()


def test_codes_of_different_shapes_are_not_compared():
    with pytest.raises(UsageError, match="8 and 16 dimensions"):
        inner_products(np.ones((1, 8), np.int8), np.ones((1, 16), np.int8))
    with pytest.raises(UsageError, match="7 bytes"):
        unpack(np.zeros((1, 7), np.uint8), 2)


@pytest.mark.parametrize(("bits", "cosine"), [(1, 0.78), (2, 0.92), (3, 0.96), (4, 0.975)])
def test_more_bits_keep_more_of_the_vectors(bits, cosine):
    rows = np.random.default_rng(0).standard_normal((500, 64)).astype(np.float32)
    binarizer = make_binarizer("rotation", rows, 64, bits, centre=False)
    values = to_values(unpack(binarizer.encode(rows).packed, bits)).astype(np.float32)
    targets = rows @ binarizer.query.T
    norms = np.linalg.norm(values, axis=1) * np.linalg.norm(targets, axis=1)
    assert cosine < ((values * targets).sum(axis=1) / norms).mean() < cosine + 0.03


def test_scaled_codes_have_the_inner_product_of_a_vector_with_itself():
    rows = vectors(200)
    binarizer = make_binarizer("itq", rows, 48, 2)
    codes = binarizer.encode(rows)
    values = to_values(unpack(codes.packed, 2)) * codes.scale[:, None]
    unit = to_unit(rows.astype(np.float64)).astype(np.float32) - binarizer.mean
    np.testing.assert_allclose((values * (unit @ binarizer.query.T)).sum(1), (unit**2).sum(1), rtol=1e-4)


@pytest.mark.parametrize("bits", [1, 3])
def test_a_folder_gives_back_the_same_codes(tmp_path, bits):
    rows = vectors(64)
    binarizer = deep_binarizer(bits)
    save_codes(binarizer, tmp_path / "codes")
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "codes").iterdir()} == {0o644}
    again = load_codes(tmp_path / "codes", "v1")
    assert again.fingerprint == binarizer.fingerprint
    assert again.spec == binarizer.spec
    assert (again.encode(rows).packed == binarizer.encode(rows).packed).all()
    with pytest.raises(EncoderError, match="holds codes already"):
        save_codes(binarizer, tmp_path / "codes")


def test_every_weight_changes_the_fingerprint():
    binarizer = deep_binarizer(2)
    seen = {
        binarizer.fingerprint,
        replace(binarizer, spec=replace(binarizer.spec, scale="projection")).fingerprint,
    }
    for tensor in binarizer.tensors().values():
        before = tensor.flat[0].copy()
        tensor.flat[0] += 0.5
        seen.add(replace(binarizer).fingerprint)
        tensor.flat[0] = before
    assert len(seen) == 2 + len(binarizer.tensors())


def test_codes_of_another_encoder_or_damaged_ones_are_refused(tmp_path):
    folder = tmp_path / "codes"
    save_codes(deep_binarizer(2), folder)
    with pytest.raises(EncoderError, match="encoder version v1, for an encoder of version v2"):
        load_codes(folder, "v2")
    said = json.loads((folder / "binarizer.json").read_text())
    (folder / "binarizer.json").write_text(json.dumps({**said, "fingerprint": "0" * 64}))
    with pytest.raises(EncoderError, match="not those"):
        load_codes(folder)
    (folder / "binarizer.safetensors").write_bytes(b"none")
    with pytest.raises(EncoderError, match="no codes can be read"):
        load_codes(folder)
    with pytest.raises(EncoderError, match="no codes can be read"):
        load_codes(tmp_path / "nothing")


def test_bad_vectors_are_refused():
    rows = vectors(300)
    binarizer = deep_binarizer(1)
    with pytest.raises(EncoderError, match=r"\(300, 47\)"):
        binarizer.encode(rows[:, 1:])
    rows[7, 3] = np.nan
    with pytest.raises(EncoderError, match="1 of 300 vectors with NaN"):
        binarizer.encode(rows)
    with pytest.raises(EncoderError, match="1 of 300 vectors with NaN"):
        make_binarizer("itq", rows, 48, 1)
    rows[:, 3] = 1.0
    with pytest.raises(EncoderError, match="1 of 48 dimensions are the same in all 300"):
        make_binarizer("sign", rows, 48, 1)
    with pytest.raises(EncoderError, match="At least 48 vectors"):
        make_binarizer("itq", vectors(20), 48, 1)
    with pytest.raises(EncoderError, match="At most 48"):
        make_binarizer("pca", vectors(200), 64, 1)
    with pytest.raises(EncoderError, match="5 bits over 12 dimensions"):
        BinarizerSpec("sign", "", 48, 12, 5, "norm")
    with pytest.raises(EncoderError, match="Finite weights"):
        on_grid([(np.full((2, 2), np.inf), np.zeros(2))], 1.0)
