"""Logs of interactions: a synthetic one whose truth is known, real ones, and ways to split them."""

from tfrs_negatives.datasets.interactions import Interactions
from tfrs_negatives.datasets.loaders import load
from tfrs_negatives.datasets.retrieval_data import RetrievalData
from tfrs_negatives.datasets.synthetic import SyntheticTruth, synthetic
from tfrs_negatives.datasets.tables import ItemTable

__all__ = [
    "Interactions",
    "ItemTable",
    "RetrievalData",
    "SyntheticTruth",
    "load",
    "synthetic",
]
