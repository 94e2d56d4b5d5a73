"""Who proposes candidates, and how often it does.

A sampler answers two questions. `sample` gives this step's candidates; `log_count(ids)` says how
many of its candidates hold each id on average. The second is asked for the ids of *all* candidates,
because each is corrected with the count of the mixture, whichever sampler it came from.
"""

from tfrs_negatives.step.samplers.adaptive_pool import AdaptivePool
from tfrs_negatives.step.samplers.balanced import Balanced
from tfrs_negatives.step.samplers.catalogue_draws import (
    LogUniform,
    Popularity,
    Uniform,
    UniformSubset,
)
from tfrs_negatives.step.samplers.cross_batch import CrossBatch
from tfrs_negatives.step.samplers.explicit import Explicit
from tfrs_negatives.step.samplers.id_cache import IdCache
from tfrs_negatives.step.samplers.in_batch import InBatch
from tfrs_negatives.step.samplers.index_stream import IndexStream
from tfrs_negatives.step.samplers.mined_union import MinedUnion
from tfrs_negatives.step.samplers.reinforced import Reinforced
from tfrs_negatives.step.samplers.robust_memory import RobustMemory
from tfrs_negatives.step.samplers.weighted import Weighted

__all__ = [
    "AdaptivePool",
    "Balanced",
    "CrossBatch",
    "Explicit",
    "IdCache",
    "InBatch",
    "IndexStream",
    "LogUniform",
    "MinedUnion",
    "Popularity",
    "Reinforced",
    "RobustMemory",
    "Uniform",
    "UniformSubset",
    "Weighted",
]
