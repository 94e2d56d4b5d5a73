"""Negatives that score high now and did not always, from a memory of each query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.data.catalogue import ItemCatalogue, first_of_each
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.masks.apply import kept_by
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Batch, Candidates, Mask, Sampler, Scored
from tfrs_negatives.step.samplers.of_rows import (
    candidates_of_rows,
    probes_of,
    write_rows,
)
from tfrs_negatives.step.samplers.query_pool import CHOICE, Proposed, QueryPool


@part("sampler")
class RobustMemory(QueryPool):
    """The item of a query's memory with a high score and a score that varies from epoch to epoch.

    A hard negative is learned and comes back, so its score varies; one that stays high whatever is
    learned is likely a positive that nobody has seen. Of the P items in the memory of its query, a
    row gets one, with the positive's score s+ and the scores of the last epochs::

        argmax_p  g_p + alpha min(1, epoch / warmup) std_t sigmoid(s_p(t) - s+),
        g_p = sigmoid(s_p - s+)

    Once an epoch, with the first batch of its query, a memory writes down the scores of its items
    and is made anew: P items without replacement, each next one in proportion to
    exp(s / temperature), from those it has, which take their scores along, and the proposals. An
    epoch is as many queries as the log has events.

    The memories are weights, (8 + 4 H) (Q + 1) P bytes for H epochs. A step encodes the P items of
    each row, in training twice, and the proposals once for all.

    Args:
        proposals: `Uniform`, `Popularity` or `LogUniform`, with M as its `num_negatives`.
        items: the catalogue.
        log: the training part, whose Q queries have memories.
        pool_size: how many items a memory has, P.
        alpha: what the standard deviation counts for; 0 takes the highest score of the memory.
        warmup_epochs: until when it counts for less.
        num_epochs: over how many scores it is taken, H; of fewer than two it is 0.
        temperature: divides the score, which already is similarity / temperature of the task. At a
            high one few items stay in a memory long enough to have a history.
        masks: what may enter a memory and be chosen. `KnownPositives` is advised.

    Raises:
        InputError: if the proposals are of another kind, a number is out of its range, or the log
            is empty or has no `query_key`.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> from tfrs_negatives.step.samplers import Uniform
        >>> log = Interactions({"user": [1, 2]}, [7, 9], query_key="user")
        >>> items = ItemCatalogue([7, 8, 9])
        >>> RobustMemory(Uniform(items, 64), items, log).alpha
        5.0

    Relations: with `alpha=0`, `Hardest(1)` among the memory.

    Source: Ding et al., NeurIPS 2020 (SRNS). We differ. There a memory holds places in a list of
        3,000 items that is another list in each epoch, scored in advance for five epochs; here it
        holds items, and their scores go with them. There the scores of an epoch are compared with
        the positive's of that epoch; here all of them with the positive's of now. There a memory
        changes in every batch, here once an epoch. There the temperature is 10, of a product of 32
        dimensions.
    """

    def __init__(
        self,
        proposals: Sampler,
        items: ItemCatalogue,
        log: History | QueryRows,
        *,
        pool_size: int = 8,
        alpha: float = 5.0,
        warmup_epochs: float = 50.0,
        num_epochs: int = 5,
        temperature: float = 1.0,
        masks: Sequence[Mask] = (),
        **kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"pool_size": pool_size, "temperature": temperature, "masks": masks}
        super().__init__(proposals, items, log, **own, **{"name": "robust_memory", **kwargs})
        for name, value in {"alpha": alpha, "warmup_epochs": warmup_epochs}.items():
            if not 0 <= value < np.inf:
                raise bad_input(name, "a finite number of at least 0", value)
        if num_epochs < 2:
            raise bad_input("num_epochs", "at least 2, for a standard deviation", num_epochs)
        self.alpha, self.warmup_epochs, self.num_epochs = alpha, warmup_epochs, num_epochs

    def build(self, input_shape: Any) -> None:
        """Makes the memories; the task and a loaded file may both ask."""
        if self.built:
            return
        rows, constant = self.queries.num_queries + 1, tf.keras.initializers.Constant
        shape = [rows, self.pool_size, self.num_epochs]
        self.scores = self.add_fixed("scores", shape, tf.float32, constant(np.nan))
        self.recorded = self.add_fixed("recorded", [rows], tf.int64, constant(-1))
        super().build(input_shape)

    def sample(self, batch: Batch) -> Candidates:
        """Returns candidates [B, 1], each row's best of its memory."""
        rows = self.rows(batch)
        given, score, keep, positive = self._memory(rows, batch)
        positive = positive[:, None]
        past = tf.sigmoid(tf.gather(self.scores, rows) - positive[..., None])
        value = tf.sigmoid(score - positive) + self._factor(batch) * _spread(past)
        best = tf.argmax(tf.where(keep, value, -1.0), axis=1)[:, None]
        fields = (given.ids, given.vectors, given.valid)
        return Candidates(*(tf.gather(field, best, batch_dims=1) for field in fields))

    def update(self, batch: Batch, scored: Scored) -> None:
        """Writes down the scores of the memories that are due, and makes these anew."""
        proposed, rows = self.proposed(batch), self.rows(batch)
        epoch = tf.cast(tf.floor(self._epoch(batch)), tf.int64)
        given, score, keep, _ = self._memory(rows, probes_of(batch))
        chosen = self._survivors(proposed, given.ids, (score, keep), batch)
        ids = tf.concat([given.ids, _for_each(proposed.ids, rows)], axis=1)
        now = tf.concat([score, proposed.score], axis=1)
        past = tf.gather(self.scores, rows)[..., 1:]
        stays, place = chosen < self.pool_size, tf.minimum(chosen, self.pool_size - 1)
        past = tf.where(stays[..., None], tf.gather(past, place, batch_dims=1), np.nan)
        latest = tf.gather(now, chosen, batch_dims=1)[..., None]
        due = epoch > tf.gather(self.recorded, rows)
        write_rows(self.scores, rows, tf.concat([past, latest], axis=2), due)
        write_rows(self.pool, rows, tf.gather(ids, chosen, batch_dims=1), due)
        write_rows(self.recorded, rows, tf.fill(tf.shape(rows), epoch), due)

    def _memory(
        self, rows: tf.Tensor, batch: Batch
    ) -> tuple[Candidates, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the P items of each row, their scores, which may be chosen; the positive's."""
        keys = tf.gather(self.pool, rows)
        given = candidates_of_rows(keys, self.items, batch, label=self.name)
        positive, score = (tf.stop_gradient(x) for x in batch.score(given))
        keep = given.valid & tf.math.is_finite(score)
        scored = Scored(positive, score, keep, positive, score, keys, per_row=True)
        return given, score, kept_by(self.masks, scored, batch)[0], positive

    def _survivors(
        self,
        proposed: Proposed,
        keys: tf.Tensor,
        scored: tuple[tf.Tensor, tf.Tensor],
        batch: Batch,
    ) -> tf.Tensor:
        """Returns [B, P] places among the items of the memory and the proposals.

        The P largest of s / temperature + Gumbel noise are draws without replacement.
        """
        score, keep = scored
        held = tf.reduce_any(tf.equal(proposed.ids[:, None], keys[:, None, :]), axis=-1)
        fresh = proposed.keep & first_of_each(proposed.ids) & ~held
        value = tf.cast(tf.concat([score, proposed.score], axis=1), tf.float64) / self.temperature
        size, width = tf.unstack(tf.shape(value))
        draws = row_draws(size, width, batch.for_part(CHOICE).seed)
        value -= tf.math.log(-tf.math.log(draws))
        value = tf.where(tf.concat([keep, fresh], axis=1), value, tf.float64.min)
        return tf.math.top_k(value, self.pool_size).indices

    def _epoch(self, batch: Batch) -> tf.Tensor:
        """How often the log has gone by before this step, float64."""
        steps = tf.cast(tf.maximum(batch.step - 1, 0), tf.float64)
        return steps * tf.cast(batch.num_queries, tf.float64) / self.queries.num_events

    def _factor(self, batch: Batch) -> tf.Tensor | float:
        if not self.warmup_epochs:
            return self.alpha
        warm = tf.minimum(self._epoch(batch) / self.warmup_epochs, 1.0)
        return self.alpha * tf.cast(warm, tf.float32)


def _spread(gains: tf.Tensor) -> tf.Tensor:
    """Returns [B, P]: the standard deviation of [B, P, H] over what is finite; of nothing 0."""
    known = tf.math.is_finite(gains)
    number = tf.maximum(tf.reduce_sum(tf.cast(known, tf.float32), axis=-1), 1.0)
    mean = tf.reduce_sum(tf.where(known, gains, 0.0), axis=-1) / number
    squares = tf.where(known, tf.square(gains - mean[..., None]), 0.0)
    return tf.sqrt(tf.reduce_sum(squares, axis=-1) / number)


def _for_each(ids: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.broadcast_to(ids, tf.concat([tf.shape(rows), tf.shape(ids)], axis=0))
