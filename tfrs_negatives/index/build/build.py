"""From a trained model to an index in memory, with the recall it was measured to have."""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import as_ids
from tfrs_negatives.index.build.tuning import Probes, draw_probes, lowest_score_of_top, tune
from tfrs_negatives.index.retriever import Nature, TowerName, is_positive_integer
from tfrs_negatives.index.saved.load import GraphRetriever
from tfrs_negatives.index.search.answers import Answers, padding_id
from tfrs_negatives.index.search.backends import (
    Backend,
    ExactSearch,
    IndexKind,
    ScannSearch,
    ScannSettings,
)
from tfrs_negatives.index.search.filters import Groups
from tfrs_negatives.model.corpus import (
    check_item_vectors,
    embed_features,
    embed_items,
    item_signature,
)
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.model.top_k import Answer
from tfrs_negatives.towers.signature import FeatureSpecs

_log = logging.getLogger(__name__)

_EXACT_BELOW = 20_000
"""Items up to which scoring all of them answers in about a millisecond, so that "auto" does."""


@dataclass(frozen=True)
class Index(GraphRetriever):
    """Answers which items a query is most likely to want. Made by `build_index`.

    Attributes:
        model: embeds queries and items.
        ids: [N], of the rows.
        backend: finds the rows of the nearest items.
        recall: the share of the exact top k that the index finds: `k`, `recall`, `num_queries` and
            `probes`, which says where the queries came from.
        sample_features: a few query features, [n, ...] each, that an export is checked with.
        groups: of the items, where it was built with `group_by`.
        sweep: the settings that were tried, with recall and time; empty where nothing was tuned.
    """

    model: RetrievalModel
    ids: np.ndarray
    backend: Backend
    recall: dict[str, Any]
    sample_features: dict[str, np.ndarray]
    groups: Groups | None = None
    sweep: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> IndexKind:
        """The kind of its backend, "exact" or "scann"."""
        return self.backend.kind

    @functools.cached_property
    def nature(self) -> Nature:
        """What has to be known to ask it."""
        groups = None if self.groups is None else self.groups.padding
        width, padding = self.backend.width, padding_id(self.ids)
        return Nature(width, padding, groups, self.model.query_signature)

    @functools.cached_property
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the item tower reads."""
        return item_signature(self.model)

    @functools.cached_property
    def functions(self) -> tuple[Any, Any]:
        """`answer` and `contains`."""
        return Answers(self.backend, self.ids, self.groups).functions()

    def embed(self, tower: TowerName, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of checked features."""
        return embed_features(getattr(self.model, f"{tower}_vectors"), features)

    def best_rows(self, vectors: np.ndarray, k: int) -> Answer:
        """Finds catalogue rows in the place of ids, for vectors [B, D] float32; see `search`."""
        return self.backend.search_arrays(vectors, k)


