"""From vectors to the rank of every held-out item, a chunk of queries at a time.

Ties are ranked against the model: an item that is wanted stands behind all items of the same score
that are not, so a collapsed model finds nothing. The wanted cells are taken out of the score matrix
before the best of the others are listed; the rank of a wanted item is then one more than the number
of others that score as much or more and of wanted ones that stand before it. This is exact.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from rich.progress import track

from tfrs_negatives.evaluation.held_out import HeldOut, Pairs
from tfrs_negatives.types import RetrievalModel, bad_input

BLOCK = 32
"""Columns that are looked at together when the best are selected; 32 and 64 were fastest."""


class Ranks(NamedTuple):
    """Where the held-out items stand.

    Attributes:
        pairs: P held-out pairs, those of one query from the best to the worst.
        place: [P] int64, how many held-out items of the same query stand before this one.
        rank: [P] int64 from 1; exact up to the largest k, and some number above it beyond.
        recommended: k -> [N] int64, in how many of the lists of length k each item is.
    """

    pairs: Pairs
    place: np.ndarray
    rank: np.ndarray
    recommended: dict[int, np.ndarray]


def rank_held_out(
    model: RetrievalModel,
    held_out: HeldOut,
    *,
    ks: Sequence[int],
    batch_size: int,
    byte_budget: int,
    progress: bool,
) -> Ranks:
    """Ranks the catalogue for each query.

    Args:
        model: gives vectors whose inner product is the score.
        held_out: Q queries.
        ks: lengths of lists, ascending, none above the number of items.
        batch_size: the most queries or items that go through a tower at once.
        byte_budget: bytes that the scores of one chunk of queries may take.
        progress: whether to show a bar.

    Raises:
        InputError: if a tower yields NaN or infinity, or vectors whose product overflows.
    """
    num_items = len(model.items)
    vectors, largest = _embed_items(model, batch_size)
    size = max(1, min(batch_size, byte_budget // (4 * len(vectors))))
    starts = range(0, held_out.num_queries, size)
    recommended = {k: np.zeros(num_items, np.int64) for k in ks}
    parts: list[tuple[np.ndarray, ...]] = []
    for begin in track(starts, "Ranking the catalogue", disable=not progress):
        end = min(begin + size, held_out.num_queries)
        queries = _embed_queries(model, held_out, begin, end, largest)
        pairs = held_out.relevant.between(begin, end)
        seen = held_out.seen.between(begin, end)
        scores, best_scores, best_rows = _select(queries, vectors, pairs, seen, num_items, ks[-1])
        order = np.lexsort((pairs.rows, -scores, pairs.queries))
        pairs = Pairs(pairs.queries, pairs.rows[order])
        place, rank = _place_and_rank(pairs.queries, scores[order], best_scores)
        _count_recommended(recommended, pairs, rank, best_scores, best_rows)
        parts.append((pairs.queries + begin, pairs.rows, place, rank))
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    return Ranks(Pairs(joined[0], joined[1]), joined[2], joined[3], recommended)


def _embed_items(model: RetrievalModel, batch_size: int) -> tuple[tf.Tensor, float]:
    """Returns [N + padding, D] float32, a whole number of blocks, and the largest norm."""
    batches = [model.item_vectors(features) for features in model.items.batches(batch_size)]
    vectors = tf.cast(tf.concat(batches, axis=0), tf.float32)
    largest = _largest_norm(vectors, "model.item_vectors")
    return tf.pad(vectors, [[0, -len(vectors) % BLOCK], [0, 0]]), largest


def _embed_queries(
    model: RetrievalModel, held_out: HeldOut, begin: int, end: int, largest_item: float
) -> tf.Tensor:
    features = {n: tf.constant(c[begin:end]) for n, c in held_out.query_features.items()}
    vectors = tf.cast(model.query_vectors(features), tf.float32)
    # No partial sum of an inner product exceeds the product of the norms, so no score is NaN.
    if _largest_norm(vectors, "model.query_vectors") * largest_item > float(tf.float32.max):
        raise bad_input(
            "model.query_vectors and model.item_vectors",
            "inner products within float32",
            f"item vectors as long as {largest_item:.3g}",
        )
    return vectors


def _largest_norm(vectors: tf.Tensor, argument: str) -> float:
    bad = ~np.isfinite(vectors.numpy()).all(axis=1)
    if bad.any():
        raise bad_input(
            argument, "finite numbers", f"NaN or infinity in {bad.sum()} of {len(bad)} vectors"
        )
    return float(tf.reduce_max(tf.norm(tf.cast(vectors, tf.float64), axis=1)))


def _select(
    queries: tf.Tensor, vectors: tf.Tensor, pairs: Pairs, seen: Pairs, num_items: int, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the scores of the pairs [P], and the k best other items: scores and rows [q, k]."""
    padding = np.indices((len(queries), len(vectors) - num_items)).reshape(2, -1)
    padding[1] += num_items
    hidden = np.concatenate([np.stack(pairs), np.stack(seen), padding], axis=1)
    select = _selector(k, len(vectors))
    scores, best_scores, best_rows = select(queries, vectors, np.stack(pairs, axis=1), hidden.T)
    return scores.numpy(), best_scores.numpy(), best_rows.numpy()


