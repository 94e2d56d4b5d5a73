"""How the nearest items are found: by scoring all of them, or with ScaNN.

Both answer with rows of the catalogue, always exactly k columns. A column that holds no item is
declared: row -1 and score -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfrs_negatives.model.top_k import MISSING, Answer, best_columns, in_parts, queries_at_once

IndexKind = Literal["exact", "scann"]

SMALLEST_TREE = 1000
"""Below this many items ScaNN scores all of them: a tree would save nothing."""


@dataclass(frozen=True)
class Depth:
    """How far ScaNN looks for up to k results.

    Attributes:
        k: results.
        leaves: parts of the corpus that a query looks into, at least.
        reorder: candidates whose exact score is computed.
    """

    k: int
    leaves: int
    reorder: int


@dataclass(frozen=True)
class ScannSettings:
    """How ScaNN cuts and searches.

    Attributes:
        num_leaves: parts into which the corpus is cut; 1 for none, and then every item is scored.
        depths: how far to look, by rising k. A k beyond the last one looks further in proportion.
        dimensions_per_block: dimensions that share one 4-bit code.
        anisotropic_threshold: how much more an error along a vector costs than one across it.
    """

    num_leaves: int
    depths: tuple[Depth, ...]
    dimensions_per_block: int = 2
    anisotropic_threshold: float = 0.2

    @classmethod
    def rule_of_thumb(cls, num_items: int) -> ScannSettings:
        """Returns square root of N leaves of which a twentieth is searched.

        Example:
            >>> ScannSettings.rule_of_thumb(10_000)
            ScannSettings(num_leaves=100, depths=(Depth(k=10, leaves=5, reorder=100),),
            dimensions_per_block=2, anisotropic_threshold=0.2)
        """
        leaves = round(math.sqrt(num_items)) if num_items >= SMALLEST_TREE else 1
        return cls(leaves, (Depth(k=10, leaves=math.ceil(leaves / 20), reorder=100),))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ScannSettings:
        """Builds the settings that `asdict` wrote, as a manifest holds them."""
        depths = tuple(Depth(**depth) for depth in record["depths"])
        return cls(**{**record, "depths": depths})

    def depth_of(self, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns leaves and reorder for k results, scalars int32, in or out of a graph."""
        last = self.depths[-1]
        factor = tf.maximum(tf.cast(k, tf.float64) / last.k, 1.0)
        leaves, reorder = (
            tf.cast(tf.math.ceil(n * factor), tf.int32) for n in (last.leaves, last.reorder)
        )
        for depth in reversed(self.depths[:-1]):
            leaves = tf.where(k <= depth.k, depth.leaves, leaves)
            reorder = tf.where(k <= depth.k, depth.reorder, reorder)
        return leaves, reorder


