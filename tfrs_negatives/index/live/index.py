"""An index that changes in place: ScaNN's own updates, and a new model without a pause."""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index.arguments import (
    FeatureSpecs,
    check_features,
    check_item_ids,
    check_k,
    check_lists,
    check_upsert,
    check_vectors,
    is_positive_integer,
)
from tfrs_negatives.index.build.build import Index, build_index
from tfrs_negatives.index.build.vectors import embed_features, item_signature
from tfrs_negatives.index.live.rows import LiveRows
from tfrs_negatives.index.retriever import Retriever
from tfrs_negatives.index.saved.locks import ReadWriteLock
from tfrs_negatives.index.search.answers import padding_id
from tfrs_negatives.index.search.backends import MISSING, ScannSearch, ScannSettings
from tfrs_negatives.index.search.merging import Answer
from tfrs_negatives.model.retrieval_model import RetrievalModel


class _Items(NamedTuple):
    ids: np.ndarray
    vectors: np.ndarray


class _Generation:
    """A model and the items as it embeds them. A search uses one from its start to its end."""

    def __init__(
        self, model: RetrievalModel, items: _Items, settings: ScannSettings | None
    ) -> None:
        self.model = model
        self.rows = LiveRows(*items, settings)
        self.padding_id = padding_id(items.ids)
        self.width = items.vectors.shape[1]
        self.item_signature = item_signature(model)
        # ScaNN's updates are not safe beside its searches.
        self.lock = ReadWriteLock()

    def embed_query(self, features: Features) -> np.ndarray:
        tensors = check_features(features, self.model.query_signature)
        return embed_features(self.model.query_vectors, tensors)

    def search(self, vectors: Any, k: int, exclude: Any, allow: Any, allow_groups: Any) -> Answer:
        padding, size = self.padding_id, len(self.rows)
        k = check_k(k, size, f"at most the {size} items of the index")
        queries = check_vectors(vectors, self.width)
        if allow_groups is not None:
            raise bad_input("allow_groups", "None: the index has no groups", repr(allow_groups))
        excluded = check_lists(exclude, len(queries), argument="exclude", padding=padding)
        allowed = check_lists(allow, len(queries), argument="allow", padding=padding)
        with self.lock.reading():
            of_lists = [None if x is None else self.rows.rows_of(x) for x in (excluded, allowed)]
            scores, rows = self.rows.search(queries, k, *of_lists)
            # Nothing was found at row -1, and there may be no item at all.
            ids = self.rows.ids[rows] if len(self.rows) else np.full(rows.shape, padding)
        return scores, np.where(rows == MISSING, padding, ids)

    def items(self) -> _Items:
        with self.lock.reading():
            return _Items(self.rows.ids.copy(), self.rows.vectors.copy())


