"""NGAME mini-batches: queries in balanced clusters, batches of whole clusters."""

from tfrs_negatives.clustering.batches import ClusteredBatches, RefreshClusters
from tfrs_negatives.clustering.epoch_order import doubling

__all__ = ["ClusteredBatches", "RefreshClusters", "doubling"]
