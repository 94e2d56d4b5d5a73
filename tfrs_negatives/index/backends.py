"""How the nearest items are found: by scoring all of them, or with ScaNN.

Both answer with rows of the catalogue, always exactly k columns. A column that holds no item is
declared: row -1 and score -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

IndexKind = Literal["exact", "scann"]

MISSING = -1
"""The row of a column that holds no item."""

_SMALLEST_TREE = 1000
"""Below this many items ScaNN scores all of them: a tree would save nothing."""

_CELLS_AT_ONCE = 2**26
"""Scores that a search may hold in memory, 256 MB of float32."""


@dataclass(frozen=True)
class ScannSettings:
    """How ScaNN searches.

    Attributes:
        num_leaves: parts into which the corpus is cut; 1 for none, and then every item is scored.
        leaves_to_search: how many of them a query looks into, at least.
        dimensions_per_block: dimensions that share one 4-bit code.
        anisotropic_threshold: how much more an error along a vector costs than one across it.
        reorder_per_result: candidates whose exact score is computed, for each result asked for.
        min_reorder: the same, at least this many in all.
    """

    num_leaves: int
    leaves_to_search: int
    dimensions_per_block: int = 2
    anisotropic_threshold: float = 0.2
    reorder_per_result: int = 10
    min_reorder: int = 100

    @classmethod
    def rule_of_thumb(cls, num_items: int) -> ScannSettings:
        """Returns square root of N leaves of which a twentieth is searched.

        Example:
            >>> settings = ScannSettings.rule_of_thumb(10_000)
            >>> settings.num_leaves, settings.leaves_to_search
            (100, 5)
        """
        leaves = round(math.sqrt(num_items)) if num_items >= _SMALLEST_TREE else 1
        return cls(num_leaves=leaves, leaves_to_search=math.ceil(leaves / 20))


class Search(tf.Module):
    """Finds the k items of the highest inner product. Runs in a graph or out of one."""

    kind: IndexKind

    def __init__(self, num_items: int, width: int) -> None:
        super().__init__()
        self.num_items = num_items
        self.width = width

    def nearest(self, queries: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns at most k columns of scores and rows, the best first; NaN for no item."""
        raise NotImplementedError

    def stored(self) -> Search:
        """Returns this search with all that it needs in variables, as a SavedModel keeps it."""
        raise NotImplementedError

    def search(self, queries: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the best items of each query.

        Args:
            queries: [B, D] float32. A query that is not finite finds nothing.
            k: how many, at most `num_items`.

        Returns:
            [B, k] float32 inner products, falling, and [B, k] int32 rows. A column without an item
            has score -inf and row -1, and stands behind all items.
        """
        usable = tf.reduce_all(tf.math.is_finite(queries), axis=1, keepdims=True)
        scores, rows = self.nearest(tf.where(usable, queries, 0.0), k)
        found = usable & (scores > -math.inf)  # False for NaN
        missing = [[0, 0], [0, k - tf.shape(scores)[1]]]
        scores = tf.pad(tf.where(found, scores, -math.inf), missing, constant_values=-math.inf)
        rows = tf.pad(tf.where(found, rows, MISSING), missing, constant_values=MISSING)
        return tf.ensure_shape(scores, [None, k]), tf.ensure_shape(rows, [None, k])

    def search_arrays(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Does `search` outside a graph, on as many queries at a time as memory allows."""
        step = max(1, _CELLS_AT_ONCE // self.num_items)
        starts = range(0, max(len(queries), 1), step)
        parts = [self.search(tf.constant(queries[s : s + step]), k) for s in starts]
        scores, rows = (
            np.concatenate([p.numpy() for p in column]) for column in zip(*parts, strict=True)
        )
        return scores, rows


class ExactSearch(Search):
    """Scores every item. Equal scores keep the order of the catalogue.

    Args:
        vectors: [N, D] float32.

    Example:
        >>> search = ExactSearch(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32))
        >>> scores, rows = search.search(tf.constant([[1.0, 1.0]]), 2)
        >>> scores.numpy().tolist(), rows.numpy().tolist()
        ([[2.0, 1.0]], [[1, 0]])
    """

    kind = "exact"

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(*vectors.shape)
        self._vectors = tf.Variable(vectors, trainable=False, name="item_vectors")

    def nearest(self, queries: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the k best of all scores."""
        best = tf.math.top_k(tf.matmul(queries, self._vectors, transpose_b=True), k)
        return best.values, best.indices

    def stored(self) -> Search:
        """Returns itself: the vectors are a variable."""
        return self


class ScannSearch(Search):
    """Looks into the most promising leaves of a ScaNN tree.

    The scores are exact inner products in float32, as ScaNN computes them anew from the full
    vectors for the candidates that it reorders. Only which items are found is approximate. The
    order among equal scores is ScaNN's. The same vectors give the same index: the leaves start
    from k-means++, which ScaNN seeds with a constant, and not from its random choice.

    Args:
        vectors: [N, D] float32.
        settings: how to cut and search. `settings` may be exchanged for one that searches more or
            fewer leaves.
    """

    kind = "scann"

    def __init__(self, vectors: np.ndarray, settings: ScannSettings) -> None:
        super().__init__(*vectors.shape)
        self.settings = settings
        self._searcher = _train_scann(vectors, settings)

    def nearest(self, queries: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what ScaNN finds; fewer than k columns, or NaN, where the leaves hold no more."""
        some = tf.shape(queries)[0] > 0  # ScaNN fails on an empty batch
        nothing = tf.zeros([0, k], tf.float32), tf.zeros([0, k], tf.int32)
        return tf.cond(some, lambda: self._ask_scann(queries, k), lambda: nothing)

    def stored(self) -> Search:
        """Returns a search of which ScaNN's whole state is in variables."""
        return _StoredScannSearch(self)

    def searcher(self) -> Any:
        """Returns ScaNN's handle."""
        return self._searcher

    def _ask_scann(self, queries: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
        settings = self.settings
        # Leaves of twice k items in all, so that a large k is filled as a rule.
        leaves_for_k = 2 * k // (self.num_items // settings.num_leaves) + 1
        result = self.searcher().search_batched(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=min(
                max(settings.min_reorder, settings.reorder_per_result * k), self.num_items
            ),
            leaves_to_search=min(max(settings.leaves_to_search, leaves_for_k), settings.num_leaves),
        )
        return result.distances, result.indices


class _StoredScannSearch(ScannSearch):
    def __init__(self, search: ScannSearch) -> None:
        Search.__init__(self, search.num_items, search.width)
        self.settings = search.settings
        self._state = search.searcher().serialize_to_module()

    def stored(self) -> Search:
        return self

    def searcher(self) -> Any:
        return scann_ops().searcher_from_module(self._state)


def scann_ops() -> Any:
    """Returns ScaNN's TensorFlow operations, which are registered by being imported.

    Raises:
        ImportError: if the package is missing, or was compiled for another TensorFlow.
    """
    try:
        from scann.scann_ops.py import scann_ops as operations
    except (ImportError, tf.errors.NotFoundError) as error:
        raise ImportError(
            "a ScaNN index needs the package `scann`, compiled for this TensorFlow (scann==1.4.2 "
            "for 2.20, Linux only); an index of kind 'exact' needs no further package"
        ) from error
    return operations


def _train_scann(vectors: np.ndarray, settings: ScannSettings) -> Any:
    builder = scann_ops().builder(vectors, 10, "dot_product")
    if settings.num_leaves == 1:
        return builder.score_brute_force().build()
    builder = builder.tree(settings.num_leaves, settings.leaves_to_search, random_init=False)
    builder = builder.score_ah(
        settings.dimensions_per_block,
        anisotropic_quantization_threshold=settings.anisotropic_threshold,
    )
    return builder.reorder(settings.min_reorder).build()
