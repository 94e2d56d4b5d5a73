"""A pool of items for each query, kept as state; each batch of the query proposes others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.masks.apply import kept_by
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Batch, Mask, Sampler, Scored
from tfrs_negatives.step.samplers.catalogue_draws import CatalogueDraws
from tfrs_negatives.step.samplers.of_rows import probes_of

# The draws of a step that have nothing to do with each other.
FRESH, CHOICE, SLOT = 1, 2, 3


class Proposed(NamedTuple):
    """Items that may enter the pools of a batch.

    Attributes:
        ids: [M] int64.
        score: [B, M] float32.
        log_count: [M] float32 in nats, of how many of the M hold this id on average.
        keep: [B, M] bool, False where the masks or a score that is not finite forbid it.
    """

    ids: tf.Tensor
    score: tf.Tensor
    log_count: tf.Tensor
    keep: tf.Tensor


class QueryPool(Sampler, tf.keras.layers.Layer):
    """What such samplers have in common: pools [Q + 1, P] of ids, the last for unknown queries.

    At first a pool has P items that were drawn uniformly, and the last one stays so.
    """

    def __init__(
        self,
        proposals: Sampler,
        items: ItemCatalogue,
        log: History | QueryRows,
        *,
        pool_size: int,
        temperature: float,
        masks: Sequence[Mask],
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        if not isinstance(proposals, CatalogueDraws):
            raise bad_input("proposals", "Uniform, Popularity or LogUniform", repr(proposals))
        if pool_size < 1:
            raise bad_input("pool_size", "at least 1", pool_size)
        if not temperature > 0:
            raise bad_input("temperature", "a positive number", temperature)
        self.proposals, self.items, self.masks = proposals, items, list(masks)
        self.pool_size, self.temperature = pool_size, temperature
        self.queries = self._arguments["log"] = QueryRows.of(log)

    def build(self, input_shape: Any) -> None:
        """Makes the pools; the task and a loaded file may both ask."""
        if self.built:
            return
        shape = [self.queries.num_queries + 1, self.pool_size]
        rows = np.random.Generator(np.random.PCG64(0)).integers(0, len(self.items), shape)
        start = tf.keras.initializers.Constant(self.items.keys[rows])
        self.pool = self.add_fixed("pool", shape, tf.int64, start)
        super().build(input_shape)

    def add_fixed(self, name: str, shape: list[int], dtype: tf.DType, start: Any) -> tf.Variable:
        """Makes a weight that no optimizer and no policy of half precision touches."""
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        return self.add_weight(name, shape, dtype, start, **fixed)

    def rows(self, batch: Batch) -> tf.Tensor:
        """Returns [B] int64, the pool of each row."""
        return self.queries.rows(batch.features, batch.queries.shape[0])

    def proposed(self, batch: Batch) -> Proposed:
        """Draws M items for the whole batch and scores them for each row, without gradient."""
        given = self.proposals.sample(probes_of(batch.for_part(FRESH)))
        positive, score = (tf.stop_gradient(x) for x in batch.score(given))
        log_count = self.proposals.log_count(given.ids, batch)
        keep = given.valid & tf.math.is_finite(score)
        scored = Scored(positive, score, keep, positive, score, given.ids, log_count=log_count)
        keep, _ = kept_by(self.masks, scored, batch)
        return Proposed(given.ids, score, log_count, keep)