def build_index(
    model: RetrievalModel,
    *,
    kind: Literal["auto", "exact", "scann"] = "auto",
    target_recall: float = 0.95,
    recall_k: int = 10,
    settings: ScannSettings | None = None,
    group_by: str | np.ndarray | None = None,
    ids: Any = None,
    vectors: np.ndarray | str | Path | None = None,
    probe_queries: Features | None = None,
    num_probe_queries: int = 1000,
    batch_size: int = 4096,
    seed: int = 0,
) -> Index:
    """Embeds the catalogue of a model and indexes it.

    A ScaNN index is tuned: trees of several sizes, numbers of leaves to search and of candidates to
    reorder are tried on the probe queries until the recall reaches the target, and the fastest is
    kept. `Index.sweep` has all that was tried. The same vectors and settings give the same index;
    which settings are the fastest may differ from run to run, so give `settings` to repeat one.

    Args:
        model: whose vectors live in a space where the score is the inner product.
        kind: "auto" is exact below 20,000 items, and where ScaNN is not installed.
        target_recall: share of the exact top `recall_k` that is to be found, 0 to 1; used by ScaNN.
        recall_k: the k at which recall is measured (the corpus, if that is smaller).
        settings: how ScaNN is to cut and search; None tunes.
        group_by: the catalogue's feature, or a value per item, that `allow_groups` is to filter by:
            integers or strings.
        ids: [N] of the items, where they are not those of the catalogue; then `vectors` is needed.
        vectors: [N, D] of the items where they are embedded already, or the `.npy` file that
            `embed_items` wrote, which is mapped into memory.
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
        >>> import tensorflow as tf
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> users, items = tf.eye(2), tf.constant([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> catalogue = ItemCatalogue(["a", "b", "c"], {"row": [0, 1, 2], "genre": ["x", "y", "y"]})
        >>> model = SimpleNamespace(
        ...     items=catalogue,
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(users, features["user"]),
        ...     item_vectors=lambda features: tf.gather(items, features["row"]),
        ... )
        >>> index = build_index(model, group_by="genre")
        >>> scores, ids = index.top_k({"user": [0, 1]}, k=2)
        >>> ids.tolist(), scores.tolist()
        ([['a', 'c'], ['c', 'b']], [[3.0, 2.0], [2.0, 1.0]])
        >>> index.top_k({"user": [0, 1]}, k=2, exclude=[["a"], []])[1].tolist()
        [['c', 'b'], ['c', 'b']]
        >>> index.top_k({"user": [0]}, k=2, allow_groups=["x"])[1].tolist()
        [['a', '']]
    """
    counts = {"recall_k": recall_k, "batch_size": batch_size}
    _check_options(kind, target_recall, {**counts, "num_probe_queries": num_probe_queries})
    ids = _check_ids(model, ids, vectors)
    groups = None if group_by is None else _groups(model, group_by, ids)
    if vectors is None:
        vectors = embed_items(model, batch_size)
    else:
        vectors = check_item_vectors(vectors, len(ids))
    probes = draw_probes(model, vectors, probe_queries, count=num_probe_queries, seed=seed)
    sweep: list[dict[str, Any]] = []
    k = min(recall_k, len(vectors))
    recall = {"k": k, "recall": 1.0, "num_queries": 0, "probes": "exact"}
    if _chosen_kind(kind, len(vectors)) == "exact":
        backend: Backend = ExactSearch(vectors)
    else:
        if settings is None:
            backend, sweep, measured = tune(vectors, probes.vectors, k=k, target=target_recall)
        else:
            exact = ExactSearch(vectors)
            backend = ScannSearch(exact.vectors(), settings)
            measured = _measured_recall(backend, exact, probes, k)
        recall.update(recall=measured, num_queries=len(probes.vectors), probes=probes.source)
    _log.info("%s index of %d x %d vectors, recall %s", backend.kind, *vectors.shape, recall)
    return Index(model, ids, backend, recall, probes.features, groups, sweep)


def _check_options(kind: str, target_recall: float, counts: dict[str, Any]) -> None:
    if kind not in ("auto", "exact", "scann"):
        raise bad_input("kind", "'auto', 'exact' or 'scann'", repr(kind))
    if not 0 < target_recall <= 1:
        raise bad_input("target_recall", "a share above 0, at most 1", target_recall)
    for name, count in counts.items():
        if not is_positive_integer(count):
            raise bad_input(name, "a positive integer", repr(count))


def _check_ids(model: RetrievalModel, ids: Any, vectors: Any) -> np.ndarray:
    if ids is None:
        ids = model.items.ids
    elif vectors is None:
        raise bad_input("vectors", "the vectors of these ids", None)
    # A catalogue refuses ids that are no ids, or that occur twice.
    return ids if ids is model.items.ids else ItemCatalogue(ids).ids


def _groups(model: RetrievalModel, group_by: str | np.ndarray, ids: np.ndarray) -> Groups:
    name, values = "group", group_by
    if isinstance(group_by, str):
        if group_by not in model.items.features:
            raise bad_input("group_by", f"one of {sorted(model.items.features)}", repr(group_by))
        rows = model.items.rows(ids).numpy()
        if (rows < 0).any():
            expected = "a value per item: some items are not in the catalogue"
            raise bad_input("group_by", expected, repr(group_by))
        name, values = group_by, model.items.features[group_by][rows]
    values = as_ids(values, "group_by")
    if len(values) != len(ids):
        raise bad_input("group_by", f"{len(ids)} groups, one per item", f"{len(values)}")
    return Groups(name, values)


def _chosen_kind(kind: str, num_items: int) -> str:
    if kind != "auto":
        return kind
    if num_items < _EXACT_BELOW:
        return "exact"
    if importlib.util.find_spec("scann") is None:
        _log.warning("scann is not installed: the index of %d items is exact", num_items)
        return "exact"
    return "scann"


def _measured_recall(search: Backend, exact: ExactSearch, probes: Probes, k: int) -> float:
    bar = lowest_score_of_top(exact, probes.vectors, k)
    scores, _ = search.search_arrays(probes.vectors, k)
    return float((scores >= bar).mean())
