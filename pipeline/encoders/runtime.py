"""onnxruntime sessions: which provider runs the graph, with how many threads, and what its errors mean."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Literal

from pipeline import logs
from pipeline.errors import ProviderError, first_line

# In onnxruntime 1.31 the CPU kernel of this fusion takes ten times as long as Add and LayerNormalization do
# one after the other: 13 % of a MiniLM run. Its CUDA kernel is fine.
_SLOW_ON_CPU = ["SkipLayerNormFusion"]
_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_OUT_OF_MEMORY = ("failed to allocate", "out of memory", "bad_alloc", "bad allocation", "alloc_failed")

log = logs.logger(__name__)


def open_session(
    graph: Path, provider: Literal["auto", "cpu", "cuda"], threads: int = 0, optimise: bool = True
) -> Any:  # noqa: ANN401 - an onnxruntime.InferenceSession; the library is not typed
    """Load a graph. "cuda" runs on a GPU or raises ProviderError; "auto" takes one where there is one.

    threads: of the CPU provider, 0 for one per core that this process may use.
    """
    if provider == "cpu":
        return _cpu_session(graph, threads, optimise)
    devices = cuda_devices()
    session, why = _cuda_session(graph) if devices else (None, "the driver shows no GPU")
    # asked for CUDA and not able to, onnxruntime logs an error and returns a session on the CPU
    if session is not None and session.get_providers()[0] == _CUDA:
        return session
    if provider == "cuda":
        raise ProviderError(
            f"encoder.provider is cuda and onnxruntime cannot use it: {why}",
            "An NVIDIA GPU, its driver, CUDA 13 and cuDNN 9",
            "Install headwater[gpu] on a machine with a GPU, or set encoder.provider to cpu or auto",
        )
    if devices:
        log.warning("gpus_not_used", gpus=devices, why=why, instead="the CPU")
    return _cpu_session(graph, threads, optimise)


def provider_of(session: Any) -> Literal["cpu", "cuda"]:  # noqa: ANN401
    """The provider that runs a session's graph."""
    return "cuda" if session.get_providers()[0] == _CUDA else "cpu"


def cuda_devices() -> int:
    """How many GPUs the NVIDIA driver shows to this process (CUDA_VISIBLE_DEVICES counts); 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def cpu_threads() -> int:
    """How many cores this process may use: its affinity and its container's quota, not the machine's count."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such control group, or "max": no quota
        return cores


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a run means that the batch was too large; onnxruntime says so in words only."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY)


def _cpu_session(graph: Path, threads: int, optimise: bool) -> Any:  # noqa: ANN401
    import onnxruntime

    options = _options(onnxruntime, optimise)
    options.intra_op_num_threads = threads or cpu_threads()
    # Waiting threads that spin win 2 % alone and lose more beside the threads that read and tokenize.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Without VNNI a CPU adds two products of 8 by 8 bits in 16 and saturates; this makes it take longer instead, so
    # that int8 gives the same vectors on every machine.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(
        str(graph), options, providers=[_CPU], disabled_optimizers=_SLOW_ON_CPU if optimise else None
    )


def _cuda_session(graph: Path) -> tuple[Any, str]:
    """A session that was asked for CUDA, and what kept it from it; None where even the CPU was not given."""
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return None, "this onnxruntime was built without CUDA"
    with redirect_stdout(sys.stderr):  # it prints what it does not find, and stdout belongs to the run's JSON
        onnxruntime.preload_dlls()  # CUDA and cuDNN from their wheels, where they are installed as such
    options = _options(onnxruntime, optimise=True)
    options.intra_op_num_threads = 1
    # the arena grows by what is asked for, not to the next power of two: lengths vary in every batch
    settings = {"arena_extend_strategy": "kSameAsRequested"}
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=[(_CUDA, settings), _CPU])
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors share no public base
        return None, first_line(error)
    return session, "a library of CUDA 13 or cuDNN 9 is missing"


def _options(onnxruntime: Any, optimise: bool) -> Any:  # noqa: ANN401
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, or found by asking for the provider
    options.inter_op_num_threads = 1
    # A plan of memory is kept for every shape seen, and here each batch has its own: 10 % more memory, no faster.
    options.enable_mem_pattern = False
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    return options
