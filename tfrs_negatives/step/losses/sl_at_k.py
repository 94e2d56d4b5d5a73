"""A softmax loss that counts a row by whether its positive is near the best k of its query."""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.losses.counted import counted
from tfrs_negatives.step.losses.log_sums import masked_log_sum_exp, softmax_loss
from tfrs_negatives.step.losses.top_k import halved
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Batch, Loss, Scored


@part("loss", "sl_at_k")
class SLAtK(Loss, tf.keras.layers.Layer):
    """Softmax loss, weighed by how far the positive is above the k-th best score of its query.

        loss_i = sigmoid((s_i+ - b_q) / width) SampledSoftmax_i,  b_q of the query of row i

    The weight has no gradient. The threshold b_q is state, one number for each query, 0 at first.
    After each training step the queries of the batch, and no others, learn theirs from its scores:

        b_q += rate (mean over the rows of q of the k-th best score - b_q)

    among the row's positive, the other positives that a mask knows, and the candidates that count.
    A candidate whose expected count c is known stands for 1 / c items, so that k is a number of
    items of the catalogue; without counts it is a number of candidates. Where one candidate stands
    for more than k items the threshold is the best of them, which is too low: the k-th of all items
    is above the best of a small sample. The scores are those before the correction.

    State: 12 bytes a query. Queries that the log does not have share one threshold. A row with a
    score that is not finite teaches nothing.

    Args:
        log: whose Q queries have a threshold, the training part.
        k: the length of the list.
        width: of the sigmoid, in the unit of the scores, similarity / temperature; 1 or more of the
            cosine there, so that no weight is far from the others: 10 at temperature 0.1.
        rate: how much of the threshold is of the last step, in (0, 1].

    Raises:
        InputError: if a number is out of its range, or the log is empty or has no `query_key` of
            integers or strings.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": ["u", "v"]}, [7, 9], query_key="user")
        >>> SLAtK(log, k=20, width=10.0).thresholds.shape.as_list()
        [3]

    Relations: width -> infinity is half of `SampledSoftmax`.

    Source: Yang et al., KDD 2025 (SL@K). There all thresholds are computed anew every 20 epochs,
        as the k-th best of the query's positives and some random items, a number of candidates, and
        the positive is not in the denominator.
    """

    reads_scores = True

    def __init__(
        self, log: History | QueryRows, k: int, *, width: float, rate: float = 0.3, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": "sl_at_k", "dtype": "float32", **kwargs})
        if k < 1:
            raise bad_input("k", "at least 1", k)
        if not width > 0:
            raise bad_input("width", "a positive number", width)
        if not 0 < rate <= 1:
            raise bad_input("rate", "a number in (0, 1]", rate)
        self.k, self.width, self.rate = k, width, rate
        self.queries = self._arguments["log"] = QueryRows.of(log)
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        # The last one is that of queries that are not known.
        shape = [self.queries.num_queries + 1]
        self.thresholds = self.add_weight("thresholds", shape, tf.float32, "zeros", **fixed)

    def __call__(self, scored: Scored, batch: Batch | None = None) -> tf.Tensor:
        """Returns [B] float32; 0 with gradient 0 for a row without negatives.

        Raises:
            InputError: if the batch does not have the query column, or not of the log's kind.
        """
        excess = masked_log_sum_exp(scored.logit, scored.keep, positive=scored.positive_logit)
        threshold = tf.gather(self.thresholds, self._rows(scored, batch))
        ahead = (counted(scored).positive - threshold) / self.width
        return tf.stop_gradient(tf.sigmoid(ahead)) * softmax_loss(excess)

    def update(self, batch: Batch, scored: Scored) -> None:
        """Moves the thresholds of the queries of all replicas."""
        found = kth_best(scored, self.k)
        # A step with an overflow is skipped by the optimizer, and may leave no trace here either.
        some = all_rows(scored.some & tf.math.is_finite(found))
        found = all_rows(found)
        rows, number = all_rows(self._rows(scored, batch)), self.queries.num_queries + 1
        count = tf.math.unsorted_segment_sum(tf.cast(some, tf.float32), rows, number)
        total = tf.math.unsorted_segment_sum(tf.where(some, found, 0.0), rows, number)
        moved = self.rate * (tf.math.divide_no_nan(total, count) - self.thresholds)
        self.thresholds.assign_add(tf.where(count > 0, moved, 0.0))

    def _rows(self, scored: Scored, batch: Batch | None) -> tf.Tensor:
        """Returns [B] int64: which threshold is that of each row."""
        features = {} if batch is None else batch.features
        return self.queries.rows(features, scored.positive_logit.shape[0])


def kth_best(scored: Scored, k: int) -> tf.Tensor:
    """Finds the score that the best k of each row are at or above.

    Args:
        scored: a candidate whose count is known stands for 1 / count items.
        k: how many items.

    Returns:
        [B] float32, without gradient; the lowest score where all together are fewer than k, and not
        a number where a score is not finite.

    Example:
        >>> scored = Scored(tf.constant([5.0]), tf.constant([[1.0, 3.0]]), tf.fill([1, 2], True))
        >>> [round(float(kth_best(scored, k)[0])) for k in (3, 4)]
        [1, 1]
    """
    candidates, more = counted(scored), scored.more_positives
    score, weights = [candidates.score], [candidates.weights]
    if more is not None:
        score.append(tf.where(more.marks, more.score, 0.0))
        weights.append(tf.cast(more.marks, tf.float32))
    score = [candidates.positive[:, None], *score]
    weights = [tf.ones_like(candidates.positive)[:, None], *weights]
    score, weights = tf.concat(score, axis=1), tf.concat(weights, axis=1)
    inside = tf.where(weights > 0, score, candidates.positive[:, None])

    def surplus(threshold: tf.Tensor) -> tf.Tensor:
        at_or_above = tf.where(inside >= threshold[:, None], weights, 0.0)
        return tf.reduce_sum(at_or_above, axis=1) - k

    found = halved(surplus, tf.reduce_min(inside, axis=1), tf.reduce_max(inside, axis=1))
    return tf.where(tf.reduce_all(tf.math.is_finite(inside), axis=1), found, math.nan)
