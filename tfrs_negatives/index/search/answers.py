"""From query vectors and lists of ids to an answer: one graph, in memory and in an export."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.index.arguments import check_k, check_lists, check_vectors
from tfrs_negatives.index.retriever import Retriever
from tfrs_negatives.index.search.backends import MISSING, Search, queries_at_once
from tfrs_negatives.index.search.filters import FilteredSearch, Groups, Numbering


class Answers(tf.Module):
    """Answers query vectors with ids. All it needs is in variables.

    Args:
        backend: finds rows.
        ids: [N] integers or strings, the ids of the rows.
        groups: of the items, or None.
    """

    def __init__(self, backend: Search, ids: np.ndarray, groups: Groups | None = None) -> None:
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


class Corpus(NamedTuple):
    """What a `GraphRetriever` says of its items.

    Attributes:
        num_items: N.
        width: D.
        kind: of the search.
        padding_id: what stands for no item.
        group_padding: what stands for no group; None without groups.
    """

    num_items: int
    width: int
    kind: str
    padding_id: int | str
    group_padding: int | str | None


class GraphRetriever(Retriever):
    """An index whose answers come from the graph of `Answers`, traced here or restored."""

    @property
    @abstractmethod
    def corpus(self) -> Corpus:
        """What is to be known of its items."""

    @property
    @abstractmethod
    def functions(self) -> tuple[Any, Any]:
        """`answer` and `contains`, as `Answers.functions` returns them."""

    def __len__(self) -> int:
        return self.corpus.num_items

    @property
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""
        return self.corpus.width

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return self.corpus.padding_id

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        wanted = check_lists(list(ids), 1, argument="ids", padding=self.padding_id)
        assert wanted is not None  # noqa: S101
        found: np.ndarray = self.functions[1](_as_tensor(wanted, self.padding_id)[0]).numpy()
        return found

    def search(
        self,
        vectors: Any,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""
        k = check_k(k, len(self), f"at most the {len(self)} items of the index")
        queries = check_vectors(vectors, self.width)
        lists = self._check_filters(len(queries), exclude, allow, allow_groups)
        answer = functools.partial(self._answer, k=k)
        step = queries_at_once(self.corpus.kind, len(self), filtered=lists[0] is not None)
        starts = range(0, max(len(queries), 1), step)
        parts = [answer(queries[s : s + step], [_rows(x, s, step) for x in lists]) for s in starts]
        scores, ids = (np.concatenate(column) for column in zip(*parts, strict=True))
        return scores, ids

    def _check_filters(
        self, num_queries: int, exclude: Any, allow: Any, allow_groups: Any
    ) -> list[tf.Tensor | None]:
        group_padding = self.corpus.group_padding
        if allow_groups is not None and group_padding is None:
            expected = "None: the index was built without `group_by`"
            raise bad_input("allow_groups", expected, repr(allow_groups))
        if exclude is None and (allow is not None or allow_groups is not None):
            exclude = []
        named = {
            "exclude": (exclude, self.padding_id),
            "allow": (allow, self.padding_id),
            "allow_groups": (allow_groups, -1 if group_padding is None else group_padding),
        }
        checked = [
            (check_lists(lists, num_queries, argument=name, padding=padding), padding)
            for name, (lists, padding) in named.items()
        ]
        return [None if lists is None else _as_tensor(lists, pad) for lists, pad in checked]

    def _answer(
        self, vectors: np.ndarray, lists: list[tf.Tensor | None], *, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        answer = self.functions[0](tf.constant(vectors), tf.constant(k), *lists)
        return answer["scores"].numpy(), plain_ids(answer["ids"].numpy())


def padding_id(ids: np.ndarray) -> int | str:
    """Returns the id that stands for "no item" beside ids of this dtype."""
    return "" if ids.dtype.kind == "U" else -1


def plain_ids(ids: np.ndarray) -> np.ndarray:
    """Returns ids as numpy users know them: strings are strings and no bytes."""
    return np.char.decode(ids.astype("S"), "utf-8") if ids.dtype == object else ids


def _as_tensor(lists: np.ndarray, padding: int | str) -> tf.Tensor:
    return tf.constant(lists, tf.string if isinstance(padding, str) else tf.int64)


def _rows(lists: tf.Tensor | None, start: int, step: int) -> tf.Tensor | None:
    # One list for all queries stays one.
    return lists if lists is None or len(lists) == 1 else lists[start : start + step]
