"""How good an encoder is: measured on judged text, without a store.

judged      an encoder measured on judged documents
retrieval   exact ranking by best chunk, nDCG@10 and recall@100 as trec_eval computes them
"""

from pipeline.evaluation.judged import evaluate_retrieval
from pipeline.evaluation.retrieval import Qrels, rank, read_qrels, read_queries, retrieval_metrics

__all__ = ["Qrels", "evaluate_retrieval", "rank", "read_qrels", "read_queries", "retrieval_metrics"]
