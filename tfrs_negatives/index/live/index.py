"""An index that changes in place: ScaNN's own updates, and a new model without a pause."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.index.build.build import Index, build_index
from tfrs_negatives.index.live.rows import LiveRows
from tfrs_negatives.index.retriever import (
    Asked,
    Nature,
    Retriever,
    TowerName,
    check_item_ids,
    check_lists,
    check_upsert,
    is_positive_integer,
)
from tfrs_negatives.index.search.answers import padding_id
from tfrs_negatives.index.search.backends import ScannSearch, ScannSettings
from tfrs_negatives.model.corpus import embed, embed_features, item_signature
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.model.top_k import MISSING, Answer
from tfrs_negatives.towers.signature import FeatureSpecs


class _Items(NamedTuple):
    ids: np.ndarray
    vectors: np.ndarray


class ReadWriteLock:
    """Held by any number of readers or by one writer. A waiting writer goes before new readers.

    It may not be taken twice by one thread.

    Example:
        >>> lock = ReadWriteLock()
        >>> with lock.reading():
        ...     "many at once"
        'many at once'
        >>> with lock.writing():
        ...     "alone"
        'alone'
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_readers = 0
        self._num_waiting = 0
        self._is_writing = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Waits until nobody writes or waits to write."""
        with self._changed:
            self._changed.wait_for(lambda: not (self._is_writing or self._num_waiting))
            self._num_readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Waits until nobody reads or writes."""
        with self._changed:
            self._num_waiting += 1
            try:
                self._changed.wait_for(lambda: not (self._is_writing or self._num_readers))
                self._is_writing = True
            finally:
                self._num_waiting -= 1
        try:
            yield
        finally:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()


class _Generation(Retriever):
    """A model and the items as it embeds them. A search uses one from its start to its end."""

    def __init__(
        self, model: RetrievalModel, items: _Items, settings: ScannSettings | None
    ) -> None:
        self.model = model
        self.rows = LiveRows(*items, settings)
        width, padding = items.vectors.shape[1], padding_id(items.ids)
        self._nature = Nature(width, padding, None, model.query_signature)
        self._item_signature = item_signature(model)
        # ScaNN's updates are not safe beside its searches.
        self.lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nature(self) -> Nature:
        return self._nature

    @property
    def item_signature(self) -> FeatureSpecs:
        return self._item_signature

    def embed(self, tower: TowerName, features: Features) -> np.ndarray:
        return embed_features(getattr(self.model, f"{tower}_vectors"), features)

    def contains(self, ids: Any) -> np.ndarray:
        wanted = check_lists(list(ids), 1, argument="ids", padding=self.padding_id)
        assert wanted is not None  # noqa: S101
        with self.lock.reading():
            found: np.ndarray = self.rows.rows_of(wanted[0]) != MISSING
        return found

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        lists = asked.exclude, asked.allow
        with self.lock.reading():
            of_lists = [None if ids is None else self.rows.rows_of(ids) for ids in lists]
            scores, rows = self.rows.search(vectors, asked.k, *of_lists)
            # Nothing was found at row -1, and there may be no item at all.
            ids = self.rows.ids[rows] if len(self.rows) else np.full(rows.shape, self.padding_id)
        return scores, np.where(rows == MISSING, self.padding_id, ids)

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
    def behind(self) -> Retriever:
        """The present model and the items as it embeds them."""
        return self._current

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        return self._current.contains(ids)

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`.

        The vectors have to be those of the present model: `top_k` sees to that by itself.
        """
        return self._current.answer(vectors, asked)

    def top_k(self, features: Features, k: int, **filters: Any) -> Answer:
        """Finds the best items for a batch of query features, wholly with one model.

        Arguments, answer and errors are those of `Retriever.top_k`.
        """
        return self._current.top_k(features, k, **filters)

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
    batches = (items.gather(rows[start : start + batch_size]) for start in starts)
    return embed(model.item_vectors, batches, ids=ids)
