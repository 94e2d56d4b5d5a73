"""The best items of every query, exactly: the inner loop of an evaluation."""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import tensorflow as tf

BestItems: TypeAlias = Callable[[tf.Tensor, int], tuple[np.ndarray, np.ndarray]]

BLOCK = 32
"""Columns that are looked at together when the best are selected; 32 and 64 were fastest."""
SCORE_BYTES = 5
"""What a query and an item take where TensorFlow searches: float32, and a share of the peaks."""


def best_items(vectors: tf.Tensor, *, byte_budget: int) -> BestItems:
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
        >>> search = best_items(tf.constant([[1.0], [3.0], [2.0]]), byte_budget=2**20)
        >>> scores, rows = search(tf.constant([[2.0]]), 2)
        >>> scores.tolist(), rows.tolist()
        ([[6.0, 4.0]], [[1, 2]])
    """
    has_scann = importlib.util.find_spec("scann") is not None
    if has_scann and not tf.config.list_logical_devices("GPU"):
        return _by_scann(np.asarray(vectors))
    return _by_tensorflow(vectors, max(1, byte_budget // (SCORE_BYTES * len(vectors))))


def _by_scann(vectors: np.ndarray) -> BestItems:
    import scann

    builder = scann.scann_ops_pybind.builder(vectors, 1, "dot_product")
    searcher = builder.score_brute_force(quantize=False).build()

    def search(queries: tf.Tensor, length: int) -> tuple[np.ndarray, np.ndarray]:
        # One part for each thread: of more, some would wait for the last. A part of a single query
        # goes another way, on which equal vectors may differ in the last bit.
        size = max(2, math.ceil(len(queries) / (os.cpu_count() or 1)))
        whole = np.resize(np.asarray(queries), (-len(queries) // size * -size, queries.shape[1]))
        rows, scores = searcher.search_batched_parallel(whole, length, batch_size=size)
        return scores[: len(queries)], rows[: len(queries)]

    return search


def _by_tensorflow(vectors: tf.Tensor, size: int) -> BestItems:
    num_items = len(vectors)
    # The last columns of a product, where they do not fill a register, are summed in another order:
    # equal vectors would have scores that differ in the last bit.
    vectors = tf.pad(vectors, [[0, -num_items % BLOCK], [0, 0]])

    def search(queries: tf.Tensor, length: int) -> tuple[np.ndarray, np.ndarray]:
        # Few lengths, as each is a graph of its own.
        longer = min(num_items, -(-length // 64) * 64)
        select = _selector(longer, num_items)
        found = [select(queries[i : i + size], vectors) for i in range(0, len(queries), size)]
        scores, rows = (np.concatenate(column) for column in zip(*found, strict=True))
        return scores[:, :length], rows[:, :length]

    return search


@functools.lru_cache(maxsize=32)
def _selector(k: int, num_items: int) -> Callable[..., tuple[tf.Tensor, ...]]:
    specs = [tf.TensorSpec([None, None]), tf.TensorSpec([-(-num_items // BLOCK) * BLOCK, None])]

    @tf.function(input_signature=specs)
    def select(queries: tf.Tensor, vectors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if k * BLOCK >= num_items:
            scores = tf.matmul(queries, vectors, transpose_b=True)
            return tf.math.top_k(scores[:, :num_items], k)
        whole = num_items // BLOCK * BLOCK
        scores = tf.matmul(queries, vectors[:whole], transpose_b=True)
        rest = tf.matmul(queries, vectors[whole:], transpose_b=True)
        return _top_k(scores, rest[:, : num_items - whole], k)

    return select


def _top_k(scores: tf.Tensor, rest: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `tf.math.top_k` of both parts together returns, in half the time.

    Of the blocks of columns only the k with the highest peaks are searched: an item of another one
    has k items before it, one in each of them.

    Args:
        scores: [q, a whole number of blocks].
        rest: [q, fewer than a block].
        k: how many.
    """
    num_blocks = scores.shape[1] // BLOCK
    blocks = tf.reshape(scores, [-1, num_blocks, BLOCK])
    best = tf.math.top_k(tf.reduce_max(blocks, axis=2), k).indices
    # Ascending, so that the order of the columns still decides between equals.
    best = tf.sort(best, axis=1)
    searched = tf.reshape(tf.gather(blocks, best, axis=1, batch_dims=1), [-1, k * BLOCK])
    values, place = tf.math.top_k(tf.concat([searched, rest], axis=1), k)
    best = tf.pad(best, [[0, 0], [0, 1]], constant_values=num_blocks)
    return values, tf.gather(best, place // BLOCK, axis=1, batch_dims=1) * BLOCK + place % BLOCK
