"""What a model's folder holds, read as data: no model code runs here, and folders that need some are refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import EncoderError

POOLING_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
_LEGACY_POOLING = {  # in the order in which sentence-transformers concatenates several
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "Identity": "",
    "Tanh": "Tanh",
    "ReLU": "Relu",
    "Sigmoid": "Sigmoid",
    "GELU": "Gelu",
    "SiLU": "Silu",
}
# How transformers names a language model with the head that it was trained with.
_WITH_HEAD = "ForCausalLM"
_ONNX_FILES = ("onnx/model.onnx", "model.onnx")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_VOCABULARY = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "tokenizer.model",
)
_TOKENIZER_CONFIG = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class Dense:
    """A linear layer after pooling: its weights' file and the activation's ONNX operator ("" for none)."""

    file: Path
    in_features: int
    out_features: int
    bias: bool
    activation: str


@dataclass(frozen=True)
class Slice:
    """The first dimensions of a vector."""

    dims: int


Layer = Dense | Slice | Literal["normalize"]


@dataclass(frozen=True)
class TrainedPooling:
    """A pooling with weights of its own, and the files that hold them, under names that begin with `prefix`.

    latent-attention: each token state looks at the latents before they are pooled (NV-Embed, arXiv 2405.17428, §3.1).
    multi-layer: the latents look at what the states of each layer were pooled to (arXiv 2409.02727, §3.3).
    heads: of the attention between states and latents. prompt: whether the tokens of a prompt are pooled too.
    """

    kind: Literal["latent-attention", "multi-layer"]
    files: tuple[Path, ...]
    prefix: str
    heads: int
    prompt: bool = True


@dataclass(frozen=True)
class Head:
    """What happens to token states: pooling modes (concatenated), then layers in order; `trained` says what is more."""

    pooling: tuple[str, ...]
    layers: tuple[Layer, ...]
    trained: TrainedPooling | None = None


@dataclass(frozen=True)
class ModelFolder:
    """A model's files and settings, as read; nothing of the weights is in memory."""

    root: Path
    transformer: Path
    format: Literal["safetensors", "onnx", "gguf"]
    weights: tuple[Path, ...]
    tokenizer: tuple[Path, ...]
    config: dict[str, Any]
    settings: dict[str, Any]  # sentence_bert_config.json
    prompts: dict[str, str]
    default_prompt: str
    head: Head

    @property
    def lowercase(self) -> bool:
        """Texts are lower-cased before tokenization, whatever the tokenizer itself does."""
        return bool(self.settings.get("do_lower_case", False))

    @property
    def pad_id(self) -> int:
        """The token that fills rows up; models that count positions by it (RoBERTa) need their own."""
        pad = self.config.get("pad_token_id")
        return int(pad) if isinstance(pad, int) and pad >= 0 else 0

    @property
    def architecture(self) -> str:
        """The class that saved it; "" where its configuration does not say."""
        return _architecture(self.config)

    @property
    def language_model(self) -> bool:
        """Whether it is a decoder-only language model: a GGUF file, or saved with its head or without."""
        # saved by AutoModel it is a bare …Model; encoders with rotary positions keep no cache of keys
        bare = self.architecture.endswith("Model") and {"use_cache", "rms_norm_eps"} <= set(self.config)
        return self.format == "gguf" or self.architecture.endswith(_WITH_HEAD) or bare

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows; 0 where its configuration does not say."""
        return int((self.config.get("text_config") or self.config).get("vocab_size", 0))


def read_folder(root: Path) -> ModelFolder:
    """Read a sentence-transformers or a plain transformers folder.

    The latter gets the pooling that the library gives it: the last token of a language model, else the mean.
    Raises EncoderError for a folder without a model, with pickled weights only, or that needs its own code.
    """
    modules = _read_modules(root)
    transformer = root / modules[0][1]
    if not (transformer / "config.json").is_file():
        raise EncoderError(
            f"no model in {root}: {transformer / 'config.json'} is missing",
            "A sentence-transformers folder (modules.json) or a transformers folder (config.json)",
            "Check encoder.model",
        )
    config = read_json(transformer / "config.json")
    _refuse_code(root, config)
    kind, weights = find_weights(transformer)
    prompts, default = read_prompts(root)
    return ModelFolder(
        root=root,
        transformer=transformer,
        format=kind,
        weights=weights,
        tokenizer=find_tokenizer(transformer),
        config=config,
        settings=read_json(transformer / "sentence_bert_config.json", missing_ok=True),
        prompts=prompts,
        default_prompt=default,
        head=_read_head(root, modules[1:]) if modules[1:] else Head((_usual_pooling(config),), ()),
    )


def read_prompts(root: Path) -> tuple[dict[str, str], str]:
    """A model's own prompts by name, and the name of the one that it takes where none is asked for, or ""."""
    said = read_json(root / "config_sentence_transformers.json", missing_ok=True)
    found = said.get("prompts") or {}
    if not isinstance(found, dict):
        raise EncoderError(
            f"prompts = {found!r} in {root / 'config_sentence_transformers.json'}",
            "Prompts by their names",
            "Fetch the model again",
        )
    prompts = {str(name): str(text) for name, text in found.items()}
    return prompts, str(said.get("default_prompt_name") or "")


