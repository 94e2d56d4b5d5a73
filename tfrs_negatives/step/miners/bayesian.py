"""Candidates that are hard and probably no false negatives."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.frequency import log_shares
from tfrs_negatives.step.miners.ranked import compared, top, with_scores
from tfrs_negatives.step.records import Batch, Miner, Scored

Reference = Literal["kept", "all"]
# At 0 or 1 the posterior would be 0 / 0.
LEAST = 1e-6


@part("miner")
class LeastBayesianRisk(Miner):
    """Keeps the candidate of the least risk: it teaches much, and is likely a true negative.

        info_ij   = sigmoid(s_ij - s_i+)                          how large the gradient of BPR is
        F_ij      = #{m : s_im <= s_ij} / (M + 1)                 over the M candidates of the row
        unbias_ij = (1 - F) (1 - p_j) / (1 - F - p_j + 2 F p_j)   that j is a true negative
        risk_ij   = info_ij (1 - (1 + lambda) unbias_ij)

    The risk is taken for a few candidates of each row, drawn without replacement. The prior p_j, of
    j being a false negative, grows with the item's popularity. The pool stands for the catalogue,
    so its candidates have to be uniform draws; F is then wrong by about M^-1/2.

    Args:
        items: the catalogue.
        counts: [N] how many training events each item has.
        num_candidates: how many of the pool each row looks at.
        k: how many of them stay.
        unbias_weight: lambda. With 0 what is likely a false negative is avoided, but nothing
            sought: the larger, the more a sure and hard negative wins over an easy one.
        reference: F counts over the candidates that are "kept" by the masks, or over "all".
        largest_prior: p of the most popular item, from which the others follow in proportion.
            None takes the share of each item in the events, 1e-5 in a large catalogue, where the
            prior changes little.

    Raises:
        InputError: if a number is out of its range or the counts are bad (see `log_shares`).

    Example:
        >>> LeastBayesianRisk(ItemCatalogue([1, 2]), [30, 10], largest_prior=0.3).prior.numpy()
        array([0.3, 0.1], dtype=float32)

    Source: Liu and Wang, ICDE 2023 (BNS): its matrix factorisation counts over the items that the
        user has not chosen, its LightGCN over all. There M is the catalogue, and k is 1.
    """

    def __init__(
        self,
        items: ItemCatalogue,
        counts: Any,
        *,
        num_candidates: int = 5,
        k: int = 1,
        unbias_weight: float = 5.0,
        reference: Reference = "kept",
        largest_prior: float | None = None,
    ) -> None:
        self.items, self.counts = items, np.asarray(counts, np.float64)
        self.num_candidates, self.k, self.reference = num_candidates, k, reference
        self.unbias_weight, self.largest_prior = float(unbias_weight), largest_prior
        self._check_arguments()
        share = np.exp(log_shares(items, self.counts)[:-1].astype(np.float64))
        scaled = share if largest_prior is None else share / share.max() * largest_prior
        with tf.init_scope():
            self.prior = tf.constant(scaled, tf.float32)

    def _check_arguments(self) -> None:
        if self.k < 1:
            raise bad_input("k", "at least 1", self.k)
        if self.num_candidates < self.k:
            raise bad_input("num_candidates", f"at least k, {self.k}", self.num_candidates)
        if not self.unbias_weight >= 0:
            raise bad_input("unbias_weight", "at least 0", self.unbias_weight)
        if self.reference not in get_args(Reference):
            raise bad_input("reference", "'kept' or 'all'", repr(self.reference))
        if self.largest_prior is not None and not 0 < self.largest_prior < 1:
            raise bad_input("largest_prior", "a number in (0, 1)", self.largest_prior)

    def mine(self, scored: Scored, batch: Batch) -> Scored:
        """Returns negatives [B, k], masked ones where a row has fewer that are kept."""
        rows, candidates = tf.unstack(tf.shape(scored.logit))
        order = row_draws(rows, candidates, batch.seed)
        few = scored.take(top(scored, order, self.num_candidates))
        risk = self.risk(few, self._share_below(few, scored))
        return few.take(top(few, -risk, self.k))

    def risk(self, few: Scored, share_below: tf.Tensor) -> tf.Tensor:
        """Returns the risk of taking each candidate as a negative.

        Args:
            few: [B, n] candidates of each row.
            share_below: [B, n] F of each.

        Returns:
            [B, n] float32 without gradient.
        """
        positive, score = compared(with_scores(few))
        rows = self.items.rows_of_keys(few.ids)
        prior = tf.where(rows >= 0, tf.gather(self.prior, tf.maximum(rows, 0)), 0.0)
        info = tf.sigmoid(score - positive[:, None])
        unbias = true_negative_probability(share_below, prior)
        return info * (1.0 - (1.0 + self.unbias_weight) * unbias)

    def _share_below(self, few: Scored, scored: Scored) -> tf.Tensor:
        """Returns F of a few candidates of each row among all of the pool, [B, n]."""
        everything = scored.keep
        if self.reference == "all":
            everything |= tf.not_equal(scored.ids, EMPTY_ID)
        (_, values), (_, sample) = (compared(with_scores(x)) for x in (few, scored))
        return share_at_or_below(values, sample, everything)


def true_negative_probability(share_below: tf.Tensor, prior: tf.Tensor) -> tf.Tensor:
    """The posterior of a candidate being a true negative, given where its score stands.

    True negatives have a score density in proportion to 1 - F, false ones to F.

    Args:
        share_below: F, the share of all scores that are at most this one.
        prior: p, the probability of a false negative before the score is seen.

    Returns:
        (1 - F) (1 - p) / (1 - F - p + 2 F p), both held off 0 and 1.

    Example:
        >>> true_negative_probability(tf.constant([0.25, 0.75]), tf.constant(0.5)).numpy().tolist()
        [0.75, 0.25]
    """
    below, prior = (tf.clip_by_value(x, LEAST, 1.0 - LEAST) for x in (share_below, prior))
    is_true, is_false = (1.0 - below) * (1.0 - prior), below * prior
    return is_true / (is_true + is_false)


def share_at_or_below(values: tf.Tensor, sample: tf.Tensor, counted: tf.Tensor) -> tf.Tensor:
    """The empirical distribution function of a sample of each row.

    Args:
        values: [B, n] where it is asked.
        sample: [B, C].
        counted: [B, C] bool, which numbers of the sample there are.

    Returns:
        [B, n] float32: #{counted numbers <= value} / (#{counted numbers} + 1).

    Example:
        >>> sample, counted = tf.constant([[3.0, 1.0, 2.0]]), tf.constant([[True, True, False]])
        >>> share_at_or_below(tf.constant([[0.0, 1.0, 2.5]]), sample, counted).numpy()
        array([[0.        , 0.33333334, 0.33333334]], dtype=float32)
    """
    ordered = tf.sort(tf.where(counted, sample, sample.dtype.max))
    number = tf.reduce_sum(tf.cast(counted, tf.int32), axis=1, keepdims=True)
    below = tf.minimum(tf.searchsorted(ordered, values, side="right"), number)
    return tf.cast(below, tf.float32) / (tf.cast(number, tf.float32) + 1.0)
