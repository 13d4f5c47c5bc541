"""The first layers of models of many kinds, whose final norm has many names."""

import copy

import pytest
import torch
import transformers

from pipeline.encoders.elastic import keep_layers

SIZES = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize(
    "family", ["Llama", "GPT2", "GPTNeoX", "GPTJ", "Phi", "OPT", "Falcon", "Bloom", "ModernBert"]
)
def test_the_first_layers_give_what_the_whole_model_has_behind_them(family):
    torch.manual_seed(0)
    sizes = SIZES | ({"rotary_dim": 8} if family == "GPTJ" else {})
    sizes |= {"word_embed_proj_dim": 32, "ffn_dim": 64} if family == "OPT" else {}
    sizes |= {"cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 0} if family == "ModernBert" else {}
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**sizes)).eval()
    ids = torch.arange(3, 14)[None]

    shorter = copy.deepcopy(model)
    keep_layers(shorter, 2)

    with torch.inference_mode():
        expected = model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[2]
        got = shorter(input_ids=ids, use_cache=False)[0]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
