"""The miners: which of the candidates that the masks left are worth learning from.

After a miner the candidates are no longer draws from the mixture, so the correction of what it
chose is a heuristic: the literature mines without one, or ranks by corrected logits and keeps it.
"""

from tfrs_negatives.step.miners.batch_mix import BatchMix
from tfrs_negatives.step.miners.bayesian import LeastBayesianRisk
from tfrs_negatives.step.miners.hardest import Hardest, RandomOfTop
from tfrs_negatives.step.miners.mixture import PositiveMixture
from tfrs_negatives.step.miners.near_positive import SemiHard, WithinPositiveRadius
from tfrs_negatives.step.miners.ranked import RankedMiner
from tfrs_negatives.step.miners.resample import Resample

__all__ = [
    "BatchMix",
    "Hardest",
    "LeastBayesianRisk",
    "PositiveMixture",
    "RandomOfTop",
    "RankedMiner",
    "Resample",
    "SemiHard",
    "WithinPositiveRadius",
]
