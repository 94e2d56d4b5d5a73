"""More negatives out of those that are there: mean vectors of several."""

from __future__ import annotations

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.correction import added
from tfrs_negatives.step.records import Batch, Miner, Scored, is_per_row
from tfrs_negatives.step.scorer import side_by_side

# A mixture of which a row keeps less than this is none.
LEAST_MASS = 1e-20


@part("miner")
class BatchMix(Miner):
    """Adds mixtures of the shared candidates, in which rare items weigh more.

        W_kj = softmax_j((w_kj - log c_j) / temperature),     w_kj uniform in [0, 1)
        s_ik = sum_{j kept in row i} W_kj s_ij / sum_{j kept in row i} W_kj

    The score of a mean vector is the mean of the scores, for a dot product or a cosine (for a
    squared distance it is not), so nothing more is encoded or multiplied with the queries. What the
    masks drop for a row, its own positive first of all, is left out of its mixtures, and what
    remains is weighted up. A mixture has no id and no count: its logit is its score. It counts as a
    candidate of the row, so that `EasyHardMixture` can give the mixtures a fixed share. Gradient
    flows to all items of a mixture, not to W.

    With temperature 1 and a thousand candidates all mixtures are nearly the same mean: W differs by
    factors up to e only. At a low temperature each is one of the rarest items.

    Args:
        num: K, how many mixtures, the same for all rows.
        temperature: of the weights.

    Raises:
        InputError: if a number is not positive; in a step, after a miner that has chosen
            candidates, or where a query has several vectors: the best of several scores is not
            linear.

    Example:
        >>> BatchMix(2048).get_config()
        {'num': 2048, 'temperature': 1.0}

    Relations: with `EasyHardMixture(0.0)` the loss is `SampledSoftmax` without the miner. Without
        normalised vectors s_ik = <u_i, sum_j W_kj v_j>; under a cosine it is the mean of the
        cosines, which is lower than the cosine with the mean.

    Source: Fan et al., CIKM 2023 (BMNS). There a row's own positive is part of its mixtures, and
        the weights may come from a beta distribution; uniform is what its scripts run.
    """

    def __init__(self, num: int, *, temperature: float = 1.0) -> None:
        if num < 1:
            raise bad_input("num", "at least 1", num)
        if not temperature > 0:
            raise bad_input("temperature", "a positive number", temperature)
        self.num, self.temperature = num, float(temperature)

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns the candidates and K mixtures behind them."""
        if batch.several_vectors:
            raise bad_input("queries", "one vector per query, [B, D]", batch.queries.shape)
        chosen = scored.ids is not None and is_per_row(scored.ids) and scored.own_rows is None
        if chosen:
            rule = "`batch_mix` before miners that choose, because rows then share no candidates"
            raise bad_input("miners", rule, "one after them")
        scored = scored._replace(per_row=_of_candidates(scored.per_row, scored))
        return side_by_side([scored, self._mixtures(scored, self.weights(scored, batch))])

    def weights(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns W, [K, C] float32; rows sum to 1 where any candidate is shared."""
        shape = [self.num, tf.shape(scored.logit)[1]]
        # Whole numbers that float32 has: XLA makes other fractions of the same bits.
        bits = tf.random.stateless_uniform(shape, batch.seed, 0, 2**24, tf.int32, alg="philox")
        logit = tf.cast(bits, tf.float32) / 2**24
        shared = ~_of_candidates(scored.per_row, scored)
        if scored.log_count is not None:
            # Beside candidates of single rows the counts are [B, C], those of shared ones equal.
            several = scored.log_count.shape.rank == 2
            count = tf.reduce_max(scored.log_count, axis=0) if several else scored.log_count
            logit, shared = added(logit, -count), shared & tf.math.is_finite(count)
        logit = tf.where(shared, logit, tf.float32.min)
        # Below the largest before it is divided: a cold one stays a number.
        below = logit - tf.reduce_max(logit, axis=1, keepdims=True)
        return tf.where(shared, tf.nn.softmax(below / self.temperature), 0.0)

    def _mixtures(self, scored: Scored, weights: tf.Tensor) -> Scored:
        """Returns the mixtures of each row as candidates, [B, K]."""
        score = scored.logit if scored.score is None else scored.score
        mass = tf.matmul(tf.cast(scored.keep, tf.float32), weights, transpose_b=True)
        total = tf.matmul(tf.where(scored.keep, score, 0.0), weights, transpose_b=True)
        some = mass > LEAST_MASS
        mixed = tf.where(some, total / tf.where(some, mass, 1.0), 0.0)
        return scored._replace(
            logit=mixed,
            keep=some,
            score=None if scored.score is None else mixed,
            ids=None if scored.ids is None else tf.fill([self.num], tf.constant(EMPTY_ID)),
            sampler=None if scored.sampler is None else tf.fill([self.num], -1),
            log_count=None if scored.log_count is None else tf.zeros([self.num]),
            own_rows=None if scored.own_rows is None else tf.fill([self.num], -1),
            per_row=tf.fill([self.num], True),
        )


def _of_candidates(flag: tf.Tensor | bool, scored: Scored) -> tf.Tensor:
    """Returns [C] bool from one flag for all or one for each."""
    return tf.broadcast_to(flag, tf.shape(scored.logit)[1:])
