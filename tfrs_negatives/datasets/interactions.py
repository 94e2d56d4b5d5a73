"""A log of interactions in memory: one row per event, columns as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.encode.catalogue import ItemCatalogue
from tfrs_negatives.types import bad_input

if TYPE_CHECKING:
    from tfrs_negatives.datasets.synthetic import SyntheticTruth


@dataclass(frozen=True)
class Interactions:
    """E events: who (query features), what (item id), and where known when and how much.

    Attributes:
        query_features: name -> [E, ...].
        item_ids: [E] integers or strings.
        query_key: the query feature that says which events belong to one query (a user id); None
            where every event is a query of its own.
        timestamps: [E] int64 seconds, or None.
        weights: [E] float32, the example weights, or None.

    Raises:
        InputError: if a column has another length, a float feature holds NaN or infinity, a weight
            is negative, or `query_key` is no feature.

    Example:
        >>> users = {"user_id": np.array([1, 1, 2])}
        >>> log = Interactions(users, np.array([7, 8, 7]), query_key="user_id")
        >>> len(log), len(log.queries()[0]["user_id"])
        (3, 2)
    """

    query_features: Mapping[str, np.ndarray]
    item_ids: np.ndarray
    query_key: str | None = None
    timestamps: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = {**self.query_features, "timestamps": self.timestamps, "weights": self.weights}
        for name, column in columns.items():
            if column is not None:
                _check_column(name, column, len(self.item_ids))
        if self.item_ids.dtype.kind not in "iuU":
            raise bad_input("item_ids", "integers or strings", f"dtype {self.item_ids.dtype}")
        if self.weights is not None and len(self.weights) and self.weights.min() < 0:
            raise bad_input("weights", "no negative weight", self.weights.min())
        if self.query_key is not None and self.query_key not in self.query_features:
            raise bad_input("query_key", f"one of {sorted(self.query_features)}", self.query_key)

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: np.ndarray) -> Interactions:
        """Returns the events at `rows` (a boolean mask or row numbers), in that order."""
        return replace(
            self,
            query_features={name: column[rows] for name, column in self.query_features.items()},
            item_ids=self.item_ids[rows],
            timestamps=None if self.timestamps is None else self.timestamps[rows],
            weights=None if self.weights is None else self.weights[rows],
        )

    def queries(self) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Groups the events by query.

        Returns:
            The features of each distinct query as its first event has them, [Q, ...] each, and the
            number of the query that each event belongs to, [E] int64.
        """
        if self.query_key is None:
            return dict(self.query_features), np.arange(len(self))
        _, first, query_of_event = np.unique(
            self.query_features[self.query_key], return_index=True, return_inverse=True
        )
        return {n: column[first] for n, column in self.query_features.items()}, query_of_event

    def item_rows(self, items: ItemCatalogue) -> np.ndarray:
        """Returns [E] int64: the catalogue row of each event's item.

        Raises:
            InputError: if an item of the log is not in the catalogue.
        """
        rows: np.ndarray = items.rows(self.item_ids).numpy()
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise bad_input(
                "item_ids",
                "only items of the catalogue",
                f"{len(unknown)} events with others, the first is {self.item_ids[unknown[0]]!r}",
            )
        return rows

    def item_counts(self, items: ItemCatalogue) -> np.ndarray:
        """Returns [N] int64: how many events each item of the catalogue has."""
        return np.bincount(self.item_rows(items), minlength=len(items))

    def dataset(
        self, batch_size: int, *, item_key: str, shuffle: bool = True, seed: int = 0
    ) -> tf.data.Dataset:
        """Returns batches for `model.fit`: the query features, the item ids under `item_key`, and
        `sample_weight` where the log has weights. The last batch may be shorter; a shuffled data
        set has another order in every epoch, the same for the same seed.
        """
        order = tf.data.Dataset.range(len(self))
        if shuffle:
            order = order.shuffle(len(self), seed=seed, reshuffle_each_iteration=True)
        return self.gather_rows(order.batch(batch_size), item_key=item_key)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns how many batches hold every event once; the last may be shorter."""
        return -(-len(self) // batch_size)

    def stream(
        self,
        batch_size: int,
        *,
        item_key: str,
        seed: int = 0,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        """Returns the batches of `dataset`, epoch after epoch without end, from any step on.

        Which events batch t holds depends on t and the seed alone: epoch t // S, with
        S = `steps_per_epoch(batch_size)`, has an order of its own that is computed and not stored,
        and step t % S takes the next `batch_size` events of it (the last step what is left). So
        training that was interrupted goes on with the batch that was next, at once:

            checkpoints = tfn.Checkpoints("checkpoints", every_steps=1000)
            start = checkpoints.restore(model)
            model.fit(
                log.stream(2048, item_key="item_id", start_step=start),
                steps_per_epoch=log.steps_per_epoch(2048),
                epochs=10,
                callbacks=[checkpoints],
            )

        Args:
            batch_size: rows of a batch.
            item_key: the column of a batch that holds the item ids.
            seed: of the orders.
            start_step: the number of the first batch.

        Returns:
            An endless data set of dicts of tensors [batch_size, ...].

        Raises:
            InputError: if the log is empty, `batch_size` below 1 or `start_step` below 0.

        Example:
            >>> log = Interactions({"user_id": np.arange(5)}, np.arange(5), query_key="user_id")
            >>> users = [b["user_id"].numpy() for b in log.stream(2, item_key="item_id").take(6)]
            >>> [len(batch) for batch in users]
            [2, 2, 1, 2, 2, 1]
            >>> np.sort(np.concatenate(users[:3])).tolist()
            [0, 1, 2, 3, 4]
            >>> later = next(iter(log.stream(2, item_key="item_id", start_step=4)))
            >>> bool((later["user_id"] == users[4]).numpy().all())
            True
        """
        if not len(self):
            raise bad_input("stream", "a log with at least one event", "none")
        if batch_size < 1:
            raise bad_input("batch_size", "at least 1", batch_size)
        if start_step < 0:
            raise bad_input("start_step", "at least 0", start_step)
        num_events, num_steps = len(self), self.steps_per_epoch(batch_size)

        def rows_of(step: tf.Tensor) -> tf.Tensor:
            first = step % num_steps * batch_size
            positions = tf.range(first, tf.minimum(first + batch_size, num_events))
            return _shuffled(positions, num_events, seed=seed, epoch=step // num_steps)

        rows = tf.data.Dataset.counter(start_step).map(rows_of)
        return self.gather_rows(rows, item_key=item_key)

    def gather_rows(self, batches: tf.data.Dataset, *, item_key: str) -> tf.data.Dataset:
        """Returns the batches whose row numbers [B] a data set gives, as `dataset` does."""
        columns = {**self.query_features, item_key: self.item_ids}
        if self.weights is not None:
            columns["sample_weight"] = self.weights
        tensors = {name: tf.constant(column) for name, column in columns.items()}
        # Shuffling row numbers and gathering a batch at once is far cheaper than shuffling rows.
        gathered = batches.map(
            lambda rows: {name: tf.gather(column, rows) for name, column in tensors.items()},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return gathered.prefetch(tf.data.AUTOTUNE)


@dataclass(frozen=True)
class RetrievalData:
    """A log cut into training and test, with its catalogue.

    Attributes:
        train: what may be learned from. Vocabularies, counts and histories come from here only.
        test: what is predicted.
        items: the corpus, items without any event included.
        name: what the data is called in tables.
        truth: what the synthetic generator knows; None for real data and for a split not its own.
        titles: [N] strings, the names of the items for display; None where there are none.
    """

    train: Interactions
    test: Interactions
    items: ItemCatalogue
    name: str
    truth: SyntheticTruth | None = None
    titles: np.ndarray | None = None


@dataclass(frozen=True)
class SourceLog:
    """A log as its source has it, before the rating threshold and the split.

    Attributes:
        log: E events.
        items: the corpus.
        ratings: [E] float32, or None.
        is_test: [E] bool, the split that the source comes with; None where it has none.
        titles: [N] strings, or None.
        truth: what the synthetic generator knows, or None.
    """

    log: Interactions
    items: ItemCatalogue
    ratings: np.ndarray | None = None
    is_test: np.ndarray | None = None
    titles: np.ndarray | None = None
    truth: SyntheticTruth | None = None


def _check_column(name: str, column: Any, num_events: int) -> None:
    if len(column) != num_events:
        raise bad_input(name, f"{num_events} rows, one per event", f"{len(column)} rows")
    if column.dtype.kind == "f" and not np.isfinite(column).all():
        first = int(np.argwhere(~np.isfinite(column))[0][0])
        raise bad_input(name, "finite numbers", f"{column[first]} in row {first}")
    if column.dtype.kind not in "biufU":
        raise bad_input(name, "numbers or strings", f"dtype {column.dtype}")


def _shuffled(positions: tf.Tensor, num_events: int, *, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Positions [m] in the order of an epoch -> row numbers [m], a permutation of all rows."""
    # The cipher uses few low bits of each of the three words of its key, so plain numbers for seed
    # and epoch would repeat after 256 epochs. With the 4 rounds of
    # `tf.random.experimental.index_shuffle` a few orders are hardly shuffled.
    key = tf.random.stateless_uniform(
        [3], tf.stack([tf.constant(seed, tf.int64), epoch]), None, None, tf.int32, alg="philox"
    )
    last = tf.constant(num_events - 1, positions.dtype)
    return tf.raw_ops.RandomIndexShuffle(index=positions, seed=key, max_index=last, rounds=8)
