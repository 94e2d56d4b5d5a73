"""From query vectors and lists of ids to an answer: one graph, in memory and in an export."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.index.search.backends import Backend
from tfrs_negatives.index.search.filters import FilteredSearch, Groups, Numbering
from tfrs_negatives.model.top_k import MISSING


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


def padding_id(ids: np.ndarray) -> int | str:
    """Returns the id that stands for "no item" beside ids of this dtype."""
    return "" if ids.dtype.kind == "U" else -1
