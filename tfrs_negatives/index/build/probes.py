"""The queries that the recall of an index is measured with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.index.arguments import check_features, check_vectors
from tfrs_negatives.index.search.backends import ExactSearch
from tfrs_negatives.core.types import Features
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.core.errors import bad_input

_SAMPLE_QUERIES = 32
"""Queries that an index keeps to check its export with."""


class Probes(NamedTuple):
    """Queries to measure with.

    Attributes:
        vectors: [Q, D] float32.
        source: where they came from.
        features: a few of them as features, [n, ...] each.
    """

    vectors: np.ndarray
    source: str
    features: dict[str, np.ndarray]


def draw_probes(
    model: RetrievalModel,
    vectors: np.ndarray,
    queries: Features | None,
    *,
    count: int,
    seed: int,
) -> Probes:
    """Draws queries to measure with from those given, or makes them from item vectors.

    Args:
        model: embeds the queries.
        vectors: [N, D] of the items.
        queries: query features, [M, ...] each; None takes item vectors plus noise of the same
            length, about 45 degrees away.
        count: how many, at most.
        seed: of the choice.

    Raises:
        InputError: if the features are not those of the model, or there is no query.
    """
    generator = np.random.default_rng(seed)
    if queries is None:
        return _noisy_items(model, vectors, count, generator)
    checked = check_features(queries, model.query_signature, argument="probe_queries")
    return _given_queries(model, checked, count, generator)


def _noisy_items(
    model: RetrievalModel, vectors: np.ndarray, count: int, generator: np.random.Generator
) -> Probes:
    rows = generator.choice(len(vectors), min(count, len(vectors)), replace=False)
    drawn = vectors[np.sort(rows)]
    # As much noise as signal: a query is near the items it wants, but it is none of them.
    scale = np.sqrt(np.mean(np.square(drawn)))
    noise = generator.normal(0, scale or 1.0, drawn.shape)
    features = {name: _blank(spec) for name, spec in model.query_signature.items()}
    return Probes((drawn + noise).astype(np.float32), "item vectors with noise", features)


def _blank(spec: tf.TensorSpec) -> np.ndarray:
    # Zeros and empty strings are in the range of every feature that nothing else is known of.
    fill = "" if spec.dtype == tf.string else spec.dtype.as_numpy_dtype(0)
    return np.full([2, *(size or 1 for size in spec.shape[1:])], fill)


def _given_queries(
    model: RetrievalModel, queries: Features, count: int, generator: np.random.Generator
) -> Probes:
    available = next(iter(queries.values())).shape[0]
    if not available:
        raise bad_input("probe_queries", "at least one query", "none")
    rows = np.sort(generator.choice(available, min(count, available), replace=False))
    drawn = {name: tf.gather(column, rows) for name, column in queries.items()}
    vectors = model.query_vectors(drawn)
    features = {name: column[:_SAMPLE_QUERIES].numpy() for name, column in drawn.items()}
    return Probes(check_vectors(vectors, vectors.shape[-1]), "given queries", features)


def lowest_score_of_top(exact: ExactSearch, queries: np.ndarray, *ks: int) -> np.ndarray:
    """Returns what an item must score to be among the top k of each query, [Q, number of ks].

    An item that ties with the last one counts as found, and rounding, which grows with the lengths
    of both vectors, is allowed for.
    """
    scores, _ = exact.search_arrays(queries, max(ks))
    lengths = np.linalg.norm(queries, axis=1, keepdims=True) * exact.longest
    rounding = np.finfo(np.float32).eps * np.sqrt(exact.width)
    return scores[:, [k - 1 for k in ks]] - rounding * lengths
