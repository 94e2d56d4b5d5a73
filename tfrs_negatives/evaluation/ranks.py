"""From vectors to the rank of every held-out item, a chunk of queries at a time.

Ties are ranked against the model: an item that is wanted stands behind all items of the same score
that are not, so a collapsed model finds nothing. A list of the k + h best items, with h the wanted
and the hidden ones of the query, is enough for exact ranks up to k: an item that is not on it has k
others at least as high before it. Users x items is never there.

New memory is slow to touch, so what is large is short-lived and small enough to be used again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from rich.progress import track

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.query_items import QueryItems
from tfrs_negatives.evaluation.held_out import HeldOut
from tfrs_negatives.model.corpus import embed_items, embed_queries
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.model.top_k import Answer, best_items

BestOfChunk: TypeAlias = Callable[[np.ndarray, int], Answer]

OTHER, WANTED, HIDDEN = 0, 1, 2
PLACE_BYTES = 40
"""What a place on a list takes on its way: scores, rows, kinds, and the copies of what is kept."""
MARKS = 4 * 2**20
"""Cells of queries x items that are marked at once: they fit a cache."""


class Ranks(NamedTuple):
    """Where the held-out items stand.

    Attributes:
        pairs: P held-out pairs, those of one query from the best to the worst.
        place: [P] int64, how many held-out items of the same query stand before this one.
        rank: [P] int64 from 1; exact up to the largest k, and some number above it beyond.
        recommended: k -> [N] int64, in how many of the lists of length k each item is.
    """

    pairs: QueryItems
    place: np.ndarray
    rank: np.ndarray
    recommended: dict[int, np.ndarray]


def searcher(
    model: RetrievalModel, held_out: HeldOut, *, batch_size: int, byte_budget: int
) -> BestOfChunk:
    """Embeds the catalogue, and prepares the search of it for `rank_lists`.

    Args:
        model: gives vectors whose inner product is the score.
        held_out: Q queries.
        batch_size: the most items that go through a tower at once.
        byte_budget: bytes that scores may take where they are needed.

    Raises:
        InputError: if a tower yields NaN or infinity, or vectors whose product overflows.
    """
    vectors = embed_items(model, batch_size)
    largest, search = _largest_norm(vectors), best_items(vectors, byte_budget=byte_budget)
    return lambda chunk, length: search(_embed_queries(model, held_out, chunk, largest), length)


def rank_lists(
    best: BestOfChunk,
    held_out: HeldOut,
    *,
    ks: Sequence[int],
    num_items: int,
    chunk_size: int,
    byte_budget: int,
    progress: bool = False,
) -> Ranks:
    """Ranks the catalogue for each query, from lists of the best items, however these are found.

    Args:
        best: (numbers of queries [q], length) -> scores, falling, and rows of the best items of
            each, [q, length]; equal scores stand in the order of the rows.
        held_out: Q queries.
        ks: lengths of lists, ascending, none above the number of items.
        num_items: N.
        chunk_size: the most queries at once.
        byte_budget: bytes that their lists may take; a single query always goes.
        progress: whether to show a bar.
    """
    recommended = {k: np.zeros(num_items, np.int64) for k in ks}
    parts: list[tuple[np.ndarray, ...]] = []
    chunks = _chunks(held_out, ks[-1], chunk_size, byte_budget // PLACE_BYTES)
    for chunk, length in track(chunks, "Ranking the catalogue", disable=not progress):
        pairs, seen = held_out.relevant.of(chunk), held_out.seen.of(chunk)
        best_scores, best_rows = best(chunk, min(length, num_items))
        kinds = _kinds(pairs, seen, best_rows, num_items)
        scores = _scores_of(pairs, best_scores, best_rows, kinds == WANTED)
        best_scores, best_rows = _first(best_scores, best_rows, kinds == OTHER, ks[-1])
        order = np.lexsort((pairs.rows, -scores, pairs.queries))
        pairs = QueryItems(pairs.queries, pairs.rows[order])
        place, rank = _place_and_rank(pairs.queries, scores[order], best_scores)
        _count_recommended(recommended, pairs, rank, best_scores, best_rows)
        parts.append((chunk[pairs.queries], pairs.rows, place, rank))
    queries, rows, place, rank = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(queries, kind="stable")
    return Ranks(QueryItems(queries[order], rows[order]), place[order], rank[order], recommended)


def _chunks(held_out: HeldOut, k: int, size: int, places: int) -> list[tuple[np.ndarray, int]]:
    """Cuts the queries into chunks, those with the most wanted and hidden items first.

    Args:
        held_out: Q queries.
        k: how many others a list needs.
        size: the most queries of a chunk.
        places: the most places that the lists of a chunk have together.

    Returns:
        The numbers of the queries of a chunk, and how long its lists are.
    """
    pairs = np.concatenate([held_out.relevant.queries, held_out.seen.queries])
    lengths = k + np.bincount(pairs, minlength=held_out.num_queries)
    order = np.argsort(-lengths, kind="stable")
    chunks, begin = [], 0
    while begin < len(order):
        length = int(lengths[order[begin]])
        end = begin + min(size, max(1, places // length))
        chunks.append((order[begin:end], length))
        begin = end
    return chunks


def _embed_queries(
    model: RetrievalModel, held_out: HeldOut, chunk: np.ndarray, largest_item: float
) -> np.ndarray:
    features = {name: column[chunk] for name, column in held_out.query_features.items()}
    vectors = embed_queries(model, features, len(chunk))
    # No partial sum of an inner product exceeds the product of the norms, so no score is NaN.
    if _largest_norm(vectors) * largest_item > float(tf.float32.max):
        raise bad_input(
            "model.query_vectors and model.item_vectors",
            "inner products within float32",
            f"item vectors as long as {largest_item:.3g}",
        )
    return vectors


def _largest_norm(vectors: np.ndarray) -> float:
    # In float64 no square of a float32 overflows.
    return float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)).max())


def _kinds(pairs: QueryItems, seen: QueryItems, rows: np.ndarray, num_items: int) -> np.ndarray:
    """Says of each item on a list whether it is wanted, hidden or neither.

    Args:
        pairs: what is wanted of each query of the chunk.
        seen: what is hidden from it.
        rows: [q, length], the lists.
        num_items: N.

    Returns:
        [q, length] uint8.
    """
    marks = np.zeros((max(1, MARKS // num_items), num_items), np.uint8)
    kinds = np.empty(rows.shape, np.uint8)
    for begin in range(0, len(rows), len(marks)):
        wanted, hidden = (_cells(p, begin, begin + len(marks)) for p in (pairs, seen))
        marks[wanted] = WANTED
        marks[hidden] = HIDDEN
        part = rows[begin : begin + len(marks)]
        kinds[begin : begin + len(marks)] = np.take_along_axis(marks[: len(part)], part, axis=1)
        marks[wanted] = marks[hidden] = OTHER
    return kinds


def _cells(pairs: QueryItems, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of the queries from `begin` to `end`, which are numbered from 0 then."""
    span = slice(*np.searchsorted(pairs.queries, [begin, end]))
    return pairs.queries[span] - begin, pairs.rows[span]


