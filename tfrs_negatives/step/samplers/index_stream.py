"""Uniform items from a second `tf.data` stream."""

from __future__ import annotations

import math

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.step.records import Batch, Candidates, Sampler


@part("sampler")
class IndexStream(Sampler):
    """The same uniform items as `Uniform` from a second stream, as the paper feeds them.

    Choose it over `Uniform` where item features are too large to sit in the graph. The batch holds
    a dict of item features [n, ...] under `key`; `attach` puts it there. A strategy hands each
    replica its part of them.

    Args:
        items: the catalogue that the stream shuffles.
        num_negatives: how many items the stream adds to each batch, n.
        key: the batch column that holds their features.

    Raises:
        InputError: if `num_negatives` is below 1, or a batch does not have the column.

    Example:
        >>> source = IndexStream(ItemCatalogue([1, 2, 3]), 2)
        >>> train = tf.data.Dataset.from_tensor_slices({"user_id": [5, 6]}).batch(1)
        >>> next(iter(source.attach(train)))["index_items"]["item_id"].shape
        TensorShape([2])

    Source: Yang et al., WWW 2020, section 3.2.
    """

    def __init__(
        self, items: ItemCatalogue, num_negatives: int, *, key: str = "index_items"
    ) -> None:
        if num_negatives < 1:
            raise bad_input("num_negatives", "at least 1", num_negatives)
        self.items, self.num_negatives, self.key = items, num_negatives, key

    def attach(self, dataset: tf.data.Dataset, *, seed: int = 0) -> tf.data.Dataset:
        """Returns the data set with `num_negatives` shuffled items beside each batch."""
        index = tf.data.Dataset.range(len(self.items)).shuffle(len(self.items), seed=seed)
        index = index.repeat().batch(self.num_negatives, drop_remainder=True)
        joined = tf.data.Dataset.zip((dataset, index.map(self.items.gather)))
        return joined.map(lambda batch, items: {**batch, self.key: items})

    def sample(self, batch: Batch) -> Candidates:
        """Returns the candidates that came with the batch."""
        keys = self._keys(batch)
        vectors = all_rows(batch.encode_items(batch.features[self.key]))
        return Candidates(keys, vectors, tf.ones_like(keys, tf.bool))

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns log(n / N), float32, the shape of ids; -inf outside the catalogue."""
        candidates = tf.cast(tf.shape(self._keys(batch))[0], tf.float32)
        inside = self.items.rows_of_keys(ids) >= 0
        return tf.where(inside, tf.math.log(candidates) - math.log(len(self.items)), -math.inf)

    def _keys(self, batch: Batch) -> tf.Tensor:
        if self.key not in batch.features:
            names = sorted(batch.features)
            raise bad_input(f"features[{self.key!r}]", "items of `IndexStream.attach`", names)
        return all_rows(to_keys(batch.features[self.key][self.items.item_key]))
