"""How good an encoder is: measured on judged text, without a store.

retrieval   exact ranking by best chunk, nDCG@10 and recall@100 as trec_eval computes them
"""

from pipeline.evaluation.retrieval import Qrels, rank, read_qrels, read_queries, retrieval_metrics

__all__ = ["Qrels", "rank", "read_qrels", "read_queries", "retrieval_metrics"]
