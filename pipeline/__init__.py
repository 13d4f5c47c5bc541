"""Documents in, searchable points out; no Ray.

errors schemas config   the floor: exceptions, what crosses a boundary, settings
logs metrics            what a run says and counts
tokens windows pipe      a tokenizer that counts once, chunks encoded together, a queue bounded in bytes
sources chunking        read documents, cut them
encoders                models as ONNX graphs, one version each
versions stores sync    the collection's contract, the Qdrant edge, what is done
job writing lane        a prepared run; one split from bytes to acknowledged points
ingest local            a run over all splits; the executor without Ray
plan search evaluation doctor cli   the other ways in
"""
