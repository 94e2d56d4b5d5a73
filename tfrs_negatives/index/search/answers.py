"""From query vectors and lists of ids to an answer: one graph, in memory and in an export."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.index.retriever import Asked, Retriever, check_lists
from tfrs_negatives.index.search.backends import Backend, queries_per_search
from tfrs_negatives.index.search.filters import FilteredSearch, Groups, Numbering
from tfrs_negatives.model.top_k import MISSING, Answer, in_parts


class Answers(tf.Module):
    """Answers query vectors with ids. All it needs is in variables.

    Args:
        backend: finds rows.
        ids: [N] integers or strings, the ids of the rows.
        groups: of the items, or None.
    """

    def __init__(self, backend: Backend, ids: np.ndarray, groups: Groups | None = None) -> None:
        super().__init__()
        self._ids = tf.Variable(ids, trainable=False, name="ids")
        self._rows = Numbering(to_keys(ids).numpy(), name="item")
        self._padding_id = tf.constant(padding_id(ids), self._ids.dtype)
        self._width = backend.width
        self._group_dtype, codes, keys = None, None, np.empty([0])
        if groups is not None:
            keys, codes = np.unique(to_keys(groups.values).numpy(), return_inverse=True)
            self._group_numbers = Numbering(keys, name="group")
            self._group_dtype = tf.string if groups.values.dtype.kind == "U" else tf.int64
        codes = None if codes is None else codes.astype(np.int32)
        self._search = FilteredSearch(backend, codes, num_groups=len(keys))

    def answer(
        self,
        vectors: tf.Tensor,
        k: tf.Tensor | int,
        exclude: tf.Tensor | None = None,
        allow: tf.Tensor | None = None,
        allow_groups: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Finds the best items; runs in a graph.

        Args:
            vectors: [B, D] float32.
            k: scalar int32, at most the number of items.
            exclude: [B, E] ids; all three may be [1, ...], for all queries.
            allow: [B, A] ids.
            allow_groups: [B, G] values.

        Returns:
            `scores` [B, k] float32, falling, and `ids` [B, k].
        """
        scores, rows = self._search.search(
            vectors,
            tf.convert_to_tensor(k, tf.int32),
            exclude=None if exclude is None else self._rows.of(exclude),
            allow=None if allow is None else self._rows.of(allow),
            groups=None if allow_groups is None else self._group_numbers.of(allow_groups),
        )
        found = tf.gather(self._ids, tf.maximum(rows, 0))
        return {"scores": scores, "ids": tf.where(rows == MISSING, self._padding_id, found)}

    def contains(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] bool: whether ids [m] are among the items."""
        return self._rows.of(ids) != MISSING

    def functions(self) -> tuple[Any, Any]:
        """Returns `answer` and `contains` as functions that trace a graph when they need it."""
        # Nothing here is for AutoGraph, which takes most of the time of tracing.
        answer = tf.function(self.answer, autograph=False, reduce_retracing=True)
        contains = tf.function(self.contains, autograph=False, reduce_retracing=True)
        return answer, contains

    def traced(self) -> tuple[Any, Any]:
        """Returns them with a graph for each set of filters, as an export must have them."""
        answer, contains = self.functions()
        ids = tf.TensorSpec([None, None], self._ids.dtype)
        groups = self._group_dtype and tf.TensorSpec([None, None], self._group_dtype)
        vectors = tf.TensorSpec([None, self._width], tf.float32)
        sets = [(None, None, None), (ids, None, None), (ids, ids, None)]
        sets += [(ids, None, groups), (ids, ids, groups)] if groups else []
        for lists in sets:
            answer.get_concrete_function(vectors, tf.TensorSpec([], tf.int32), *lists)
        contains.get_concrete_function(tf.TensorSpec([None], self._ids.dtype))
        return answer, contains


class GraphRetriever(Retriever):
    """An index whose answers come from the graph of `Answers`, traced here or restored."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind of its search, "exact" or "scann"."""

    @property
    @abstractmethod
    def functions(self) -> tuple[Any, Any]:
        """`answer` and `contains`, as `Answers.functions` returns them."""

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        wanted = check_lists(list(ids), 1, argument="ids", padding=self.padding_id)
        assert wanted is not None  # noqa: S101
        found: np.ndarray = self.functions[1](_as_tensor(wanted[0])).numpy()
        return found

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`."""
        lists = self._lists(asked)

        def search(part: slice) -> Answer:
            of_part = [_rows(ids, part) for ids in lists]
            found = self.functions[0](tf.constant(vectors[part]), tf.constant(asked.k), *of_part)
            return found["scores"].numpy(), plain_ids(found["ids"].numpy())

        filtered = lists[0] is not None
        at_once = queries_per_search(self.kind, len(self), filtered=filtered)
        return in_parts(search, len(vectors), at_once)

    def _lists(self, asked: Asked) -> list[tf.Tensor | None]:
        """Returns what the graph reads: it has no filter without `exclude`."""
        lists = [asked.exclude, asked.allow, asked.allow_groups]
        if lists[0] is None and any(ids is not None for ids in lists):
            lists[0] = np.empty([1, 0], object if isinstance(self.padding_id, str) else np.int64)
        return [None if ids is None else _as_tensor(ids) for ids in lists]


def padding_id(ids: np.ndarray) -> int | str:
    """Returns the id that stands for "no item" beside ids of this dtype."""
    return "" if ids.dtype.kind == "U" else -1


def plain_ids(ids: np.ndarray) -> np.ndarray:
    """Returns ids as numpy users know them: strings are strings and no bytes."""
    return np.char.decode(ids.astype("S"), "utf-8") if ids.dtype == object else ids


def _as_tensor(lists: np.ndarray) -> tf.Tensor:
    return tf.constant(lists.astype(object) if lists.dtype.kind == "U" else lists)


def _rows(lists: tf.Tensor | None, part: slice) -> tf.Tensor | None:
    # One list for all queries stays one.
    return lists if lists is None or len(lists) == 1 else lists[part]
