"""Encoders out of decoder-only language models, trained for it or not.

prompts     what is said around a text: PromptEOL, Pretended CoT, Knowledge, MetaEOL, or a template of one's own
spec        DecoderSpec: prompt, layers, pooling and mask, resolved for a model
reading     a model's files, whatever they are
gguf        what a GGUF file says of its model, read without any library
nvembed     the same of an NV-Embed checkpoint
trained     poolings with weights of their own: which a checkpoint brings; perceiver: these as nodes of a graph
wording     the token ids that a prompt puts around a text, in the encoder's own tokenizer
loading     the checkpoint as a transformers model, with every one of its weights
prepending  Token Prepending inside the exported graph
reference   the same by the stock model, for the gate and for tuning
sweep       vectors out of each layer at once, to choose by
magnitudes  values of a graph that half precision cannot hold

torch and transformers are loaded by loading, prepending, reference and sweep only, and where weights are read.
"""

from __future__ import annotations