def read_json(file: Path, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object from a file; {} where the file is missing and may be."""
    if missing_ok and not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"{file} cannot be read: {error}", "A JSON file", "Fetch the model again"
        ) from None
    if not isinstance(value, dict):
        raise EncoderError(f"{file} holds a {type(value).__name__}", "A JSON object", "Fetch the model again")
    return value


def _read_modules(root: Path) -> list[tuple[str, str]]:
    """(kind, path) of each module in order; a plain transformers folder is a transformer and mean pooling."""
    file = root / "modules.json"
    if not file.is_file():
        return [("Transformer", "")]
    try:
        entries = sorted(json.loads(file.read_text(encoding="utf-8")), key=lambda entry: int(entry["idx"]))
        modules = [(str(entry["type"]), str(entry["path"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(
            f"{file} cannot be read: {error!r}", "A list of modules", "Fetch the model again"
        ) from None
    for name, path in modules:
        if not name.startswith("sentence_transformers."):
            raise _needs_code(root, f"modules.json names {name!r}")
        if not (root / path).resolve().is_relative_to(root.resolve()):
            raise EncoderError(f"{file} points outside its folder: {path!r}", "", "Do not use this model")
    kinds = [(name.rpartition(".")[2], path) for name, path in modules]
    if not kinds or kinds[0][0] != "Transformer":
        first = kinds[0][0] if kinds else "nothing"
        raise EncoderError(
            f"the model in {root} begins with {first}",
            "A model that begins with a Transformer",
            "Choose another model",
        )
    return kinds


def _architecture(config: dict[str, Any]) -> str:
    return str((config.get("architectures") or [""])[0])


def _usual_pooling(config: dict[str, Any]) -> str:
    """What sentence-transformers takes, which knows a language model by its head alone."""
    causal = _architecture(config).endswith(_WITH_HEAD) and config.get("is_causal", True)
    return "lasttoken" if causal else "mean"


def _read_head(root: Path, modules: list[tuple[str, str]]) -> Head:
    """Pooling first, then dense layers and normalisation; anything else is refused by name."""
    layers: list[Layer] = []
    pooling: tuple[str, ...] = ()
    for number, (kind, path) in enumerate(modules):
        if kind == "Pooling" and number == 0:
            pooling = _read_pooling(root / path / "config.json")
        elif kind == "Normalize":
            layers.append("normalize")
        elif kind == "Dense" and number > 0:
            layers.append(_read_dense(root / path))
        elif kind != "Dropout":  # does nothing outside training
            raise EncoderError(
                f"module {number + 1} of {root} is {kind}",
                "After the transformer: Pooling, then Dense and Normalize",
                "Choose another model",
            )
    if not pooling:
        raise EncoderError(
            f"{root} has no Pooling module", "Pooling after the transformer", "Choose another model"
        )
    return Head(pooling, tuple(layers))


def _read_pooling(file: Path) -> tuple[str, ...]:
    config = read_json(file)
    mode = (
        config.get("pooling_mode") or [m for key, m in _LEGACY_POOLING.items() if config.get(key)] or "mean"
    )
    modes = (mode,) if isinstance(mode, str) else tuple(mode)
    if unknown := [mode for mode in modes if mode not in POOLING_MODES]:
        raise EncoderError(
            f"{file} asks for pooling {unknown[0]!r}",
            f"One of {', '.join(POOLING_MODES)}",
            "Choose another model",
        )
    if config.get("include_prompt") is False:
        raise EncoderError(
            f"{file} leaves the prompt out of pooling",
            "A model that pools its prompt too",
            "Choose another model",
        )
    return modes


def _read_dense(folder: Path) -> Dense:
    config = read_json(folder / "config.json")
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or name not in ACTIVATIONS or config.get("use_residual"):
        what = "a residual connection" if config.get("use_residual") else f"activation {activation}"
        raise EncoderError(
            f"{folder} has {what}",
            f"A linear layer with one of {', '.join(ACTIVATIONS)}",
            "Choose another model",
        )
    file = folder / "model.safetensors"
    if not file.is_file():
        raise _no_weights(folder)
    taken, given = config.get("in_features"), config.get("out_features")
    if not isinstance(taken, int) or not isinstance(given, int):
        raise EncoderError(
            f"in_features = {taken!r} and out_features = {given!r} in {folder / 'config.json'}",
            "The sizes of the linear layer",
            "Fetch the model again",
        )
    return Dense(file, taken, given, bool(config.get("bias", True)), ACTIVATIONS[name])


def find_weights(folder: Path) -> tuple[Literal["safetensors", "onnx"], tuple[Path, ...]]:
    """The files that hold the weights: one safetensors file, its shards, or an ONNX graph with what it points at."""
    if (folder / "model.safetensors").is_file():
        return "safetensors", (folder / "model.safetensors",)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        said = read_json(index).get("weight_map")
        names = {str(name) for name in said.values()} if isinstance(said, dict) else set[str]()
        shards = tuple(folder / name for name in sorted(names))
        missing = [shard.name for shard in shards if shard.parent != folder or not shard.is_file()]
        if missing or not shards:
            raise EncoderError(
                f"{index} names {missing[0] if missing else 'no files'}, not found beside it",
                "All shards of the weights",
                "Fetch the model again",
            )
        return "safetensors", shards
    for name in _ONNX_FILES:
        graph = folder / name
        if graph.is_file():
            return "onnx", (
                graph,
                *sorted(p for p in graph.parent.glob(f"{graph.name}[_.]data*") if p.is_file()),
            )
    raise _no_weights(folder)


def _no_weights(folder: Path) -> EncoderError:
    pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
    if not pickles:
        return EncoderError(
            f"no weights in {folder}",
            "model.safetensors (or its shards) or onnx/model.onnx",
            "Fetch the model again",
        )
    return EncoderError(
        f"{folder} has its weights in {pickles[0]} only, a pickle, and loading a pickle runs whatever code is in it",
        "Weights as safetensors or ONNX, which are only data",
        "Convert them where you trust the file: transformers' save_pretrained(FOLDER) writes safetensors",
    )


def _refuse_code(root: Path, config: dict[str, Any]) -> None:
    if config.get("auto_map"):
        raise _needs_code(root, f"config.json names {next(iter(config['auto_map'].values()))!r} in auto_map")
    if "model_type" not in config:
        raise EncoderError(
            f"{root} names no model_type in config.json", "A transformers model", "Check encoder.model"
        )


def _needs_code(root: Path, why: str) -> EncoderError:
    return EncoderError(
        f"the model in {root} wants to run Python code of its own ({why})",
        "A model that transformers and sentence-transformers know by themselves; code out of a model's folder is "
        "never run, as it could do anything with this machine and the store's credentials",
        "Choose another model, or export it where you trust it and use that folder's onnx/model.onnx",
    )


def find_tokenizer(folder: Path) -> tuple[Path, ...]:
    """tokenizer.json alone where there is one, else everything it can be made from."""
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json",)
    vocabulary = [folder / name for name in _VOCABULARY if (folder / name).is_file()]
    if not vocabulary:
        raise EncoderError(
            f"no tokenizer in {folder}", "tokenizer.json or vocabulary files", "Fetch the model again"
        )
    return (*vocabulary, *(folder / name for name in _TOKENIZER_CONFIG if (folder / name).is_file()))
