"""Poolings with weights of their own: which of them a checkpoint brings, and what their tensors have to be.

latent-attention    as NV-Embed saves it: `latent_attention_model.…` among the checkpoint's tensors
multi-layer         as the code of "Pooling and Attention" (arXiv 2409.02727) saves it, a state of its own beside the
                    model: attn_pool.pt there, and here the same tensors in attn_pool.safetensors

Both are a cross-attention with trained latents and a gated feed-forward, each behind a LayerNorm and with a residual,
under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from pipeline.encoders.decoders.nvembed import latent_settings, pools_prompt
from pipeline.encoders.elastic import hidden_of, layers_of
from pipeline.encoders.folder import ModelFolder, TrainedPooling
from pipeline.errors import EncoderError, UsageError

LATENT, MULTI_LAYER = KINDS = ("latent-attention", "multi-layer")
BESIDE = "attn_pool.safetensors"

_PREFIX = "latent_attention_model."
# The number of heads that multi-layer pooling has in its authors' code, where no file says it.
_HEADS = 32
# How many times as wide the feed-forward is inside, in both.
_WIDER = 4

LATENTS, LAYERS = "latents", "pos_emb.weight"
ATTENTION, FEED_FORWARD = "cross_attend_blocks.0", "cross_attend_blocks.1"
QUERIES, KEYS_VALUES, OUT = (f"{ATTENTION}.fn.{name}.weight" for name in ("to_q", "to_kv", "to_out"))
WIDEN, NARROW = (f"{FEED_FORWARD}.fn.net.{place}" for place in (0, 2))
STATES_NORM, LATENTS_NORM, FEED_FORWARD_NORM = (
    f"{ATTENTION}.norm",
    f"{ATTENTION}.norm_context",
    f"{FEED_FORWARD}.norm",
)

Shapes = Mapping[str, tuple[int, ...]]


def brought(folder: ModelFolder) -> str:
    """The trained pooling that a checkpoint brings, by its configuration and files; "" for none."""
    if latent_settings(folder) is not None:
        return LATENT
    complete = (folder.root / "modules.json").is_file()  # it says itself what its states become
    return MULTI_LAYER if folder.language_model and not complete and (folder.root / BESIDE).is_file() else ""


def find_trained(folder: ModelFolder, kind: str) -> TrainedPooling:
    """A checkpoint's trained pooling of this kind, whose tensors are all there and fit the model.

    Raises UsageError where the checkpoint brings none of them, EncoderError where some are missing or of a wrong shape.
    """
    hidden = hidden_of(folder)
    if kind == LATENT:
        said = latent_settings(folder) or {}
        heads = _whole(folder, said, "num_cross_heads", 8)
        inner = heads * _whole(folder, said, "cross_dim_head", 4096)
        latents = _whole(folder, said, "num_latents_value", 512)
        files = folder.weights if folder.format == "safetensors" else ()
        found = TrainedPooling("latent-attention", files, _PREFIX, heads, pools_prompt(folder))
        _check(folder, found, _read_shapes(found), _expected(hidden, inner, latents))
        return found
    beside = folder.root / BESIDE
    found = TrainedPooling("multi-layer", (beside,) if beside.is_file() else (), "", _HEADS)
    shapes = _read_shapes(found)
    inner, latents, layers = ((shapes.get(name) or (0,))[0] for name in (QUERIES, LATENTS, LAYERS))
    wanted = _expected(hidden, max(inner // _HEADS, 1) * _HEADS, max(latents, 1))
    _check(folder, found, shapes, {**wanted, LAYERS: (max(layers, layers_of(folder)), hidden)})
    return found


def _whole(folder: ModelFolder, said: Mapping[str, Any], name: str, usual: int) -> int:
    value = said.get(name, usual)
    if type(value) is not int or value < 1:
        raise EncoderError(
            f"{name} = {value!r} in the settings of the latent attention of {folder.root}",
            "A whole number above 0",
            "Fetch the model again",
        )
    return value


def load_trained(trained: TrainedPooling) -> dict[str, NDArray[np.float32]]:
    """The tensors by their names, float32 whatever they were saved as; loads torch, as numpy knows no bfloat16."""
    tensors = {}
    for file in trained.files:
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - no mapping
                if name.startswith(trained.prefix):
                    tensors[name.removeprefix(trained.prefix)] = stored.get_tensor(name).float().numpy()
    return tensors


def _expected(hidden: int, inner: int, latents: int) -> dict[str, tuple[int, ...]]:
    """What the tensors of both are: `hidden` numbers in a state and a latent, `inner` in all heads together."""
    norms = (STATES_NORM, LATENTS_NORM, FEED_FORWARD_NORM)
    wide = _WIDER * hidden
    return {
        LATENTS: (latents, hidden),
        **{f"{norm}.{part}": (hidden,) for norm in norms for part in ("weight", "bias")},
        QUERIES: (inner, hidden),
        KEYS_VALUES: (2 * inner, hidden),
        OUT: (hidden, inner),
        f"{WIDEN}.weight": (2 * wide, hidden),
        f"{WIDEN}.bias": (2 * wide,),
        f"{NARROW}.weight": (hidden, wide),
        f"{NARROW}.bias": (hidden,),
    }


def _read_shapes(trained: TrainedPooling) -> dict[str, tuple[int, ...]]:
    found = {}
    for file in trained.files:
        try:
            with safe_open(file, framework="numpy") as stored:
                for name in stored.keys():  # noqa: SIM118 - no mapping
                    if name.startswith(trained.prefix):
                        shape = tuple(stored.get_slice(name).get_shape())
                        found[name.removeprefix(trained.prefix)] = shape
        except (SafetensorError, OSError) as error:
            raise EncoderError(
                f"{file} cannot be read: {error}", "A safetensors file", "Fetch the model again"
            ) from None
    return found


def _check(folder: ModelFolder, trained: TrainedPooling, found: Shapes, wanted: Shapes) -> None:
    names = [trained.prefix + name for name in wanted]
    where = BESIDE if trained.kind == MULTI_LAYER else "its safetensors"
    asked = f"encoder.decoder.pooling = {trained.kind!r}, and {folder.root}"
    if not found:
        raise UsageError(
            f"{asked} has none of its weights in {where}",
            f"A checkpoint that was trained with it: {', '.join(names)}",
            "Choose another pooling" + _pickle_hint(folder.root, trained),
        )
    missing = [trained.prefix + name for name in wanted if name not in found]
    if missing:
        raise EncoderError(
            f"{asked} lacks {_some(missing)} in {where}",
            f"All of {', '.join(names)}",
            "Fetch the model again, or choose another pooling",
        )
    wrong = [name for name in wanted if found[name] != wanted[name]]
    if wrong:
        raise EncoderError(
            f"{asked} has {trained.prefix}{wrong[0]} of shape {found[wrong[0]]} in {where}",
            f"{wanted[wrong[0]]}, for a model of hidden size {hidden_of(folder)} and {layers_of(folder)} layers, and "
            f"{trained.heads} heads",
            "Fetch the model again, or choose another pooling",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _pickle_hint(root: Path, trained: TrainedPooling) -> str:
    pickle = (root / BESIDE).with_suffix(".pt")
    if trained.kind != MULTI_LAYER or not pickle.is_file():
        return ""
    return (
        f". {pickle.name} is a pickle, which is not read: where you trust it, write {BESIDE} with "
        'safetensors.torch.save_file(torch.load("attn_pool.pt", weights_only=True), "attn_pool.safetensors")'
    )
