"""The one exact search: the items of the highest inner product, for all rooms that look for them.

Everywhere equal scores keep the order of the columns, an answer has as many columns as were asked
for, and a column that holds no item is declared: score -inf and row -1.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import tensorflow as tf

Answer: TypeAlias = tuple[np.ndarray, np.ndarray]
"""Scores [B, k] float32, falling, and rows or ids [B, k]."""
BestItems: TypeAlias = Callable[[np.ndarray, int], Answer]

MISSING = -1
"""The row of a column that holds no item."""
CELLS_AT_ONCE = 2**26
"""Scores that a search may hold in memory, 256 MB of float32."""
REGISTER = 32
"""A product of so many columns, or a multiple of it, sums all of them in the same order."""
SCORE_BYTES = 8
"""What a query and an item take where TensorFlow searches: float32, and a copy."""


def best_columns(
    scores: tf.Tensor, k: int | tf.Tensor, rows: tf.Tensor | None = None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Picks the k best columns of each query, in a graph or out of one.

    Args:
        scores: [B, C] float32, -inf in a column that may not be found.
        k: how many, a number or a scalar int32; C may be less.
        rows: [C] or [B, C] integers, what the columns hold; None for 0, 1, ...

    Returns:
        [B, k] float32 scores, falling, and [B, k] rows; -inf and -1 where there is no item.

    Example:
        >>> scores, rows = best_columns(tf.constant([[1.0, 3.0, -math.inf, 3.0]]), 4)
        >>> scores.numpy().tolist(), rows.numpy().tolist()
        ([[3.0, 3.0, 1.0, -inf]], [[1, 3, 0, -1]])
    """
    k = tf.convert_to_tensor(k, tf.int32)
    best = tf.math.top_k(scores, tf.minimum(k, tf.shape(scores)[1]))
    rows = best.indices if rows is None else _gather(tf.convert_to_tensor(rows), best.indices)
    found = best.values > -math.inf  # False for NaN
    missing, width = [[0, 0], [0, k - tf.shape(rows)[1]]], tf.get_static_value(k)
    filled = (
        tf.pad(tf.where(found, column, filler), missing, constant_values=filler)
        for column, filler in (
            (best.values, tf.constant(-math.inf)),
            (rows, tf.constant(MISSING, rows.dtype)),
        )
    )
    scores, rows = (tf.ensure_shape(column, [None, width]) for column in filled)
    return scores, rows


