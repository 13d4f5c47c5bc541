"""Rotary angles that reach further: a larger base, as in NTK-aware scaling (LongEmbed, §4.2).

The fastest pair of dimensions turns as ever, the slowest one is slowed the most. All texts get the new angles, short
ones and queries too. Layers that see near tokens alone keep theirs; a model where they share them is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pipeline.errors import EncoderError

_FREQUENCIES = "inv_freq"
_LOCAL = "sliding_attention"


def slowed(factor: float) -> float:
    """What the base is multiplied by for texts of so many windows: 3, 5 and 10 for 2, 4 and 8, as in the paper."""
    return factor + max(1.0, factor / 4)


def check_base(transformer: Any) -> None:  # noqa: ANN401 - a transformers model
    """Raise EncoderError where a model's rotary angles are none that a base alone makes."""
    _rebase(transformer, lambda base: base)


def slow_down(transformer: Any, factor: float) -> None:  # noqa: ANN401 - a transformers model
    """Give a model with rotary positions the angles of another base, in place; they are computed in float64.

    Raises EncoderError where its angles are none that a base alone makes.
    """
    _rebase(transformer, lambda base: slowed(factor) * base)


def _rebase(transformer: Any, other: Callable[[float], float]) -> None:  # noqa: ANN401
    config = transformer.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    changed = 0
    for module in transformer.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not name.endswith(_FREQUENCIES) or "original" in name or name.startswith(_LOCAL):
                continue
            base = _base(config, name.removesuffix(_FREQUENCIES).rstrip("_"))
            pairs = torch.arange(len(buffer), dtype=torch.float64) / len(buffer)
            own = base**-pairs
            if not torch.allclose(own.float(), buffer, rtol=1e-5):
                raise EncoderError(
                    f"a {config.model_type} model whose rotary angles are not those of its base {base:g}",
                    "Angles that only a base makes",
                    "Set encoder.long to split or pcw",
                )
            if other(base) != base:
                if name == _FREQUENCIES and len(kinds) > 1 and _LOCAL in kinds:
                    raise EncoderError(
                        f"a {config.model_type} model whose layers that see near tokens alone share the others' angles",
                        "Angles of their own for either kind of layer, or layers of one kind",
                        "Set encoder.long to self-extend or pcw",
                    )
                buffer.copy_(other(base) ** -pairs)
            changed += 1
    if not changed:
        raise EncoderError(
            f"a {config.model_type} model without a table of rotary frequencies",
            f"A buffer whose name ends with {_FREQUENCIES}",
            "Set encoder.long to split or pcw",
        )


def _base(config: Any, layers: str) -> float:  # noqa: ANN401
    """The base of the angles, where layers differ that of this kind of layer."""
    said = config.rope_parameters
    said = said.get(layers, said)
    if said.get("rope_type", "default") != "default":
        raise EncoderError(
            f"a {config.model_type} model whose rotary positions are stretched already ({said['rope_type']})",
            "Rotary positions as they were trained",
            "Set encoder.long to split or pcw",
        )
    return float(said["rope_theta"])
