"""DecoderSpec: how a decoder-only language model makes vectors, resolved for one model; part of the encoder's version.

Token Prepending (arXiv 2412.11556) and its early exit count layers from 0, and hidden states with the embeddings as
the first: OUT = 28 is what the layers 0 to 27 make, and -2 what all but the last one make.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

from pipeline.config import DecoderConfig, EncoderConfig
from pipeline.encoders.decoders.nvembed import latent_settings
from pipeline.encoders.decoders.prompts import templates_of
from pipeline.encoders.decoders.trained import KINDS, LATENT, brought, find_trained
from pipeline.encoders.elastic import layers_of
from pipeline.encoders.folder import Head, ModelFolder
from pipeline.encoders.long import ROTARY
from pipeline.errors import UsageError

_POOLING = {"last": "lasttoken", "eos": "lasttoken", "mean": "mean", "weighted-mean": "weightedmean"}
# Settings that ask for nothing: "causal" is what encoders are not, and language models are anyway.
_UNSAID = (DecoderConfig(), DecoderConfig(attention="causal"))
# Where the paper leaves prepending of a model that it did not try: after a fifth of the layers.
_EXIT = 1 / 5


Pooling = Literal["last", "mean", "weighted-mean", "eos", "latent-attention", "multi-layer"]


@dataclass(frozen=True)
class DecoderSpec:
    """What goes around a text, which layers run, and what of their states becomes the vector.

    prompt: a name out of PROMPTS, a template, or "".
    start, exit: before the layers start ≤ l < exit the slot takes the state of the last token; 0, 0: never.
    out_layer: how many layers run; behind the last of all comes the model's final norm, behind others none.
    """

    prompt: str
    start: int
    exit: int
    out_layer: int
    pooling: Pooling
    attention: Literal["causal", "bidirectional"]

    @property
    def prepending(self) -> bool:
        """Whether the slot takes the state of the last token."""
        return self.exit > 0

    @property
    def ends_text(self) -> bool:
        """Whether an end-of-text token goes behind a text: it is pooled, or the pooling was trained with one."""
        return self.pooling == "eos" or self.pooling in KINDS

    @property
    def templates(self) -> tuple[str, ...]:
        """What is said around a text; a text's vector is the mean over them. () for nothing."""
        return templates_of(self.prompt, self.prepending)

    @property
    def settings(self) -> dict[str, Any]:
        """The keys of [encoder.decoder] that say this, all of them."""
        own = asdict(self)
        if not self.prepending:
            del own["start"], own["exit"]
        return DecoderConfig(**own, token_prepending=self.prepending).model_dump()


def describe_decoder(folder: ModelFolder, config: EncoderConfig) -> DecoderSpec | None:
    """What the settings make of a checkpoint; None for one that is an encoder as it is.

    Raises UsageError for settings that contradict each other or the model's layers, and for a model that is no
    decoder-only checkpoint.
    """
    asked = config.decoder
    if folder.format != "gguf" and asked in _UNSAID and not brought(folder):
        return None
    _check_model(folder)
    if config.layers:
        raise UsageError(
            f"encoder.layers = {config.layers} for a language model",
            "encoder.decoder.out_layer: the layer whose states become the vector",
            f"Set encoder.decoder.out_layer = {config.layers}",
        )
    templates = templates_of(asked.prompt, asked.token_prepending)
    if len(templates) > 1 and config.long not in ("split", "error", "truncate", *ROTARY):
        raise UsageError(
            f"encoder.long = {config.long!r} with a prompt of {len(templates)} templates",
            "One row of the model a text and template",
            "Set encoder.long to split, or choose another prompt",
        )
    layers = layers_of(folder)
    out = _out_layer(asked.out_layer, layers)
    start, exit = _prepended(asked, layers, out)
    pooling = _pooling(asked, folder)
    if pooling in KINDS:
        _check_trained(asked, pooling, out, layers)
    bidirectional = latent_settings(folder) is not None or not folder.config.get("is_causal", True)
    usual: Literal["causal", "bidirectional"] = "bidirectional" if bidirectional else "causal"
    attention = usual if asked.attention == "auto" else asked.attention
    return DecoderSpec(asked.prompt, start, exit, out, pooling, attention)


