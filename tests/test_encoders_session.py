from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.config import EncoderConfig
from pipeline.encoders import Encoder, describe, load_encoder
from pipeline.encoders.running import Runner, default_batch_tokens
from pipeline.encoders.runtime import cuda_devices, is_out_of_memory
from pipeline.errors import EncoderError, InputsTooLarge, ProviderError

RANDOM = np.random.default_rng(0)


def inputs(*lengths):
    return [RANDOM.integers(1000, 30000, size=n).astype(np.int32) for n in lengths]


@pytest.fixture(scope="module")
def encoder(tiny_model, encoder_cache):
    return load_encoder(EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), batch_tokens=64))


class FakeRun:
    """A session with memory for so many tokens a batch; a vector is its input's first token and length."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.shapes: list[tuple[int, int]] = []

    def __call__(self, ids, mask):
        self.shapes.append(ids.shape)
        if ids.size > self.room:
            raise RuntimeError(f"Failed to allocate memory for requested buffer of size {ids.size}")
        vectors = np.zeros((len(ids), 32), dtype=np.float32)
        vectors[:, 0], vectors[:, 1] = ids[:, 0], mask.sum(axis=1)
        return vectors


def fake_encoder(encoder, room, batch_tokens=1024):
    run = FakeRun(room)
    tokenizers = encoder.tokenizer, encoder.query_tokenizer
    return run, Encoder(encoder.spec, Runner(run, 0, batch_tokens), tokenizers, provider="cpu")


def test_rows_come_back_in_the_order_given(encoder):
    _, fake = fake_encoder(encoder, room=1 << 20, batch_tokens=100)
    rows = inputs(*RANDOM.integers(1, 64, size=100))

    vectors = fake.encode(rows)

    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [row[0] for row in rows]
    assert vectors[:, 1].tolist() == [len(row) for row in rows]


def test_batches_that_do_not_fit_are_halved_until_they_do(encoder):
    run, fake = fake_encoder(encoder, room=100)
    rows = inputs(*[50] * 20)

    vectors = fake.encode(rows)

    assert vectors[:, 0].tolist() == [row[0] for row in rows]
    assert max(rows * length for rows, length in run.shapes[1:]) <= 500
    run.shapes.clear()
    fake.encode(rows)
    assert all(size[0] * size[1] <= 100 for size in run.shapes), "what was learnt is kept"


def test_inputs_that_do_not_fit_are_named_when_all_others_are_done(encoder):
    _, fake = fake_encoder(encoder, room=40)
    rows = inputs(50, 3, 50, 40)

    with pytest.raises(
        InputsTooLarge, match=r"2 of 4 inputs.*of 50 tokens\. Memory for a single input"
    ) as caught:
        fake.encode(rows)

    assert sorted(caught.value.rows) == [0, 2]
    assert np.isnan(caught.value.vectors[[0, 2]]).all()
    assert caught.value.vectors[[1, 3], 0].tolist() == [rows[1][0], rows[3][0]]


def test_onnxruntime_out_of_memory_halves_the_batch(encoder, tiny_model, encoder_cache):
    rows = inputs(*[64] * 1024)
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY, str(tiny_model), str(encoder_cache)],
        input=np.stack(rows).tobytes(), capture_output=True, check=True,
    )  # fmt: skip
    assert b"out_of_memory batch_tokens=65536 going_on_with=32768" in done.stderr
    vectors = np.frombuffer(done.stdout, np.float32).reshape(1024, 32)
    np.testing.assert_allclose(vectors, encoder.encode(rows), atol=1e-5)


OUT_OF_MEMORY = """
import resource, sys
import numpy as np
import psutil
from pipeline.config import EncoderConfig
from pipeline.encoders import load_encoder

