"""Negatives that are moved towards the positive."""

from __future__ import annotations

from typing import Literal, get_args

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.step.miners.ranked import top, with_scores
from tfrs_negatives.step.records import Batch, Miner, Scored, is_per_row

# A mixture of vectors scores as the mixture of their scores, up to its length.
Linear = Literal["dot", "cosine"]
# The squared length below which a mixture of opposite vectors has no direction.
LEAST_LENGTH = 1e-6


@part("miner")
class PositiveMixture(Miner):
    """Mixes each candidate with the row's positive and keeps the k hardest mixtures.

        v_ij' = a_i v_i+ + (1 - a_i) v_j,     a_i uniform in [0, largest_share)

        dot      s_ij' = a_i s_i+ + (1 - a_i) s_ij
        cosine   s_ij' = (a_i s_i+ + (1 - a_i) s_ij) / |v_ij'|     of vectors of length 1

    A mixture has no id and no count: its logit is its score, and so is that of the positive. The
    gradient goes through the positive in a mixture too. An item bias is part of the scores, and is
    mixed with them.

    With a dot product this is no new negative: the hardest mixture is that of the hardest
    candidate, and in pairs the loss is one with a random slope, see the relations. Only a cosine
    chooses others, because a mixture is put back to length 1: one with a candidate that is far from
    the positive is shorter before, and gains by it.

    Args:
        k: how many mixtures are kept.
        similarity: "dot" or "cosine", as the task has it.
        largest_share: of the positive in a mixture, in (0, 1]. One near 1 makes a negative of the
            positive.

    Raises:
        InputError: if an argument is out of its range; in a step, where a query has several
            vectors, and for a cosine after miners that choose or with candidates of single rows
            beside shared ones, whose vectors are no longer at hand.

    Example:
        >>> PositiveMixture().get_config()
        {'k': 1, 'similarity': 'dot', 'largest_share': 1.0}

    Relations: with a dot product, k = 1 and `BPR` this is `Hardest(1, by="score")` with
        `TripletLogistic(scale=1 - a_i)`, row by row.

    Source: Huang et al., KDD 2021 (MixGCF), of which this is what is left for two towers, where
        there is one layer and nothing to mix over hops. Its share is one number per row too.
    """

    def __init__(
        self, k: int = 1, *, similarity: Linear = "dot", largest_share: float = 1.0
    ) -> None:
        if k < 1:
            raise bad_input("k", "at least 1", k)
        if similarity not in get_args(Linear):
            raise bad_input("similarity", f"one of {list(get_args(Linear))}", repr(similarity))
        if not 0 < largest_share <= 1:
            raise bad_input("largest_share", "a number in (0, 1]", largest_share)
        self.k, self.similarity, self.largest_share = k, similarity, float(largest_share)

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns mixtures [B, min(k, C)], masked ones where a row has fewer candidates."""
        if batch.several_vectors:
            raise bad_input("queries", "one vector per query, [B, D]", batch.queries.shape)
        scored, share = with_scores(scored), self.shares(scored, batch)[:, None]
        score = share * scored.positive_logit[:, None] + (1.0 - share) * scored.logit
        if self.similarity == "cosine":
            score *= tf.math.rsqrt(self._squared_length(share, scored, batch))
        kept = scored._replace(logit=score, score=score)
        kept = kept.take(top(kept, tf.stop_gradient(score), self.k))
        nobody = tf.fill(tf.shape(kept.logit), tf.constant(EMPTY_ID))
        return kept._replace(ids=None if scored.ids is None else nobody, log_count=None)

    def shares(self, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns a, [B] float32."""
        draws = row_draws(tf.shape(scored.logit)[0], 1, batch.seed)[:, 0]
        return self.largest_share * tf.cast(draws, tf.float32)

    def _squared_length(self, share: tf.Tensor, scored: Scored, batch: Batch) -> tf.Tensor:
        """Returns [B, C]: of the mixtures of vectors of length 1."""
        if scored.vectors is None:
            rule = "`positive_mixture` of a cosine first, and candidates of one kind"
            raise bad_input("miners", rule, "candidates without vectors")
        positives, vectors = (
            tf.math.l2_normalize(tf.cast(x, tf.float32), axis=-1)
            for x in (batch.positives, scored.vectors)
        )
        of_row = "b" if is_per_row(scored.ids) else ""
        cosine = tf.einsum(f"bd,{of_row}cd->bc", positives, vectors)
        length = share**2 + (1.0 - share) ** 2 + 2.0 * share * (1.0 - share) * cosine
        return tf.maximum(length, LEAST_LENGTH)