def _gather(rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return tf.gather(rows, places, batch_dims=rows.shape.rank - 1)


def best_of(scores: np.ndarray, k: int, rows: np.ndarray | None = None) -> Answer:
    """Does `best_columns` with arrays, for small searches: TensorFlow only selects.

    Example:
        >>> scores, rows = best_of(np.float32([[1, 3]]), 3, np.array([7, 8]))
        >>> scores.tolist(), rows.tolist()
        ([[3.0, 1.0, -inf]], [[8, 7, -1]])
    """
    best = tf.math.top_k(scores, min(k, scores.shape[1]))
    values, places = best.values.numpy(), best.indices.numpy()
    if rows is not None:
        places = rows[places] if rows.ndim == 1 else np.take_along_axis(rows, places, axis=1)
    places = np.where(values > -math.inf, places, MISSING)
    missing = [(0, 0), (0, k - values.shape[1])]
    if missing[1][1]:
        values = np.pad(values, missing, constant_values=-math.inf)
        places = np.pad(places, missing, constant_values=MISSING)
    return values, places


def merge_answers(answers: Sequence[Answer], k: int, padding: int | str) -> Answer:
    """Merges the answers of indexes that hold different items.

    Args:
        answers: scores [B, w] and ids [B, w] of each; w may differ.
        k: the number of columns of the result.
        padding: the id of a column without an item.

    Returns:
        scores [B, k] float32, falling, and ids [B, k]. Of equal scores that of the earlier answer
        stands first. A column for which nothing is left has score -inf and the padding id.

    Example:
        >>> first = np.array([[3.0, 1.0]], np.float32), np.array([[10, 11]])
        >>> second = np.array([[2.0, -np.inf]], np.float32), np.array([[20, -1]])
        >>> scores, ids = merge_answers([first, second], k=4, padding=-1)
        >>> scores.tolist(), ids.tolist()
        ([[3.0, 2.0, 1.0, -inf]], [[10, 20, 11, -1]])
    """
    joined, ids = (np.concatenate(column, axis=1) for column in zip(*answers, strict=True))
    scores, places = best_of(joined, k)
    ids = np.take_along_axis(ids, np.maximum(places, 0), axis=1)
    return scores, np.where(places == MISSING, padding, ids)


def queries_at_once(num_items: int, *, kind: str = "exact", filtered: bool = False) -> int:
    """Returns how many queries a search may be given, so that what it holds fits in memory.

    Args:
        num_items: N.
        kind: "exact", which scores all of them, or "scann".
        filtered: whether there are lists of ids.

    Example:
        >>> queries_at_once(2**20), queries_at_once(2**20, kind="scann")
        (64, 4096)
    """
    if kind == "exact":
        return max(1, CELLS_AT_ONCE // max(num_items, 1))
    # A filter fetches up to a fiftieth of the corpus for each query.
    return 256 if filtered else 4096


def in_parts(search: Callable[[slice], Any], num_queries: int, at_once: int) -> Answer:
    """Asks for the queries of a slice at a time, and puts the answers together.

    Args:
        search: which queries -> their scores [b, k] and rows or ids [b, k].
        num_queries: B; of none the answer has no rows.
        at_once: the most queries of a slice.
    """
    starts = range(0, max(num_queries, 1), at_once)
    parts = [search(slice(start, start + at_once)) for start in starts]
    if len(parts) == 1:
        return np.asarray(parts[0][0]), np.asarray(parts[0][1])
    scores, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    return scores, rows


def exact_top_k(queries: np.ndarray, vectors: tf.Tensor, k: int) -> Answer:
    """Scores all items for each query, as many queries at a time as memory allows.

    Args:
        queries: [B, D] float32.
        vectors: [N, D] float32.
        k: how many.

    Returns:
        [B, k] scores and [B, k] int32 rows, as of `best_columns`.
    """

    def search(part: slice) -> tuple[tf.Tensor, tf.Tensor]:
        return best_columns(tf.matmul(queries[part], vectors, transpose_b=True), k)

    return in_parts(search, len(queries), queries_at_once(len(vectors)))


def best_items(vectors: np.ndarray, *, byte_budget: int) -> BestItems:
    """Prepares the search for the items of the highest inner product.

    On processors ScaNN's brute force does it, which selects while it multiplies; TensorFlow does
    where there is a GPU, or no ScaNN.

    Args:
        vectors: [N, D] float32, finite.
        byte_budget: bytes that scores may take where TensorFlow searches, which needs all of a
            query; a single query always goes.

    Returns:
        (queries [q, D], length) -> scores, falling, and rows, [q, length] each, for a length up to
        N. Equal vectors have equal scores, and equal scores stand in the order of the rows.

    Example:
        >>> search = best_items(np.float32([[1], [3], [2]]), byte_budget=2**20)
        >>> scores, rows = search(np.float32([[2]]), 2)
        >>> scores.tolist(), rows.tolist()
        ([[6.0, 4.0]], [[1, 2]])
    """
    has_scann = importlib.util.find_spec("scann") is not None
    if has_scann and not tf.config.list_logical_devices("GPU"):
        return _by_scann(vectors)
    return _by_tensorflow(vectors, max(1, byte_budget // (SCORE_BYTES * len(vectors))))


def _by_scann(vectors: np.ndarray) -> BestItems:
    import scann

    builder = scann.scann_ops_pybind.builder(vectors, 1, "dot_product")
    searcher = builder.score_brute_force(quantize=False).build()

    def search(queries: np.ndarray, length: int) -> Answer:
        # One part for each thread: of more, some would wait for the last. A part of a single query
        # goes another way, on which equal vectors may differ in the last bit.
        size = max(2, math.ceil(len(queries) / (os.cpu_count() or 1)))
        whole = np.resize(queries, (-len(queries) // size * -size, queries.shape[1]))
        rows, scores = searcher.search_batched_parallel(whole, length, batch_size=size)
        return scores[: len(queries)], rows[: len(queries)]

    return search


def _by_tensorflow(vectors: np.ndarray, size: int) -> BestItems:
    num_items = len(vectors)
    # The last columns of a product, where they do not fill a register, are summed in another order:
    # equal vectors would have scores that differ in the last bit.
    padded = tf.pad(vectors, [[0, -num_items % REGISTER], [0, 0]])

    def search(queries: np.ndarray, length: int) -> Answer:
        def search_part(part: slice) -> tuple[tf.Tensor, tf.Tensor]:
            scores = tf.matmul(queries[part], padded, transpose_b=True)
            return best_columns(scores[:, :num_items], length)

        return in_parts(search_part, len(queries), size)

    return search
