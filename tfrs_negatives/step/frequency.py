"""How often each item is met in the stream of positives: ids to log probability.

In-batch negatives are drawn in proportion to popularity, so the correction needs the probability q
of each item in one draw. Two estimators learn it from the training stream in memory that does not
grow with the catalogue; `ExactFrequency` takes counts that are known.

With B draws per batch, an item of probability q is met in a batch with probability
h = 1 - (1 - q)^B and occupies c = B q candidates on average. The gap estimator measures h, the
counting estimator q; both answer log q.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.records import Frequency

Method = Literal["decayed_count", "interval"]
DEFAULT_RATES = {"decayed_count": 1e-4, "interval": 1e-2}
NEVER = -1
# An item that was never counted gets half an event: less than any that was, and a finite logarithm.
UNSEEN_COUNT = 0.5


@part("frequency", "streaming")
class StreamingFrequency(Frequency, tf.keras.layers.Layer):
    """Estimates log q of hashed ids from the stream itself.

    `method="decayed_count"`, at step t with n occurrences of an item::

        c <- c (1 - rate)^(t - last) + n,   last <- t,   total <- total (1 - rate) + B
        log q = log c + (t - last) log(1 - rate) - log total

    `method="interval"`, the gap estimator of Yi et al., with A the last step at which the item was
    met and D its mean gap::

        D <- (1 - rate) D + rate (t - A),   A <- t
        h = 1 / max(D, t - A),   log q = log(1 - (1 - h)^(1/B))

    With several hashes a collision can only make an item look more frequent, so the least frequent
    of the answers is taken (largest gap, smallest count).

    Args:
        num_buckets: width of the table of each hash.
        num_hashes: how many independent hashes.
        method: "decayed_count" follows multiplicity and cannot saturate; "interval" has the same
            relative noise for every item but measures only whether an item was met.
        rate: weight of the newest observation in (0, 1). For counts, 0 is a plain running count (in
            float32, so it stops at 2^24 events of one item). None: 1e-4 for counts (a window of
            10,000 steps), 0.01 for gaps (Yi et al.).
        initial_gap: gap in steps of an item before its second sight, for "interval" only.
        seed: chooses the hashes.

    Raises:
        InputError: for sizes or an initial gap below 1, a rate outside [0, 1), a rate of 0 for
            gaps, or an unknown method.

    Example:
        >>> frequency = StreamingFrequency(1024, num_hashes=2)
        >>> frequency.update(tf.constant([7, 7, 7, 8], tf.int64))
        >>> np.exp(frequency.log_probability(tf.constant([7, 8], tf.int64))).tolist()
        [0.75, 0.25]

    Source: Yi et al., RecSys 2019, algorithms 2 and 3. We differ where the paper is silent:
    duplicates in a batch make one update; a first sight leaves the gap at its initial value instead
    of counting the time since step 0; the gap that is still open bounds D from below when it is
    read, so an item that disappears is forgotten and one that never came has been away since the
    start.
    """

    def __init__(
        self,
        num_buckets: int = 2**20,
        num_hashes: int = 4,
        *,
        method: Method = "decayed_count",
        rate: float | None = None,
        initial_gap: float = 100.0,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "frequency", "dtype": "float32", **kwargs})
        if method not in DEFAULT_RATES:
            raise bad_input("method", f"one of {sorted(DEFAULT_RATES)}", repr(method))
        self.rate = DEFAULT_RATES[method] if rate is None else rate
        self.num_buckets, self.num_hashes = num_buckets, num_hashes
        self.method, self.initial_gap, self.seed = method, initial_gap, seed
        for name in ("num_buckets", "num_hashes", "initial_gap"):
            if not getattr(self, name) >= 1:
                raise bad_input(name, "at least 1", getattr(self, name))
        if not 0 <= self.rate < 1 or (method == "interval" and self.rate == 0):
            raise bad_input("rate", "a number in [0, 1), above 0 for method 'interval'", rate)
        self._add_state()

    def _add_state(self) -> None:
        # One slot behind the tables takes the writes of empty ids, so that none needs a branch.
        # Without autocast=False a mixed precision policy would read the tables in half precision.
        slots = self.num_hashes * self.num_buckets + 1
        start = self.initial_gap if self.method == "interval" else 0.0
        shared: dict[str, Any] = {
            "trainable": False,
            "experimental_autocast": False,
        }
        self.table = self.add_weight("table", [slots], tf.float32, _constant(start), **shared)
        self.last_step = self.add_weight("last_step", [slots], tf.int64, _constant(NEVER), **shared)
        self.step = self.add_weight("step", [], tf.int64, _constant(0), **shared)
        self.draws = self.add_weight("draws", [], tf.float32, _constant(0), **shared)

    def update(self, ids: tf.Tensor) -> None:
        """Counts one batch of ids [m] int64; `EMPTY_ID` is ignored. Call it in training only."""
        known = tf.cast(tf.not_equal(ids, EMPTY_ID), tf.float32)
        slots, batch = self._slots(ids), tf.reduce_sum(known)
        self.step.assign_add(1)
        if self.method == "interval":
            self._update_gaps(slots)
            # The gaps were measured over batches of the mean size: a short last batch must not
            # change what they say of one draw.
            weight = tf.maximum(self.rate, 1.0 / tf.cast(self.step, tf.float32))
            self.draws.assign_add(weight * (batch - self.draws))
        else:
            self._update_counts(slots, known)
            self.draws.assign(self.draws * (1.0 - self.rate) + batch)

    def _update_gaps(self, slots: tf.Tensor) -> None:
        old, last = tf.gather(self.table, slots), tf.gather(self.last_step, slots)
        gap = tf.cast(self.step - last, tf.float32)
        new = tf.where(tf.equal(last, NEVER), old, (1.0 - self.rate) * old + self.rate * gap)
        # Duplicates computed the same number from the same old values: the order does not matter.
        self._write(slots, new)

    def _update_counts(self, slots: tf.Tensor, known: tf.Tensor) -> None:
        self._write(slots, self._decayed(slots))
        occurrences = tf.tile(known[None, :], [self.num_hashes, 1])
        self.table.scatter_add(tf.IndexedSlices(occurrences, slots))

    def _write(self, slots: tf.Tensor, values: tf.Tensor) -> None:
        # The slot of empty ids stays as if never met, else it would be learned like an item.
        empty = tf.equal(slots, self.num_hashes * self.num_buckets)
        now = tf.where(empty, tf.constant(NEVER, tf.int64), self.step)
        self.table.scatter_update(tf.IndexedSlices(values, slots))
        self.last_step.scatter_update(tf.IndexedSlices(now, slots))

    def _decayed(self, slots: tf.Tensor) -> tf.Tensor:
        age = tf.cast(self.step - tf.gather(self.last_step, slots), tf.float32)
        return tf.gather(self.table, slots) * tf.exp(age * np.float32(np.log1p(-self.rate)))

    def log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32: the natural log of the estimated probability of one draw."""
        slots = self._slots(ids)
        draws = tf.maximum(self.draws, 1.0)
        if self.method == "decayed_count":
            count = tf.reduce_min(self._decayed(slots), axis=0)
            return tf.math.log(tf.maximum(count, UNSEEN_COUNT) / draws)
        open_gap = tf.cast(self.step - tf.gather(self.last_step, slots), tf.float32)
        gap = tf.reduce_max(tf.maximum(tf.gather(self.table, slots), open_gap), axis=0)
        # An item met in every batch has h = 1, of which q = 1; the bound keeps B q near log(4B).
        hit = tf.minimum(1.0 / gap, 1.0 - 0.25 / draws)
        return tf.math.log(-tf.math.expm1(tf.math.log1p(-hit) / draws))

    def _slots(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [num_hashes, m] int64: where each id is kept; empty ids share the last slot."""
        # Raw bits of a named generator: the same in every version of numpy, as a saved table needs.
        salts = np.random.PCG64(self.seed).random_raw(self.num_hashes).astype(np.int64)[:, None]
        bucket = tf.math.floormod(_mix(ids[None, :] + salts), self.num_buckets)
        slot = bucket + np.arange(self.num_hashes)[:, None] * self.num_buckets
        empty = tf.constant(self.num_hashes * self.num_buckets, tf.int64)
        return tf.where(tf.equal(ids, EMPTY_ID), empty, slot)


@part("frequency", "exact")
class ExactFrequency(Frequency, tf.keras.layers.Layer):
    """log q of items whose counts are known: log(max(count, 1/2) / total).

    Args:
        ids: [N] item ids, integers or strings.
        counts: [N] how many training events each has.
        positives_per_query: how many positives a query brings to a batch on average, in batches of
            queries (`tfn.data.QueryBatches.positives_per_query`); None: as many as it brought.

    Raises:
        InputError: if a count is negative or not finite, their sum is zero, or lengths differ, or
            `positives_per_query` is not positive.

    Example:
        >>> frequency = ExactFrequency(["a", "b"], [3, 1])
        >>> from tfrs_negatives.data.ids import to_keys
        >>> np.exp(frequency.log_probability(to_keys(["b", "a"]))).tolist()
        [0.25, 0.75]
    """

    def __init__(
        self,
        ids: Any,
        counts: Any,
        *,
        positives_per_query: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "frequency", "dtype": "float32", **kwargs})
        if positives_per_query is not None and not positives_per_query > 0:
            raise bad_input("positives_per_query", "a positive number", positives_per_query)
        self.positives_per_query = positives_per_query
        self.items = ItemCatalogue(ids)
        self.counts = np.asarray(counts, np.float64)
        self._log_share = log_shares(self.items, self.counts)

    def update(self, ids: tf.Tensor) -> None:
        """Does nothing: the counts are given."""
        del ids  # TensorFlow warns of a function whose body is only words

    def log_probability(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32: the natural log of the share of each id in the counts."""
        rows = self.items.rows_of_keys(ids, unknown=len(self.items))
        return tf.gather(self._log_share, rows)


def log_shares(items: ItemCatalogue, counts: np.ndarray) -> np.ndarray:
    """The log of each item's share of the events, an item without any as if it had half of one.

    Args:
        items: the catalogue of N items.
        counts: [N] how many events each has.

    Returns:
        [N + 1] float32 in nats; the last entry is for ids outside the catalogue.

    Raises:
        InputError: if a count is negative or not finite, their sum is zero, or lengths differ.

    Example:
        >>> np.exp(log_shares(ItemCatalogue([1, 2, 3]), np.array([3.0, 1.0, 0.0]))).tolist()
        [0.75, 0.25, 0.125, 0.125]
    """
    if np.shape(counts) != (len(items),):
        raise bad_input("counts", f"{len(items)} numbers, one per id", np.shape(counts))
    if not (counts.min() >= 0 and 0 < counts.sum() < np.inf):
        expected = "no negative count and a positive, finite sum"
        raise bad_input("counts", expected, counts.tolist()[:5])
    smoothed = np.maximum(np.append(counts, 0.0), UNSEEN_COUNT)
    return np.log(smoothed / counts.sum()).astype(np.float32)


def _constant(value: float) -> tf.keras.initializers.Initializer:
    return tf.keras.initializers.Constant(value)


def _mix(x: tf.Tensor) -> tf.Tensor:
    """Scatters int64 keys over [0, 2^63): the finaliser of splitmix64 (Steele et al., 2014)."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # int64 has no logical shift: the mask clears the copies of the sign bit.
        high = tf.bitwise.right_shift(x, tf.constant(shift, tf.int64)) & (2 ** (64 - shift) - 1)
        x = tf.bitwise.bitwise_xor(x, high) * int(np.uint64(factor).astype(np.int64))
    return x & (2**63 - 1)
