"""From a trained model to an index in memory, with the recall it was measured to have."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.index.arguments import (
    check_features,
    check_k,
    check_vectors,
    is_positive_integer,
)
from tfrs_negatives.index.backends import (
    MISSING,
    ExactSearch,
    IndexKind,
    ScannSearch,
    ScannSettings,
    Search,
)
from tfrs_negatives.types import Features, RetrievalModel, bad_input

_log = logging.getLogger(__name__)

_EXACT_BELOW = 20_000
"""Items up to which scoring all of them answers in about a millisecond, so that "auto" does."""

_SAMPLE_QUERIES = 32
"""Queries that an index keeps to check its export with."""


class _Probes(NamedTuple):
    vectors: np.ndarray
    source: str
    features: dict[str, np.ndarray]


@dataclass(frozen=True)
class Index:
    """Answers which items a query is most likely to want. Made by `build_index`.

    Attributes:
        model: embeds the queries.
        backend: finds the rows of the nearest items.
        recall: the share of the exact top k that the index finds: `k`, `recall`, `num_queries` and
            `probes`, which says where the queries came from.
        sample_features: a few query features, [n, ...] each, that an export is checked with.
    """

    model: RetrievalModel
    backend: Search
    recall: dict[str, Any]
    sample_features: dict[str, np.ndarray]

    def __len__(self) -> int:
        return self.backend.num_items

    @property
    def kind(self) -> IndexKind:
        """The kind of its backend, "exact" or "scann"."""
        return self.backend.kind

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return padding_id(self.model.items.ids)

    def top_k(self, features: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for a batch of query features.

        Args:
            features: name -> [B, ...], exactly the features of the model's `query_signature`.
            k: how many items, at most as many as the index holds.

        Returns:
            scores [B, k] float32, falling, and ids [B, k]. A column for which nothing was found
            has score -inf and the id -1, or "" where ids are strings.

        Raises:
            InputError: if a feature is missing, unknown or malformed, or k is out of range.
        """
        return self.search(self.embed_query(features), k)

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        tensors = check_features(features, self.model.query_signature)
        vectors: np.ndarray = tf.cast(self.model.query_vectors(tensors), tf.float32).numpy()
        return vectors

    def search(self, vectors: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""
        k = check_k(k, len(self), f"at most the {len(self)} items of the index")
        queries = check_vectors(vectors, self.backend.width)
        scores, rows = self.backend.search_arrays(queries, k)
        return scores, np.where(rows == MISSING, self.padding_id, self.model.items.ids[rows])


def build_index(
    model: RetrievalModel,
    *,
    kind: Literal["auto", "exact", "scann"] = "auto",
    target_recall: float = 0.95,
    recall_k: int = 10,
    probe_queries: Features | None = None,
    num_probe_queries: int = 1000,
    batch_size: int = 4096,
    seed: int = 0,
) -> Index:
    """Embeds the catalogue of a model and indexes it.

    A ScaNN index starts from a rule of thumb and doubles the leaves to search until the measured
    recall reaches the target or all leaves are searched. The same vectors and seed give the same
    index.

    Args:
        model: whose vectors live in a space where the score is the inner product.
        kind: "auto" is exact below 20,000 items, and where ScaNN is not installed.
        target_recall: share of the exact top `recall_k` that is to be found, 0 to 1; used by ScaNN.
        recall_k: the k at which recall is measured (the corpus, if that is smaller).
        probe_queries: query features to measure with, preferably of held-out queries. Without
            them the queries are item vectors plus noise of the same length, about 45 degrees away.
        num_probe_queries: how many queries are drawn from them.
        batch_size: items that are embedded at once.
        seed: of the choice of probe queries.

    Raises:
        InputError: if an argument is out of range, an item vector is not finite, or an item has
            the id that stands for "no item".
        ImportError: if kind is "scann" and the package is missing.

    Example:
        >>> from types import SimpleNamespace
        >>> from tfrs_negatives.encode.catalogue import ItemCatalogue
        >>> users, items = tf.eye(2), tf.constant([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue(["a", "b", "c"], {"row": [0, 1, 2]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(users, features["user"]),
        ...     item_vectors=lambda features: tf.gather(items, features["row"]),
        ... )
        >>> scores, ids = build_index(model).top_k({"user": [0, 1]}, k=2)
        >>> ids.tolist(), scores.tolist()
        ([['a', 'c'], ['c', 'b']], [[3.0, 2.0], [2.0, 1.0]])
    """
    counts = {"recall_k": recall_k, "batch_size": batch_size}
    _check_options(kind, target_recall, {**counts, "num_probe_queries": num_probe_queries})
    _check_ids(model.items.ids)
    vectors = embed_items(model, batch_size)
    generator = np.random.default_rng(seed)
    if probe_queries is None:
        probes = _noisy_items(model, vectors, num_probe_queries, generator)
    else:
        queries = check_features(probe_queries, model.query_signature, argument="probe_queries")
        probes = _given_queries(model, queries, num_probe_queries, generator)
    k = min(recall_k, len(vectors))
    recall = {"k": k, "recall": 1.0, "num_queries": 0, "probes": "exact"}
    if _chosen_kind(kind, len(vectors)) == "exact":
        backend: Search = ExactSearch(vectors)
    else:
        bar = _lowest_score_of_top_k(vectors, probes.vectors, k)
        backend = ScannSearch(vectors, ScannSettings.rule_of_thumb(len(vectors)))
        measured = _widen(backend, probes.vectors, bar, k, target_recall)
        recall.update(recall=measured, num_queries=len(probes.vectors), probes=probes.source)
    _log.info("%s index of %d x %d vectors, recall %s", backend.kind, *vectors.shape, recall)
    return Index(model, backend, recall, probes.features)


def padding_id(ids: np.ndarray) -> int | str:
    """Returns the id that stands for "no item" beside ids of this dtype."""
    return "" if ids.dtype.kind == "U" else -1


def _check_options(kind: str, target_recall: float, counts: dict[str, Any]) -> None:
    if kind not in ("auto", "exact", "scann"):
        raise bad_input("kind", "'auto', 'exact' or 'scann'", repr(kind))
    if not 0 < target_recall <= 1:
        raise bad_input("target_recall", "a share above 0, at most 1", target_recall)
    for name, count in counts.items():
        if not is_positive_integer(count):
            raise bad_input(name, "a positive integer", repr(count))


def _check_ids(ids: np.ndarray) -> None:
    if (ids == padding_id(ids)).any():
        raise bad_input("items", "no item with the id of 'no item'", repr(padding_id(ids)))


def _chosen_kind(kind: str, num_items: int) -> str:
    if kind != "auto":
        return kind
    if num_items < _EXACT_BELOW:
        return "exact"
    if importlib.util.find_spec("scann") is None:
        _log.warning("scann is not installed: the index of %d items is exact", num_items)
        return "exact"
    return "scann"


def embed_items(model: RetrievalModel, batch_size: int) -> np.ndarray:
    """Returns [N, D] float32: the vectors of the catalogue, `batch_size` items at a time.

    Raises:
        InputError: if they are not one finite vector per item, of one width.
    """
    vectors, start = np.empty([0, 0], np.float32), 0
    for features in model.items.batches(batch_size):
        chunk = tf.cast(model.item_vectors(features), tf.float32).numpy()
        if start == 0 and chunk.ndim == 2:
            vectors = np.empty([len(model.items), chunk.shape[1]], np.float32)
        if chunk.ndim != 2 or chunk.shape[1] != vectors.shape[1] or chunk.shape[1] == 0:
            raise bad_input("item_vectors", "one vector per item, of one width", chunk.shape)
        broken = np.argwhere(~np.isfinite(chunk))
        if len(broken):
            item, value = model.items.ids[start + broken[0, 0]].item(), chunk[tuple(broken[0])]
            raise bad_input("item_vectors", "finite numbers", f"{value} for the item {item!r}")
        vectors[start : start + len(chunk)] = chunk
        start += len(chunk)
    return vectors


def _noisy_items(
    model: RetrievalModel, vectors: np.ndarray, count: int, generator: np.random.Generator
) -> _Probes:
    rows = generator.choice(len(vectors), min(count, len(vectors)), replace=False)
    # As much noise as signal: a query is near the items it wants, but it is none of them.
    scale = np.sqrt(np.mean(np.square(vectors)))
    noise = generator.normal(0, scale or 1.0, [len(rows), vectors.shape[1]])
    features = {name: _blank(spec) for name, spec in model.query_signature.items()}
    return _Probes((vectors[rows] + noise).astype(np.float32), "item vectors with noise", features)


def _blank(spec: tf.TensorSpec) -> np.ndarray:
    # Zeros and empty strings are in the range of every feature that nothing else is known of.
    fill = "" if spec.dtype == tf.string else spec.dtype.as_numpy_dtype(0)
    return np.full([2, *(size or 1 for size in spec.shape[1:])], fill)


def _given_queries(
    model: RetrievalModel, queries: Features, count: int, generator: np.random.Generator
) -> _Probes:
    available = len(next(iter(queries.values())))
    if not available:
        raise bad_input("probe_queries", "at least one query", "none")
    rows = np.sort(generator.choice(available, min(count, available), replace=False))
    drawn = {name: tf.gather(column, rows) for name, column in queries.items()}
    vectors = model.query_vectors(drawn)
    features = {name: column[:_SAMPLE_QUERIES].numpy() for name, column in drawn.items()}
    return _Probes(check_vectors(vectors, vectors.shape[-1]), "given queries", features)


def _lowest_score_of_top_k(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    # What an item must score to be among the top k, [Q, 1]: an item that ties with the last one
    # counts as found, and rounding, which grows with the lengths of both vectors, is allowed for.
    scores, _ = ExactSearch(vectors).search_arrays(queries, k)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True) * np.linalg.norm(vectors, axis=1).max()
    rounding = np.finfo(np.float32).eps * np.sqrt(vectors.shape[1])
    return scores[:, -1:] - rounding * lengths


def _widen(
    search: ScannSearch, queries: np.ndarray, bar: np.ndarray, k: int, target: float
) -> float:
    while True:
        scores, _ = search.search_arrays(queries, k)
        recall = float((scores >= bar).mean())
        settings = search.settings
        if recall >= target:
            return recall
        if settings.leaves_to_search == settings.num_leaves:
            _log.warning("recall at %d is %.3f, below the target of %s", k, recall, target)
            return recall
        leaves = min(2 * settings.leaves_to_search, settings.num_leaves)
        search.settings = replace(settings, leaves_to_search=leaves)