@functools.lru_cache(maxsize=8)
def _selector(k: int, num_columns: int) -> Callable[..., tuple[tf.Tensor, ...]]:
    cells = tf.TensorSpec([None, 2], tf.int64)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None]),
            tf.TensorSpec([num_columns, None]),
            cells,
            cells,
        ]
    )
    def select(
        queries: tf.Tensor, vectors: tf.Tensor, wanted: tf.Tensor, hidden: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        scores = tf.matmul(queries, vectors, transpose_b=True)
        wanted_scores = tf.gather_nd(scores, wanted)
        # Once nothing else reads the matrix, TensorFlow writes into it instead of copying it.
        with tf.control_dependencies([wanted_scores]):
            nothing = tf.fill([tf.shape(hidden)[0]], -np.inf)
            scores = tf.tensor_scatter_nd_update(scores, hidden, nothing)
        return wanted_scores, *_top_k(scores, k)

    return select


def _top_k(scores: tf.Tensor, k: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns what `tf.math.top_k` returns, the lower column first among equals, in half the time.

    Only the k blocks of columns with the highest peaks are searched: an item of another block has k
    items before it, one in each of them.
    """
    if k * BLOCK >= scores.shape[1]:
        return tf.math.top_k(scores, k)
    blocks = tf.reshape(scores, [-1, scores.shape[1] // BLOCK, BLOCK])
    best = tf.math.top_k(tf.reduce_max(blocks, axis=2), k).indices
    # Ascending, so that the order of the columns still decides between equals.
    best = tf.sort(best, axis=1)
    searched = tf.gather(blocks, best, axis=1, batch_dims=1)
    values, place = tf.math.top_k(tf.reshape(searched, [-1, k * BLOCK]), k)
    return values, tf.gather(best, place // BLOCK, axis=1, batch_dims=1) * BLOCK + place % BLOCK


def _place_and_rank(
    queries: np.ndarray, scores: np.ndarray, best_scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the place among the wanted items and the rank among all, [P] each.

    Args:
        queries: [P], sorted.
        scores: [P], descending within a query.
        best_scores: [q, k], the other items, descending.
    """
    place = np.arange(len(queries)) - np.searchsorted(queries, queries)
    before = np.zeros(len(queries), np.int64)
    length = best_scores.shape[1]
    step = 1 << (length.bit_length() - 1)
    # Binary search in all lists at once. If all of a list is as high, any rank beyond it will do.
    while step:
        as_high = best_scores[queries, np.minimum(before + step, length) - 1] >= scores
        before += step * as_high
        step >>= 1
    return place, 1 + place + before


def _count_recommended(
    recommended: dict[int, np.ndarray],
    pairs: Pairs,
    rank: np.ndarray,
    best_scores: np.ndarray,
    best_rows: np.ndarray,
) -> None:
    """Adds the lists of one chunk: the hits, and the best others as far as there is room."""
    for k, counts in recommended.items():
        hit = rank <= k
        room = k - np.bincount(pairs.queries[hit], minlength=len(best_rows))
        fits = (np.arange(best_rows.shape[1]) < room[:, None]) & (best_scores > -np.inf)
        rows = np.concatenate([pairs.rows[hit], best_rows[fits]])
        counts += np.bincount(rows, minlength=len(counts))
