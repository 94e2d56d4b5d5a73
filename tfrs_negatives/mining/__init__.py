"""Hard negatives mined offline: what the model ranks high for a query that has not chosen it.

A mining asks an index for the best items of each query of the log, takes the training positives
out, keeps a window of ranks, and writes the chosen ids to a Parquet file. `NegativeTable` reads the
file, and `Explicit` trains with it. `MineHardNegatives` does both between epochs.
"""

from tfrs_negatives.mining.dexml import dexml
from tfrs_negatives.mining.mine import mine_hard_negatives
from tfrs_negatives.mining.refresh import MineHardNegatives
from tfrs_negatives.mining.rules import MiningRules, MiningSummary

__all__ = ["MineHardNegatives", "MiningRules", "MiningSummary", "dexml", "mine_hard_negatives"]
