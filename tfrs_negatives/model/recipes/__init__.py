"""The published methods, each as the composition of parts that it is.

A recipe is a function that returns data: the parts by name, as a configuration lists them, and the
`order` of the batches where it matters. `@recipe` gives it a name in configurations and makes it,
in Python, the function of a catalogue that returns the task.

Their loss is the mean over the batch, unless `reduction="sum"` is passed.
Accidental hits are masked where the positive is not corrected (`correct="negatives"` or None) and
kept where it is: see the table of limits in `docs/architecture.md`. Pass `masks=` to decide
otherwise.
"""

from tfrs_negatives.model.recipes.by_score import (
    batch_importance_resampling,
    batch_mix,
    bayesian_negative_sampling,
    cache_augmented_resampling,
)
from tfrs_negatives.model.recipes.mixtures import (
    all_positives,
    cross_batch_negative_sampling,
    cross_batch_ngame,
    dynamic_negative_sampling,
    frequency_table,
    in_batch,
    mixed_cross_batch_negative_sampling,
    mixed_negative_sampling,
    ngame,
    sampled_softmax_mlp,
    uniform_negative_sampling,
)
from tfrs_negatives.model.recipes.of_queries import (
    adaptive_importance_resampling,
    reinforced_negative_sampling,
    simplified_robust,
)
from tfrs_negatives.model.recipes.preset import SCORE, Preset, recipe

__all__ = [
    "SCORE",
    "Preset",
    "adaptive_importance_resampling",
    "all_positives",
    "batch_importance_resampling",
    "batch_mix",
    "bayesian_negative_sampling",
    "cache_augmented_resampling",
    "cross_batch_negative_sampling",
    "cross_batch_ngame",
    "dynamic_negative_sampling",
    "frequency_table",
    "in_batch",
    "mixed_cross_batch_negative_sampling",
    "mixed_negative_sampling",
    "ngame",
    "recipe",
    "reinforced_negative_sampling",
    "sampled_softmax_mlp",
    "simplified_robust",
    "uniform_negative_sampling",
]
