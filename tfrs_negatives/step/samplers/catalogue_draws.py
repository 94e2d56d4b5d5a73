"""Items drawn from the catalogue, in the graph, from a distribution that is known exactly.

Their features run through the item tower with gradient, so items without any event learn too. An
item of probability p fills n p of n candidates on average; an id outside the catalogue none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import encode_together, same_draws
from tfrs_negatives.data.catalogue import ItemCatalogue, count_below, find_sorted
from tfrs_negatives.step.frequency import log_shares
from tfrs_negatives.step.records import Batch, Candidates, Sampler


class CatalogueDraws(Sampler):
    """What the draws from a catalogue have in common: n independent draws, with replacement."""

    def __init__(self, items: ItemCatalogue, num_negatives: int) -> None:
        if num_negatives < 1:
            raise bad_input("num_negatives", "at least 1", num_negatives)
        self.items, self.num_negatives = items, num_negatives

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Turns numbers in [0, 1), [n] float64, into catalogue rows [n] int64."""
        raise NotImplementedError

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the log probability of one draw of each catalogue row, float32."""
        raise NotImplementedError

    def sample(self, batch: Batch) -> Candidates:
        """Returns `num_negatives` candidates, other items at every step.

        Every replica draws the same items and encodes its share of them, so that the step is the
        same for any number of replicas.
        """
        uniform = same_draws([self.num_negatives], batch.seed)
        # A product rounded up to N is no row.
        rows = tf.minimum(self.draw(uniform), len(self.items) - 1)
        vectors = encode_together(rows, lambda share: batch.encode_items(self.items.gather(share)))
        valid = tf.ones([self.num_negatives], tf.bool)
        return Candidates(self.items.keys_at(rows), vectors, valid)

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns log(n p), float32, the shape of ids; -inf outside the catalogue."""
        rows = self.items.rows_of_keys(ids)
        inside = math.log(self.num_negatives) + self.log_probability(tf.maximum(rows, 0))
        return tf.where(rows >= 0, inside, -math.inf)


@part("sampler")
class Uniform(CatalogueDraws):
    """Every item with the same probability, p = 1 / N.

    Args:
        items: the catalogue to draw from, N items.
        num_negatives: how many candidates, n.

    Raises:
        InputError: if `num_negatives` is below 1.

    Example:
        >>> Uniform(ItemCatalogue([1, 2, 3, 4]), 2).num_negatives
        2

    Source: Yang et al., WWW 2020, section 3 (the index data of mixed negative sampling).
    """

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Returns floor(u N)."""
        return tf.cast(uniform * len(self.items), tf.int64)

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns -log N."""
        return tf.fill(tf.shape(rows), np.float32(-math.log(len(self.items))))


@part("sampler")
class UniformSubset(CatalogueDraws):
    """Every item of a part of the catalogue, which is chosen once, at random, and stays.

        p_j = 1 / m for one of the m items of the part, 0 for any other

    Args:
        items: the catalogue, N items.
        num_negatives: how many candidates, n.
        num_items: how many items the part has, m.
        seed: chooses them.

    Raises:
        InputError: if `num_negatives` is below 1, or `num_items` not within 1 and N.

    Example:
        >>> half = UniformSubset(ItemCatalogue([1, 2, 3, 4]), 6, num_items=2)
        >>> np.exp(half.log_probability(tf.range(4))).tolist()
        [0.5, 0.0, 0.5, 0.0]

    Relations: with m = N, `Uniform`: the same draws with the same probabilities.

    Source: the thesis, which draws the uniform items of Yang et al., WWW 2020, from a fixed random
        subset. An item outside of it and without events is never a negative.
    """

    def __init__(
        self, items: ItemCatalogue, num_negatives: int, *, num_items: int, seed: int = 0
    ) -> None:
        super().__init__(items, num_negatives)
        if not 1 <= num_items <= len(items):
            raise bad_input("num_items", f"from 1 to {len(items)}, the catalogue", num_items)
        self.num_items, self.seed = num_items, seed
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(items))
        # An eager constant: a traced function captures it by reference.
        with tf.init_scope():
            self._rows = tf.constant(np.sort(order[:num_items]), tf.int64)

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the item at place floor(u m) of the part."""
        # A product rounded up to m is no place.
        place = tf.minimum(tf.cast(uniform * self.num_items, tf.int64), self.num_items - 1)
        return tf.gather(self._rows, place)

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns -log m, and -inf outside of the part."""
        _, found = find_sorted(self._rows, tf.cast(rows, tf.int64))
        return tf.where(found, np.float32(-math.log(self.num_items)), -math.inf)


