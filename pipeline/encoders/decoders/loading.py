"""A checkpoint as a transformers model: fp32, on the CPU, with every weight out of its file."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from typing import Any

import torch

from pipeline.encoders.decoders.gguf import loadable
from pipeline.encoders.decoders.nvembed import transformer_arguments
from pipeline.encoders.folder import ModelFolder
from pipeline.errors import EncoderError, first_line


def load_decoder(folder: ModelFolder) -> Any:  # noqa: ANN401 - a transformers model; its types are not followed
    """The transformer without its language-modelling head, in evaluation mode.

    Raises EncoderError for a checkpoint that lacks some of its tensors (transformers would draw them at random), for
    one that cannot be read, and where the packages that read GGUF files are not installed.
    """
    from transformers import AutoModel

    try:
        # the reader of GGUF files draws a bar of its own
        with loadable(folder) as (root, reader), redirect_stderr(io.StringIO()):
            model, said = AutoModel.from_pretrained(
                root,
                **reader,
                **transformer_arguments(folder),
                dtype=torch.float32,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(
            f"the checkpoint {folder.weights[0]} cannot be loaded: {first_line(error)}",
            "A decoder-only language model that transformers can load",
            "Fetch the model again, or choose another",
        ) from error
    wrong = sorted(map(str, (*said["missing_keys"], *said["mismatched_keys"])))
    if wrong:
        raise EncoderError(
            f"{folder.weights[0]} lacks {len(wrong)} of the model's tensors, {wrong[0]} among them",
            "All weights: what is missing would be drawn at random",
            "Fetch the model again",
        )
    model.config.use_cache = False
    return model.eval()