class LiveIndex(Retriever):
    """An index whose items come, change and go while it is searched.

    Items that came last are scored by every query, so that a new item is found as soon as `upsert`
    returns; older ones are found through ScaNN's leaves, at its recall, which falls as the items
    drift away from those that the leaves were cut for: call `rebalance` from time to time. Up to
    about 1000 items, and wherever a filter takes away much, all items are scored.

    Any number of threads may search. Changes wait for the searches that are running and for each
    other. `rebalance` and `refresh` make a new searcher beside the old one: searches go on, and
    changes wait until it has taken its place.

    Args:
        ids: [N] integers or strings, each once.
        vectors: [N, D] of the model's retrieval space.
        model: embeds queries and new items.
        settings: how ScaNN cuts and searches; None for the rule of thumb at the present size.

    Raises:
        InputError: if an argument has another shape or kind, or a number is not finite.
        ImportError: if there are 1000 items or more and the package `scann` is missing.

    Example:
        >>> from types import SimpleNamespace
        >>> import tensorflow as tf
        >>> vectors = np.array([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue([10, 20, 30], {"row": [0, 1, 2]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(tf.eye(2), features["user"]),
        ...     item_vectors=lambda features: tf.gather(tf.constant(vectors), features["row"]),
        ... )
        >>> index = LiveIndex(model.items.ids, vectors, model=model)
        >>> index.upsert([40], [[9.0, 9.0]])
        >>> index.delete([10])
        >>> index.top_k({"user": [0]}, k=3)[1].tolist()
        [[40, 30, 20]]
    """

    def __init__(
        self,
        ids: Any,
        vectors: Any,
        *,
        model: RetrievalModel,
        settings: ScannSettings | None = None,
    ) -> None:
        vectors = np.asarray(vectors, np.float32)
        width = vectors.shape[-1] if vectors.ndim else 0
        padding = padding_id(model.items.ids)
        ids, vectors = check_upsert(ids, vectors, width=width, padding=padding)
        self._settings = settings
        self._changing = threading.Lock()
        # Searches take this once: it is exchanged as a whole.
        self._current = _Generation(model, _Items(ids, vectors), settings)

    @classmethod
    def of(cls, index: Index) -> LiveIndex:
        """Makes an index in memory one that changes, with the settings it was tuned to.

        Raises:
            InputError: if it has groups, which could not be kept.
        """
        if index.groups is not None:
            expected = "an index that was built without `group_by`"
            raise bad_input("index", expected, f"one with groups by {index.groups.name!r}")
        backend = index.backend
        settings = backend.settings if isinstance(backend, ScannSearch) else None
        vectors = backend.vectors().numpy()
        return cls(index.ids, vectors, model=index.model, settings=settings)

    def __len__(self) -> int:
        return len(self._current.rows)

    @property
    def model(self) -> RetrievalModel:
        """The model that embeds at present."""
        return self._current.model

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return self._current.padding_id

    @property
    def query_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of a query."""
        return self._current.model.query_signature

    @property
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the item tower reads."""
        return self._current.item_signature

    @property
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""
        return self._current.width

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        return self._current.embed_query(features)

    def embed_item(self, features: Features) -> np.ndarray:
        """Returns [m, D] float32: the vectors of a batch of item features, known or new."""
        current = self._current
        tensors = check_features(features, current.item_signature)
        return embed_features(current.model.item_vectors, tensors)

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        current = self._current
        wanted = check_lists(list(ids), 1, argument="ids", padding=current.padding_id)
        assert wanted is not None  # noqa: S101
        with current.lock.reading():
            found: np.ndarray = current.rows.rows_of(wanted[0]) != MISSING
        return found

    def search(
        self,
        vectors: Any,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Answer:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`.

        The vectors have to be those of the present model: `top_k` sees to that by itself.
        """
        return self._current.search(vectors, k, exclude, allow, allow_groups)

    def top_k(
        self,
        features: Features,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Answer:
        """Finds the best items for a batch of query features, wholly with one model.

        Arguments, answer and errors are those of `Retriever.top_k`.
        """
        current = self._current
        return current.search(current.embed_query(features), k, exclude, allow, allow_groups)

    def upsert(self, ids: Any, vectors: Any) -> None:
        """Adds items, or gives items another vector. All are found at once.

        Args:
            ids: [m] integers or strings, as the index has, each once.
            vectors: [m, D] as `embed_item` of the present model gives them.

        Raises:
            InputError: if an argument has another shape or kind, or a number is not finite. Then
                nothing has changed.
        """
        with self._changing:
            current = self._current
            ids, vectors = check_upsert(
                ids, vectors, width=current.width, padding=current.padding_id
            )
            with current.lock.writing():
                current.rows.upsert(ids, vectors)

    def delete(self, ids: Any) -> None:
        """Deletes items. None of them is found any more, or an error is raised and all stay.

        Args:
            ids: [m] of items that the index holds, each once.

        Raises:
            InputError: if an id is unknown or of another kind.
        """
        with self._changing:
            current = self._current
            ids = check_item_ids(ids, current.padding_id)
            with current.lock.writing():
                current.rows.delete(ids.tolist())

    def snapshot(self, **options: Any) -> Index:
        """Returns an index of the items at one moment, which does not change and can be exported.

        Args:
            **options: of `build_index`, such as `probe_queries`; ScaNN is tuned anew unless this
                index has settings.
        """
        current = self._current
        items = current.items()
        chosen = {} if self._settings is None else {"kind": "scann", "settings": self._settings}
        return build_index(
            current.model, ids=items.ids, vectors=items.vectors, **{**chosen, **options}
        )

    def rebalance(self, *, settings: ScannSettings | None = None) -> None:
        """Cuts the leaves anew for the items that there are now.

        Args:
            settings: how to cut and search from now on; None for the same as before. Items that
                have drifted far may need a search of more leaves for the same recall, which
                `index.snapshot(settings=None).backend.settings` finds out.
        """
        with self._changing:
            current = self._current
            self._settings = settings or self._settings
            self._current = _Generation(current.model, current.items(), self._settings)

    def refresh(
        self,
        model: RetrievalModel,
        *,
        items: ItemCatalogue | None = None,
        batch_size: int = 4096,
    ) -> None:
        """Embeds all items with another model, then answers with that one.

        It changes vectors, never which items there are. Until it returns, searches are answered
        with the old model and the old vectors. Vectors that were made with the old model must not
        be upserted any more.

        Args:
            model: the new model.
            items: the features of every item of the index; by default `model.items`. Items of it
                that the index does not hold are left out.
            batch_size: items that are embedded at once.

        Raises:
            InputError: if an item is not among `items`, or a vector is malformed or not finite.
                Then nothing has changed.
        """
        if not is_positive_integer(batch_size):
            raise bad_input("batch_size", "a positive integer", repr(batch_size))
        with self._changing:
            ids = self._current.items().ids
            vectors = _embed(model, model.items if items is None else items, ids, batch_size)
            self._current = _Generation(model, _Items(ids, vectors), self._settings)


def _embed(
    model: RetrievalModel, items: ItemCatalogue, ids: np.ndarray, batch_size: int
) -> np.ndarray:
    rows = items.rows(ids).numpy()
    unknown = ids[rows < 0]
    if len(unknown):
        received = f"{len(unknown)} without, the first is {unknown[0].item()!r}"
        raise bad_input("items", "features of every item of the index", received)
    starts = range(0, len(rows), batch_size)
    chunks = (items.gather(rows[start : start + batch_size]) for start in starts)
    vectors = np.concatenate([embed_features(model.item_vectors, chunk) for chunk in chunks])
    return check_vectors(vectors, vectors.shape[-1])
