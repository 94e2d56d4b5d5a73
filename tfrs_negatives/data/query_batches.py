"""Batches of queries, each with all of its positives, for `model.fit`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import WEIGHTS
from tfrs_negatives.data.batch_order import check_batch_size, check_start_step, shuffled
from tfrs_negatives.data.id_lists import query_column
from tfrs_negatives.data.interactions import Interactions


class QueryBatches:
    """Batches of B queries, each of which brings all of its positives, or some of them.

    A batch is a dict of query features [B, ...] and of the positives' ids as a `tf.RaggedTensor`
    [B, n_i] under `item_key`; where the log has weights, of `sample_weight` in the same form.
    `TwoTower` runs the towers once for each query and each distinct item of such a batch, scores
    the candidates once for each query, and has a term in the loss for each positive. In an epoch
    every query comes once, so a log of E events takes E / (mean positives of a query) rows.

        batches = QueryBatches(log, 512, item_key=model.item_key)
        model.fit(batches.dataset(), steps_per_epoch=batches.steps_per_epoch, epochs=40)

    Which queries meet in batch t, and which of their positives are taken, depends on t and the seed
    alone, as in `Interactions.stream`.

    Args:
        log: E events of Q queries, whose features do not change from event to event.
        batch_size: queries of a batch, of all replicas.
        item_key: the column of a batch that holds the item ids.
        max_positives: how many positives of a query an epoch takes at most, drawn anew in each;
            None takes all. A query of n > `max_positives` then has that many terms in the place
            of n, so that long histories weigh less.
        seed: of orders and draws.

    Raises:
        InputError: if the log is empty, has no `query_key` or a query feature that changes with the
            event, or a number is out of its range.

    Example:
        >>> log = Interactions({"user_id": np.array([1, 2, 1])}, [7, 8, 9], query_key="user_id")
        >>> batch = next(iter(QueryBatches(log, 2, item_key="item_id").dataset()))
        >>> sorted(zip(batch["user_id"].numpy().tolist(), batch["item_id"].to_list()))
        [(1, [7, 9]), (2, [8])]

    Source: the loss of all positives of a query of the thesis on cross-batch NGAME, as batches.
    """

    def __init__(
        self,
        log: Interactions,
        batch_size: int,
        *,
        item_key: str,
        max_positives: int | None = None,
        seed: int = 0,
    ) -> None:
        check_batch_size(batch_size)
        if max_positives is not None and max_positives < 1:
            raise bad_input("max_positives", "at least 1, or None for all", max_positives)
        self.log, self.batch_size, self.item_key = log, batch_size, item_key
        self.max_positives, self.seed = max_positives, seed
        self._check_log()
        self.query_features, query_of_event = log.queries()
        # The events of each query side by side, in the order of the log.
        self._events = np.argsort(query_of_event, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(query_of_event))])
        self.num_queries = len(self._starts) - 1

    def _check_log(self) -> None:
        if not len(self.log):
            raise bad_input("log", "at least one event", "none")
        query_column(self.log, argument="log")
        self.log.check_item_key(self.item_key)
        if self.log.event_features:
            rule = "query features that are the same in all events of a query, for one row a query"
            raise bad_input("log", rule, f"{list(self.log.event_features)}, which change")

    @property
    def steps_per_epoch(self) -> int:
        """How many batches hold every query once; the last may be shorter."""
        return -(-self.num_queries // self.batch_size)

    @property
    def event_shares(self) -> np.ndarray:
        """How often each event of the log comes in an epoch on average, [E] float64."""
        sizes = np.diff(self._starts)
        shares = np.empty(len(self.log))
        most = np.inf if self.max_positives is None else self.max_positives
        shares[self._events] = np.repeat(np.minimum(1.0, most / sizes), sizes)
        return shares

    @property
    def positives_per_query(self) -> float:
        """How many positives a query brings to a batch on average."""
        return float(self.event_shares.sum() / self.num_queries)

    def dataset(self, *, start_step: int = 0) -> tf.data.Dataset:
        """Returns the batches, epoch after epoch without end, from any step on.

        Args:
            start_step: the number of the first batch, counted from the first of all epochs.

        Raises:
            InputError: if `start_step` is below 0.
        """
        check_start_step(start_step)
        columns = {self.item_key: tf.constant(self.log.item_ids)}
        if self.log.weights is not None:
            columns[WEIGHTS] = tf.constant(self.log.weights)
        features = {name: tf.constant(column) for name, column in self.query_features.items()}
        events, starts = tf.constant(self._events), tf.constant(self._starts)

        def batch(step: tf.Tensor) -> dict[str, tf.Tensor]:
            queries = self._queries_of(step)
            all_of = tf.ragged.range(tf.gather(starts, queries), tf.gather(starts, queries + 1))
            rows = tf.gather(events, self._some(all_of, step))
            by_query = {n: tf.gather(column, queries) for n, column in features.items()}
            return by_query | {n: tf.gather(column, rows) for n, column in columns.items()}

        batches = tf.data.Dataset.counter(start_step).map(
            batch, num_parallel_calls=tf.data.AUTOTUNE
        )
        return batches.prefetch(tf.data.AUTOTUNE)

    def _queries_of(self, step: tf.Tensor) -> tf.Tensor:
        first = step % self.steps_per_epoch * self.batch_size
        places = tf.range(first, tf.minimum(first + self.batch_size, self.num_queries))
        epoch = step // self.steps_per_epoch
        return shuffled(places, self.num_queries, seed=self.seed, epoch=epoch)

    def _some(self, rows: tf.RaggedTensor, step: tf.Tensor) -> tf.RaggedTensor:
        """Returns at most `max_positives` rows of each query, every subset as likely."""
        if self.max_positives is None:
            return rows
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        queries = rows.value_rowids()
        draws = tf.random.stateless_uniform(tf.shape(queries), seed, dtype=tf.float64, alg="philox")
        # Sorted by query and then by draw, the first ones of each query are taken.
        order = tf.argsort(tf.cast(queries, tf.float64) + draws)
        place = tf.range(tf.size(queries, tf.int64)) - tf.gather(rows.row_starts(), queries)
        taken = tf.gather(order, tf.where(place < self.max_positives)[:, 0])
        lengths = tf.minimum(rows.row_lengths(), self.max_positives)
        return tf.RaggedTensor.from_row_lengths(tf.gather(rows.values, taken), lengths)
