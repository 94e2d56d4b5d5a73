"""NGAME mini-batches: queries in balanced clusters, batches of whole clusters."""

from tfrs_negatives.batching.clustered import ClusteredBatches, RefreshClusters
from tfrs_negatives.batching.epoch_order import doubling

__all__ = ["ClusteredBatches", "RefreshClusters", "doubling"]