model, cache = sys.argv[1:]
encoder = load_encoder(EncoderConfig(model=model, cache=cache, provider="cpu", threads=1, batch_tokens=1 << 16))
rows = list(np.frombuffer(sys.stdin.buffer.read(), np.int32).reshape(1024, 64))
encoder.encode(rows[:1])
room = psutil.Process().memory_info().vms + (ROOM << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
sys.stdout.buffer.write(encoder.encode(rows).tobytes())
""".replace("ROOM", "48")


def test_another_failure_is_not_tried_again(encoder):
    run, fake = fake_encoder(encoder, room=1 << 20)

    def fail(ids, mask):
        run(ids, mask)
        raise RuntimeError("index out of range")

    fake.runner = Runner(fail, 0, 1024)
    with pytest.raises(EncoderError, match="index out of range"):
        fake.encode(inputs(5, 5))
    assert len(run.shapes) == 1


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("Failed to allocate memory for requested buffer of size 4294967296", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", True),
        ("std::bad_alloc", True),
        ("Invalid rank for input: input_ids", False),
        ("CUDA failure 700: an illegal memory access was encountered", False),
    ],
)
def test_out_of_memory_is_known_by_its_words(message, expected):
    assert is_out_of_memory(RuntimeError(message)) is expected


def test_nothing_gives_nothing(encoder):
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.encode_queries([]).shape == (0, 32)


def test_what_does_not_fit_the_model_is_refused_and_not_cut(encoder):
    with pytest.raises(EncoderError, match=r"65 tokens\. At most 64"):
        encoder.encode(inputs(3, 65))
    with pytest.raises(EncoderError, match="without a token"):
        encoder.encode([np.array([], dtype=np.int32)])


def test_a_long_query_is_cut_with_a_warning(encoder, caplog):
    long, cut = encoder.encode_queries(["water " * 500, "water " * 62])

    assert "query_cut tokens=502 kept=64" in caplog.text
    np.testing.assert_allclose(long, cut, atol=1e-6)


def test_a_closed_encoder_says_so(encoder):
    _, fake = fake_encoder(encoder, room=1 << 20)
    fake.close()

    with pytest.raises(EncoderError, match="closed"):
        fake.encode(inputs(3))


def test_several_threads_may_encode_at_once(encoder):
    rows = inputs(*RANDOM.integers(1, 64, size=60))
    expected = encoder.encode(rows)

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: encoder.encode(rows), range(8)))

    for vectors in results:
        np.testing.assert_array_equal(vectors, expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_a_vector_does_not_depend_on_its_batch_mates(tiny_model, encoder_cache, precision):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), precision=precision)
    encoder = load_encoder(config)
    rows = inputs(64, 3, 17, 17, 40, 1, 64, 8)

    together = encoder.encode(rows)

    alone = np.concatenate([encoder.encode([row]) for row in rows])
    # fp16 rounds each sum's last bit, and sums over padding may be taken in another order
    np.testing.assert_allclose(together, alone, atol=1e-3 if precision == "fp16" else 1e-6)


def test_prompts_go_before_documents_and_queries(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    plain = load_encoder(config)
    prompted = load_encoder(
        config.model_copy(update={"document_prompt": "passage: ", "query_prompt": "query: "})
    )

    (vector,) = prompted.encode([prompted.tokenizer.encode("water")])

    np.testing.assert_allclose(vector, plain.encode_queries(["passage: water"])[0], atol=1e-6)
    np.testing.assert_allclose(
        prompted.encode_queries(["water"]), plain.encode_queries(["query: water"]), atol=1e-6
    )
    assert prompted.spec.version != plain.spec.version


def test_the_budget_follows_the_provider_and_its_threads_unless_set(encoder, tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), provider="cpu", threads=8)

    assert encoder.batch_tokens == 64
    assert load_encoder(config).batch_tokens == default_batch_tokens("cpu", 8)
    assert default_batch_tokens("cpu", 1) < default_batch_tokens("cpu", 8) < default_batch_tokens("cuda", 8)


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")
def test_cuda_that_is_not_there_is_an_error_and_not_the_cpu(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), provider="cuda")

    with pytest.raises(ProviderError, match=r"provider is cuda.*headwater\[gpu\]"):
        load_encoder(config)
    assert load_encoder(config.model_copy(update={"provider": "auto"})).provider == "cpu"


@pytest.mark.skipif(cuda_devices() > 0, reason="this machine has a GPU")
def test_a_session_that_fell_back_to_the_cpu_is_not_taken_for_cuda(
    tiny_model, encoder_cache, monkeypatch, caplog
):
    monkeypatch.setattr(
        "pipeline.encoders.runtime.cuda_devices", lambda: 1
    )  # a GPU, and no library to use it
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), provider="cuda")

    with pytest.raises(ProviderError, match="onnxruntime cannot use it"):
        load_encoder(config)
    assert load_encoder(config.model_copy(update={"provider": "auto"})).provider == "cpu"
    assert "gpus_not_used" in caplog.text


def test_int8_is_for_the_cpu(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache), precision="int8", provider="cuda")

    with pytest.raises(ProviderError, match="fp16 for a GPU"):
        load_encoder(config)


def test_opening_a_prepared_encoder_loads_no_torch(tiny_model, encoder_cache):
    config = EncoderConfig(model=str(tiny_model), cache=str(encoder_cache))
    load_encoder(config)
    code = (
        "import sys\n"
        "from pipeline.config import EncoderConfig\n"
        "from pipeline.encoders import load_encoder\n"
        f"load_encoder(EncoderConfig(model={config.model!r}, cache={config.cache!r})).encode_queries(['water'])\n"
        "print(sorted({'torch', 'transformers', 'onnx', 'sentence_transformers'} & set(sys.modules)))"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"


def test_a_graph_that_cannot_be_loaded_names_its_folder(encoder, tmp_path, tiny_model):
    (tmp_path / "model.onnx").write_bytes(b"not a graph")

    with pytest.raises(EncoderError, match=f"Delete {tmp_path}"):
        Encoder.open(describe(EncoderConfig(model=str(tiny_model))), tmp_path, EncoderConfig())