class CountedDraws(CatalogueDraws):
    """Draws that depend on how many events each item has."""

    def __init__(self, items: ItemCatalogue, num_negatives: int, *, counts: Any) -> None:
        super().__init__(items, num_negatives)
        self.counts = np.asarray(counts, np.float64)
        # An item without any event counts as half of one: never drawn, it would never be learned.
        self._log_share = log_shares(items, self.counts)[:-1].astype(np.float64)


@part("sampler")
class Popularity(CountedDraws):
    """Items in proportion to a power of their number of events.

        p_j = c_j^exponent / sum_k c_k^exponent,    c_j = max(count_j, 1/2)

    The correction undoes the exponent in expectation: it decides which items are drawn often, not
    which are pushed down. Without a correction it is a prior (`correct=None`).

    Args:
        items: the catalogue to draw from.
        num_negatives: how many candidates, n.
        counts: [N] how many training events each item has.
        exponent: 1 draws as the batch does, 0 is `Uniform`.

    Raises:
        InputError: if `num_negatives` is below 1, the counts are bad (see `log_shares`) or the
            exponent is not finite.

    Example:
        >>> source = Popularity(ItemCatalogue([1, 2]), 4, counts=[16, 1])
        >>> np.exp(source.log_probability([0, 1])).astype(float).round(3).tolist()   # 8 to 1
        [0.889, 0.111]

    Source: Mikolov et al., NeurIPS 2013, for 0.75. An item without events has half of one.
    """

    def __init__(
        self, items: ItemCatalogue, num_negatives: int, *, counts: Any, exponent: float = 0.75
    ) -> None:
        super().__init__(items, num_negatives, counts=counts)
        if not math.isfinite(exponent):
            raise bad_input("exponent", "a finite number", exponent)
        self.exponent = exponent
        powers = exponent * self._log_share
        probability = np.exp(powers - powers.max())
        # Steps of a float32 sum would be too coarse beyond ten million items.
        self._cumulative = np.cumsum(probability / probability.sum())
        self._log_probability = (powers - powers.max()) - np.log(probability.sum())

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the first row whose cumulative probability reaches u."""
        return count_below(tf.constant(self._cumulative), uniform)

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns log p."""
        return tf.gather(self._log_probability.astype(np.float32), rows)


@part("sampler")
class LogUniform(CountedDraws):
    """Items by their popularity rank k = 0 .. N - 1, as in Zipf's law.

        p_k = log((k + 2) / (k + 1)) / log(N + 1)

    Args:
        items: the catalogue to draw from.
        num_negatives: how many candidates, n.
        counts: [N] how many training events each item has; the most frequent is rank 0, of equals
            the first in the catalogue.

    Raises:
        InputError: if `num_negatives` is below 1 or the counts are bad (see `log_shares`).

    Example:
        >>> source = LogUniform(ItemCatalogue([1, 2, 3]), 4, counts=[5, 9, 7])
        >>> np.exp(source.log_probability([1, 2, 0])).astype(float).round(2).tolist()
        [0.5, 0.29, 0.21]

    Source: the log-uniform candidate sampler of TensorFlow, with ranks in the place of row numbers.
    """

    def __init__(self, items: ItemCatalogue, num_negatives: int, *, counts: Any) -> None:
        super().__init__(items, num_negatives, counts=counts)
        self._row_of_rank = np.argsort(-self._log_share, kind="stable")
        ranks = np.argsort(self._row_of_rank)
        self._log_probability = np.log(np.log1p(1.0 / (ranks + 1)) / math.log(len(items) + 1))

    def draw(self, uniform: tf.Tensor) -> tf.Tensor:
        """Returns the row of rank floor((N + 1)^u) - 1."""
        rank = tf.cast(tf.exp(uniform * math.log(len(self.items) + 1)), tf.int64) - 1
        return tf.gather(self._row_of_rank, tf.minimum(rank, len(self.items) - 1))

    def log_probability(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns log p."""
        return tf.gather(self._log_probability.astype(np.float32), rows)
