"""From vectors to the rank of every held-out item, a chunk of queries at a time.

Ties are ranked against the model: an item that is wanted stands behind all items of the same score
that are not, so a collapsed model finds nothing. A list of the k + h best items, with h the wanted
and the hidden ones of the query, is enough for exact ranks up to k: an item that is not on it has k
others at least as high before it. Users x items is never there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from rich.progress import track

from tfrs_negatives.evaluation.best_items import best_items
from tfrs_negatives.evaluation.held_out import HeldOut, Pairs
from tfrs_negatives.types import RetrievalModel, bad_input

BestOfChunk: TypeAlias = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

OTHER, WANTED, HIDDEN = 0, 1, 2


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
        byte_budget: bytes that the marks of a chunk of queries may take, one per query and item.
        progress: whether to show a bar.

    Raises:
        InputError: if a tower yields NaN or infinity, or vectors whose product overflows.
    """
    num_items = len(model.items)
    vectors, largest = _embed_items(model, batch_size)
    search = best_items(vectors)
    return rank_lists(
        lambda chunk, length: search(_embed_queries(model, held_out, chunk, largest), length),
        held_out,
        ks=ks,
        num_items=num_items,
        chunk_size=min(batch_size, max(1, byte_budget // num_items)),
        progress=progress,
    )


def rank_lists(
    best: BestOfChunk,
    held_out: HeldOut,
    *,
    ks: Sequence[int],
    num_items: int,
    chunk_size: int,
    progress: bool = False,
) -> Ranks:
    """Ranks the catalogue for each query, from lists of the best items, however these are found.

    Args:
        best: (numbers of queries [q], length) -> scores, falling, and rows of the best items of
            each, [q, length]; equal scores stand in the order of the rows.
        held_out: Q queries.
        ks: lengths of lists, ascending, none above the number of items.
        num_items: N.
        chunk_size: the most queries at once, for each of which N bytes are taken.
        progress: whether to show a bar.
    """
    marks = np.zeros((chunk_size, num_items), np.uint8)
    recommended = {k: np.zeros(num_items, np.int64) for k in ks}
    parts: list[tuple[np.ndarray, ...]] = []
    chunks = _chunks(held_out, len(marks))
    for chunk in track(chunks, "Ranking the catalogue", disable=not progress):
        pairs, seen = held_out.relevant.of(chunk), held_out.seen.of(chunk)
        length = min(num_items, ks[-1] + _most_of_one_query(pairs, seen))
        scores, best_scores, best_rows = _without(
            pairs, seen, *best(chunk, length), marks=marks, k=ks[-1]
        )
        order = np.lexsort((pairs.rows, -scores, pairs.queries))
        pairs = Pairs(pairs.queries, pairs.rows[order])
        place, rank = _place_and_rank(pairs.queries, scores[order], best_scores)
        _count_recommended(recommended, pairs, rank, best_scores, best_rows)
        parts.append((chunk[pairs.queries], pairs.rows, place, rank))
    queries, rows, place, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(queries, kind="stable")
    return Ranks(Pairs(queries[order], rows[order]), place[order], rank[order], recommended)


def _chunks(held_out: HeldOut, size: int) -> list[np.ndarray]:
    """Cuts the queries into equal chunks of similar numbers of wanted and hidden items."""
    counts = [
        np.bincount(p.queries, minlength=held_out.num_queries)
        for p in (held_out.relevant, held_out.seen)
    ]
    order = np.argsort(sum(counts), kind="stable")
    return np.array_split(order, -(-len(order) // size))


def _most_of_one_query(pairs: Pairs, seen: Pairs) -> int:
    return int(np.bincount(np.concatenate([pairs.queries, seen.queries])).max())


def _embed_items(model: RetrievalModel, batch_size: int) -> tuple[tf.Tensor, float]:
    """Returns [N, D] float32 and the largest norm."""
    batches = [model.item_vectors(features) for features in model.items.batches(batch_size)]
    vectors = tf.cast(tf.concat(batches, axis=0), tf.float32)
    return vectors, _largest_norm(vectors, "model.item_vectors")


def _embed_queries(
    model: RetrievalModel, held_out: HeldOut, chunk: np.ndarray, largest_item: float
) -> tf.Tensor:
    features = {n: tf.constant(c[chunk]) for n, c in held_out.query_features.items()}
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
    rows = vectors.numpy()
    # In float64 no square of a float32 overflows.
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    bad = ~np.isfinite(norms)
    if bad.any():
        raise bad_input(
            argument, "finite numbers", f"NaN or infinity in {bad.sum()} of {len(bad)} vectors"
        )
    return float(norms.max())


def _without(
    pairs: Pairs,
    seen: Pairs,
    scores: np.ndarray,
    rows: np.ndarray,
    *,
    marks: np.ndarray,
    k: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes the wanted and the hidden items out of the lists.

    Args:
        pairs: what is wanted of each query of the chunk, sorted.
        seen: what is hidden from it.
        scores: [q, length], falling.
        rows: [q, length].
        marks: [q or more, N] uint8, all OTHER, and so again afterwards.
        k: how many others are kept.

    Returns:
        The scores of the pairs [P], -inf where they are not on a list; and the k best others,
        scores and rows [q, k], -inf where there are fewer.
    """
    marks[pairs] = WANTED
    marks[seen] = HIDDEN
    kinds = np.take_along_axis(marks[: len(rows)], rows, axis=1)
    marks[pairs] = marks[seen] = OTHER
    wanted = np.full(len(pairs.rows), -np.inf, np.float32)
    found = kinds == WANTED
    codes = np.nonzero(found)[0] * marks.shape[1] + rows[found]
    wanted[np.searchsorted(pairs.queries * marks.shape[1] + pairs.rows, codes)] = scores[found]
    others = kinds == OTHER
    counts = others.sum(axis=1)[:, None]
    place = np.cumsum(counts)[:, None] - counts + np.arange(k)
    place[np.arange(k) >= counts] = -1
    best_scores = np.append(scores[others], np.float32(-np.inf))[place]
    return wanted, best_scores, np.append(rows[others], 0)[place]


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
