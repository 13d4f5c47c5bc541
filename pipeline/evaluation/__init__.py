"""How good an encoder is, and codes of its vectors: measured on judged text, without a store.

judged      an encoder measured on judged documents
codes       what codes keep of the floats' ranking, with intervals
methods     what codes are compared with, at equal bytes
comparison  all of them on one judged set
choice      which to store in so many bytes
figure      quality against bytes, drawn
long        one sentence of a long document, found or not; needles: the texts, facts: what they are made of
sts         cosines of sentence pairs against people's scores
retrieval   exact ranking by best chunk, nDCG@10 and recall@100 as trec_eval computes them
"""

from pipeline.evaluation.judged import evaluate_retrieval
from pipeline.evaluation.retrieval import Qrels, rank, read_qrels, read_queries, retrieval_metrics

__all__ = ["Qrels", "evaluate_retrieval", "rank", "read_qrels", "read_queries", "retrieval_metrics"]
