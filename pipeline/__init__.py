"""Documents in, searchable points out; no Ray.

errors schemas config   the floor: exceptions, what crosses a boundary, settings
tokens                  a tokenizer that counts once
sources chunking        read documents, cut them
encoders                models as ONNX graphs, one version each
versions stores sync    the collection's contract, the Qdrant edge, what is done
job lane                a prepared run; one split from bytes to acknowledged points
local plan search evaluation cli   ways to use them
"""