def _scores_of(
    pairs: QueryItems, scores: np.ndarray, rows: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """Returns the scores of the pairs [P], -inf where they are not on a list.

    Args:
        pairs: what is wanted of each query of the chunk, sorted.
        scores: [q, length].
        rows: [q, length].
        wanted: [q, length] bool, where the pairs are.
    """
    queries, _ = np.nonzero(wanted)
    beyond = pairs.rows.max(initial=0) + 1
    found = np.full(len(pairs.rows), -np.inf, np.float32)
    codes = queries * beyond + rows[wanted]
    found[np.searchsorted(pairs.queries * beyond + pairs.rows, codes)] = scores[wanted]
    return found


def _first(
    scores: np.ndarray, rows: np.ndarray, kept: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first k of each row that are kept, [q, k]; -inf where there are fewer.

    Args:
        scores: [q, length].
        rows: [q, length].
        kept: [q, length] bool.
        k: how many.
    """
    missing = max(0, k - int(kept.sum(axis=1).min()))
    if missing:
        pad = [(0, 0), (0, missing)]
        scores = np.pad(scores, pad, constant_values=-np.inf)
        rows, kept = np.pad(rows, pad), np.pad(kept, pad, constant_values=True)
    first = kept & (np.cumsum(kept, axis=1, dtype=np.int32) <= k)
    return scores[first].reshape(-1, k), rows[first].reshape(-1, k)


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
    pairs: QueryItems,
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
