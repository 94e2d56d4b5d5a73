"""Rankings that need no training, for the rows beside a model in a table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features, Similarity
from tfrs_negatives.data.catalogue import ItemCatalogue


class MostPopular:
    """The same ranking for every query: the items with the most training events first.

    Items with equal counts keep the order of the catalogue, as in a list that is really served.

    Args:
        items: the corpus of N items.
        counts: [N], the training events of each item, see `Interactions.item_counts`.

    Raises:
        InputError: if there is not one count per item.

    Example:
        >>> baseline = MostPopular(ItemCatalogue(["a", "b", "c"]), np.array([2, 9, 2]))
        >>> scores = baseline.item_vectors({"item_id": tf.constant(["a", "b", "c"])})
        >>> scores.numpy().ravel().tolist()
        [2.0, 3.0, 1.0]
    """

    similarity: Similarity = "dot"
    query_signature: Mapping[str, tf.TensorSpec] = {}

    def __init__(self, items: ItemCatalogue, counts: np.ndarray) -> None:
        if np.shape(counts) != (len(items),):
            raise bad_input("counts", f"{len(items)} numbers, one per item", np.shape(counts))
        self.items = items
        places = np.empty(len(items), np.float32)
        places[np.argsort(-counts, kind="stable")] = np.arange(len(items), 0, -1)
        self._scores = tf.constant(places[:, None])

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Returns [B, 1], all ones."""
        return tf.ones([len(next(iter(features.values()))), 1])

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Returns [m, 1]: N for the most popular item, 1 for the least."""
        return tf.gather(self._scores, self.items.rows(features[self.items.item_key]))


class RandomRanking:
    """Another random ranking for every query, always the same for the same features and seed.

    A query is 64 signs, the bits of a fingerprint of its features; an item is a random point of the
    unit sphere. For a given query all orders of the items are equally likely.

    Args:
        items: the corpus.
        seed: gives other points.

    Example:
        >>> baseline = RandomRanking(ItemCatalogue(["a", "b"]), seed=1)
        >>> baseline.query_vectors({"user_id": tf.constant([7, 8, 7])}).shape
        TensorShape([3, 64])
    """

    similarity: Similarity = "dot"
    query_signature: Mapping[str, tf.TensorSpec] = {}

    def __init__(self, items: ItemCatalogue, seed: int = 0) -> None:
        self.items = items
        points = tf.random.stateless_normal([len(items), 64], seed=[seed, 0])
        self._points = tf.math.l2_normalize(points, axis=1)

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Returns [B, 64], each +1 or -1."""
        rows = len(next(iter(features.values())))
        texts = [
            tf.strings.as_string(tf.reshape(features[name], [rows, -1]))
            for name in sorted(features)
        ]
        joined = tf.strings.reduce_join(tf.concat(texts, axis=1), axis=1, separator="\t")
        hashes = tf.fingerprint(joined)
        bits = tf.bitwise.right_shift(hashes[:, :, None], tf.cast(tf.range(8), tf.uint8)) % 2
        return 2.0 * tf.reshape(tf.cast(bits, tf.float32), [rows, 64]) - 1.0

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Returns [m, 64], each of length 1."""
        return tf.gather(self._points, self.items.rows(features[self.items.item_key]))