def _pooling(asked: DecoderConfig, folder: ModelFolder) -> Pooling:
    """What is asked for, else what fits: a prompt is made for its last token, and weights for the text alone."""
    if asked.pooling != "auto":
        return asked.pooling
    return "last" if asked.prompt else cast("Pooling", brought(folder) or "mean")


def _check_trained(asked: DecoderConfig, pooling: str, out: int, layers: int) -> None:
    if asked.prompt or asked.token_prepending or out != layers:
        said = {
            "prompt": asked.prompt,
            "token_prepending": asked.token_prepending,
            "out_layer": asked.out_layer,
        }
        changed = {
            name: value for name, value in said.items() if value != DecoderConfig.model_fields[name].default
        }
        raise UsageError(
            f"encoder.decoder.pooling = {pooling!r} with "
            + " and ".join(f"{name} = {value!r}" for name, value in changed.items()),
            "The text alone and all layers, as it was trained; an instruction is said by encoder.query_prompt",
            "Leave them out, or choose another pooling",
        )


def as_encoder(folder: ModelFolder, decoder: DecoderSpec | None) -> ModelFolder:
    """The checkpoint with the head that its states get: a pooling, and vectors of length 1.

    Raises UsageError or EncoderError where it has not the weights of the pooling.
    """
    if decoder is None:
        return folder
    if decoder.pooling not in KINDS:
        return replace(folder, head=Head((_POOLING[decoder.pooling],), ("normalize",)))
    # as in multi-layer pooling's own code, where attention decides what each layer is pooled by
    tokens = "mean" if decoder.pooling == LATENT or decoder.attention == "bidirectional" else "lasttoken"
    return replace(folder, head=Head((tokens,), ("normalize",), find_trained(folder, decoder.pooling)))


def _check_model(folder: ModelFolder) -> None:
    known = latent_settings(folder) is not None  # its modules.json is for the code that it brings
    plain = folder.format != "onnx" and (known or not (folder.root / "modules.json").is_file())
    if not plain or not folder.language_model:
        raise UsageError(
            f"settings of [encoder.decoder] for {folder.root}, "
            + (
                f"a model of the architecture {folder.architecture}"
                if plain
                else "which says itself what its states become"
            ),
            "A decoder-only language model: config.json and safetensors of a …ForCausalLM, or a GGUF file",
            "Leave encoder.decoder out, or choose another model",
        )


def _out_layer(asked: int, layers: int) -> int:
    out = asked if asked >= 0 else layers + 1 + asked
    if not 1 <= out <= layers:
        raise UsageError(
            f"encoder.decoder.out_layer = {asked}, and the model has {layers} layers",
            f"1 to {layers}, or -1 to -{layers}",
            "Set -1 for all layers, -2 for all but the last",
        )
    return out


def _prepended(asked: DecoderConfig, layers: int, out: int) -> tuple[int, int]:
    if not asked.token_prepending:
        if (asked.start, asked.exit) != (DecoderConfig().start, DecoderConfig().exit):
            raise UsageError(
                f"encoder.decoder.start = {asked.start} and exit = {asked.exit} without token_prepending",
                "Layers before which a token is prepended, or none of the three",
                "Set encoder.decoder.token_prepending, or leave start and exit out",
            )
        return 0, 0
    exit = asked.exit or min(out, max(asked.start + 1, round(_EXIT * layers)))
    if not asked.start < exit <= out:
        raise UsageError(
            f"encoder.decoder.start = {asked.start} and exit = {exit}, and layers below {out} run",
            "start < exit, and exit at most out_layer",
            "Leave both out for the paper's: 1, and a fifth of the layers",
        )
    return asked.start, exit
