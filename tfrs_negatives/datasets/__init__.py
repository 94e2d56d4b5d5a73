"""Logs of interactions: a synthetic one whose truth is known, real ones, and ways to split them."""

from tfrs_negatives.datasets.interactions import Interactions, RetrievalData
from tfrs_negatives.datasets.loaders import load
from tfrs_negatives.datasets.synthetic import SyntheticTruth, synthetic
from tfrs_negatives.datasets.tables import ItemTable, LogColumns

__all__ = [
    "Interactions",
    "ItemTable",
    "LogColumns",
    "RetrievalData",
    "SyntheticTruth",
    "load",
    "synthetic",
]
