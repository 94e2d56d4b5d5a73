"""Items that were often chosen as negatives, encoded anew in every step."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.data.catalogue import ItemCatalogue, count_below
from tfrs_negatives.step.records import Batch, Scored, is_per_row
from tfrs_negatives.step.samplers.catalogue_draws import CatalogueDraws


@part("sampler")
class IdCache(CatalogueDraws, tf.keras.layers.Layer):
    """Items drawn in proportion to how often they were negatives of late.

        o_j <- decay o_j + (how often j is among the negatives of all rows of the step)
        p_j  = o_j / sum_k o_k

    What a step keeps are ids, not vectors: the items are encoded with the tower as it is, with
    gradient. Counted is what the miners left, so after `Resample` o follows the softmax over the
    catalogue, and the cache brings the next step items that are hard for many queries, whether
    they are popular or not. At first every item has been counted once.

    The weights are the N counts. The items of a step are drawn from them when it begins, which is
    the law of a cache that was filled at the end of the step before, and so p is known exactly: an
    item fills n p_j of the n candidates on average. Popularity, which the paper takes for cached
    items too, is not how often they are in the cache.

    Args:
        items: the catalogue to draw from, N items.
        num_negatives: how many candidates, n.
        decay: of the counts in each step, in [0, 1]: 0.99 is a window of 100 steps. 1 counts since
            the beginning, as published; 0 the last step only. An item with little left is drawn
            as seldom as its count says, whatever its popularity.

    Raises:
        InputError: if `num_negatives` is below 1 or `decay` outside [0, 1].

    Example:
        >>> IdCache(ItemCatalogue([1, 2, 3]), 2).name
        'id_cache'

    Relations: until the first update `Uniform`. `Weighted(IdCache(...), 0.0)` is a step without it.

    Source: Chen et al., NeurIPS 2022 (XIR). There the next cache is drawn from the items of the
        step, in proportion to counts since the beginning; the two losses, of draws from the cache
        and from the batch, have fixed shares. Here cache and batch are one mixture.
    """

    reads_scores = True

    def __init__(
        self, items: ItemCatalogue, num_negatives: int, *, decay: float = 0.99, **kwargs: Any
    ) -> None:
        tf.keras.layers.Layer.__init__(self, **{"name": "id_cache", "dtype": "float32", **kwargs})
        CatalogueDraws.__init__(self, items, num_negatives)
        if not 0 <= decay <= 1:
            raise bad_input("decay", "a number in [0, 1]", decay)
        self.decay = float(decay)

    def build(self, input_shape: Any) -> None:
        """Makes the counts; the task and a loaded file may both ask."""
        if self.built:
            return
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        self.counts = self.add_weight(
            "counts", [len(self.items)], tf.float32, tf.keras.initializers.Ones(), **fixed
        )
        super().build(input_shape)

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the first row whose cumulative count reaches u times that of all."""
        reached = tf.cumsum(tf.cast(self.counts, tf.float64))
        return count_below(reached, uniform * reached[-1])

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns log p, -inf for an item of which nothing is left."""
        counts = tf.convert_to_tensor(self.counts)
        share = tf.gather(counts, rows) / tf.reduce_sum(counts)
        return tf.math.log(share)

    def update(self, batch: Batch, scored: Scored) -> None:
        """Counts the negatives of all replicas; a step that has none changes nothing."""
        ids, chosen = tf.convert_to_tensor(scored.ids), tf.cast(scored.keep, tf.float32)
        if not is_per_row(ids):
            chosen = tf.reduce_sum(chosen, axis=0)
        nowhere = len(self.items)
        rows = self.items.rows_of_keys(ids, unknown=nowhere)
        here = tf.math.unsorted_segment_sum(chosen, rows, nowhere + 1)[:-1]
        everywhere = tf.reduce_sum(all_rows(here[None]), axis=0)
        some = tf.reduce_sum(everywhere) > 0
        self.counts.assign(tf.where(some, self.decay * self.counts + everywhere, self.counts))
