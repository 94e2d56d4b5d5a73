"""Ranking of the whole catalogue for every test query, what to report of it, and two baselines."""

from tfrs_negatives.evaluation.baselines import MostPopular, RandomRanking
from tfrs_negatives.evaluation.propensity import inverse_propensities
from tfrs_negatives.evaluation.summary import Evaluation
from tfrs_negatives.evaluation.top_k import TopKEvaluation, evaluate

__all__ = [
    "Evaluation",
    "MostPopular",
    "RandomRanking",
    "TopKEvaluation",
    "evaluate",
    "inverse_propensities",
]