class Backend(tf.Module):
    """Finds the k items of the highest inner product. Runs in a graph or out of one."""

    kind: IndexKind

    def __init__(self, vectors: np.ndarray | tf.Variable) -> None:
        super().__init__()
        self.num_items, self.width = vectors.shape
        if not isinstance(vectors, tf.Variable):
            # A SavedModel keeps a variable in a file of its own.
            vectors = tf.Variable(vectors, trainable=False, name="item_vectors")
        self._vectors = vectors

    def nearest(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns k columns of scores and rows for finite queries, see `search`."""
        raise NotImplementedError

    def vectors(self) -> tf.Tensor:
        """Returns the vectors of all items, [N, D] float32."""
        return self._vectors

    def stored(self) -> Backend:
        """Returns this search with all that it needs in variables, as a SavedModel keeps it."""
        return self

    def search(self, queries: tf.Tensor, k: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the best items of each query.

        Args:
            queries: [B, D] float32. A query that is not finite finds nothing.
            k: how many, at most `num_items`; a number, or a scalar int32 of a graph.

        Returns:
            [B, k] float32 inner products, falling, and [B, k] int32 rows. A column without an item
            has score -inf and row -1, and stands behind all items.
        """
        k = tf.convert_to_tensor(k, tf.int32)
        return ask_the_finite(queries, lambda usable: self.nearest(usable, k))

    def search_arrays(self, queries: np.ndarray, k: int) -> Answer:
        """Does `search` outside a graph, on as many queries at a time as memory allows."""
        at_once = queries_at_once(self.num_items, kind=self.kind)
        return in_parts(
            lambda part: self.search(tf.constant(queries[part]), k), len(queries), at_once
        )


def ask_the_finite(
    queries: tf.Tensor, search: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Searches with the queries [B, D] that are finite; the others find nothing."""
    usable = tf.reduce_all(tf.math.is_finite(queries), axis=1, keepdims=True)
    scores, rows = search(tf.where(usable, queries, 0.0))
    return tf.where(usable, scores, -math.inf), tf.where(usable, rows, MISSING)


class ExactSearch(Backend):
    """Scores every item. Equal scores keep the order of the catalogue.

    Args:
        vectors: [N, D] float32.

    Attributes:
        longest: the length of the longest vector.

    Example:
        >>> search = ExactSearch(np.array([[1.0, 0.0], [0.0, 2.0]], np.float32))
        >>> scores, rows = search.search(tf.constant([[1.0, 1.0]]), 2)
        >>> scores.numpy().tolist(), rows.numpy().tolist()
        ([[2.0, 1.0]], [[1, 0]])
    """

    kind = "exact"

    def __init__(self, vectors: np.ndarray) -> None:
        super().__init__(vectors)
        self.longest = float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max()))

    def nearest(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the k best of all scores."""
        return best_columns(tf.matmul(queries, self._vectors, transpose_b=True), k)


class ScannSearch(Backend):
    """Looks into the most promising leaves of a ScaNN tree.

    The scores are exact inner products in float32, as ScaNN computes them anew from the full
    vectors for the candidates that it reorders. Only which items are found is approximate. The
    order among equal scores is ScaNN's. The same vectors give the same index: the leaves start
    from k-means++, which ScaNN seeds with a constant, and not from its random choice.

    Args:
        vectors: [N, D] float32, or a variable of them, which is shared.
        settings: how to cut and search. They may be exchanged for others of the same `num_leaves`.
    """

    kind = "scann"

    def __init__(self, vectors: np.ndarray | tf.Variable, settings: ScannSettings) -> None:
        super().__init__(vectors)
        self.settings = settings
        self._searcher = _train_scann(self._vectors, settings)

    def nearest(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what ScaNN finds: fewer than k items where the leaves hold no more."""
        some = tf.shape(queries)[0] > 0  # ScaNN fails on an empty batch
        nothing = tf.zeros([0, k], tf.float32), tf.zeros([0, k], tf.int32)
        scores, rows = tf.cond(some, lambda: self._ask_scann(queries, k), lambda: nothing)
        # Of ScaNN's operation TensorFlow knows no shape. NaN stands for no item.
        scores, rows = (tf.ensure_shape(column, [None, None]) for column in (scores, rows))
        return best_columns(tf.where(tf.math.is_nan(scores), -math.inf, scores), k, rows)

    def stored(self) -> Backend:
        """Returns a search of which ScaNN's whole state is in variables."""
        return _StoredScannSearch(self)

    def searcher(self) -> Any:
        """Returns ScaNN's handle."""
        return self._searcher

    def _ask_scann(self, queries: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        leaves, reorder = self.settings.depth_of(k)
        # Leaves of twice k items in all, so that a large k is filled as a rule.
        leaves_for_k = 2 * k // (self.num_items // self.settings.num_leaves) + 1
        result = self.searcher().search_batched_parallel(
            queries,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=tf.minimum(tf.maximum(reorder, k), self.num_items),
            leaves_to_search=tf.minimum(tf.maximum(leaves, leaves_for_k), self.settings.num_leaves),
        )
        return result.distances, result.indices


class _StoredScannSearch(ScannSearch):
    def __init__(self, search: ScannSearch) -> None:
        self._state = search.searcher().serialize_to_module()
        Backend.__init__(self, self._state.dataset)
        self.settings = search.settings

    def stored(self) -> Backend:
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


def _train_scann(vectors: tf.Variable, settings: ScannSettings) -> Any:
    builder = scann_ops().builder(vectors, 10, "dot_product")
    if settings.num_leaves == 1:
        return builder.score_brute_force().build()
    return build_tree(builder, settings)


def build_tree(builder: Any, settings: ScannSettings) -> Any:
    """Returns what a builder, of ScaNN's operations or of its Python module, makes of settings."""
    depth = settings.depths[0]
    builder = builder.tree(settings.num_leaves, depth.leaves, random_init=False)
    builder = builder.score_ah(
        settings.dimensions_per_block,
        anisotropic_quantization_threshold=settings.anisotropic_threshold,
    )
    return builder.reorder(depth.reorder).build()
