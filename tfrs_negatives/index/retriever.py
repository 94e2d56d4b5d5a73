"""What every index can do: the one in memory, an export, one that changes, several side by side.

What callers hand to an index is checked here, once: beyond `Retriever.check` all is arrays.
"""

from __future__ import annotations

import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Features
from tfrs_negatives.model.top_k import Answer
from tfrs_negatives.towers.signature import FeatureSpecs, check_features

_log = logging.getLogger("tfrs_negatives")

TowerName = Literal["query", "item"]


class Nature(NamedTuple):
    """What has to be known of an index to ask it.

    Attributes:
        width: the number of dimensions of its vectors, D.
        padding_id: what stands for no item: -1, or "" where ids are strings.
        group_padding: what stands for no group, likewise; None where it has no groups.
        query_signature: name -> `tf.TensorSpec` ([None, ...]) of every feature of a query.
    """

    width: int
    padding_id: int | str
    group_padding: int | str | None
    query_signature: FeatureSpecs


class Asked(NamedTuple):
    """How many items are asked for, and which they may be: checked. Made by `Retriever.check`.

    Attributes:
        k: how many.
        exclude: [B or 1, E] ids that are not to come back, or None.
        allow: [B or 1, A] ids of which alone the answer may consist, or None.
        allow_groups: [B or 1, G] groups of which one must be the item's, or None.
    """

    k: int
    exclude: np.ndarray | None = None
    allow: np.ndarray | None = None
    allow_groups: np.ndarray | None = None


class Retriever(ABC):
    """Answers which items a query is most likely to want, among those that the caller allows.

    Filters, the same everywhere: each is None, one list for all queries, or a list for each query.

    - `exclude`: ids that are not to come back. Ids that the index does not hold are ignored.
    - `allow`: ids of which alone the answer may consist; likewise. An empty list allows nothing.
    - `allow_groups`: values of the column that the index was grouped by, of which one must be the
      item's.

    An answer has exactly k columns, whatever the filters leave: scores [B, k] float32, falling, and
    ids [B, k]. A column without an item has score -inf and the id -1, or "" where ids are strings.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many items it holds; k is at most this."""

    @abstractmethod
    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""

    @abstractmethod
    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`."""

    @property
    def behind(self) -> Retriever:
        """The index whose model it has, for one that has none of its own."""
        raise NotImplementedError

    @property
    def nature(self) -> Nature:
        """What has to be known to ask it."""
        return self.behind.nature

    @property
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of an item, its id among them."""
        return self.behind.item_signature

    def embed(self, tower: TowerName, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of checked features."""
        return self.behind.embed(tower, features)

    @property
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""
        return self.nature.width

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return self.nature.padding_id

    @property
    def query_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of a query."""
        return self.nature.query_signature

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        return self.embed("query", check_features(features, self.query_signature))

    def embed_item(self, features: Features) -> np.ndarray:
        """Returns [m, D] float32: the vectors of a batch of item features, known or new."""
        return self.embed("item", check_features(features, self.item_signature))

    def search(self, vectors: Any, k: int, **filters: Any) -> Answer:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""
        queries = check_vectors(vectors, self.width)
        return self.answer(queries, self.check(len(queries), k, **filters))

    def top_k(
        self,
        features: Features,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Answer:
        """Finds the best items for a batch of query features.

        Args:
            features: name -> [B, ...], exactly the features of `query_signature`.
            k: how many items, at most as many as the index holds.
            exclude: ids that are not to come back: None, [E] for all queries, or B lists.
            allow: ids of which alone the answer may consist; likewise.
            allow_groups: groups of which one must be the item's; likewise.

        Returns:
            scores [B, k] float32, falling, and ids [B, k]. A column for which nothing was found
            has score -inf and the id -1, or "" where ids are strings.

        Raises:
            InputError: if a feature is missing, unknown or malformed, k is out of range, a list
                holds ids of another kind, or groups are asked for where the index has none.
        """
        vectors = self.embed_query(features)
        asked = self.check(len(vectors), k, exclude=exclude, allow=allow, allow_groups=allow_groups)
        answer = self.answer(vectors, asked)
        self.warn_of_unknown(asked)
        return answer

    def check(
        self,
        num_queries: int,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Asked:
        """Checks what is asked for some queries; the arguments are those of `top_k`."""
        size, (_, padding, group_padding, _) = len(self), self.nature
        if allow_groups is not None and group_padding is None:
            expected = "None: the index was built without `group_by`"
            raise bad_input("allow_groups", expected, repr(allow_groups))
        named = {
            "exclude": (exclude, padding),
            "allow": (allow, padding),
            "allow_groups": (allow_groups, -1 if group_padding is None else group_padding),
        }
        return Asked(
            check_k(k, size, f"at most the {size} items of the index"),
            **{
                name: check_lists(lists, num_queries, argument=name, padding=filler)
                for name, (lists, filler) in named.items()
            },
        )

    def warn_of_unknown(self, asked: Asked) -> None:
        """Says once of each list of ids, the first time it is used, where it knows none of them."""
        # Some are frozen data classes.
        looked_at: set[str] = self.__dict__.setdefault("_filters_looked_at", set())
        for name, ids in {"exclude": asked.exclude, "allow": asked.allow}.items():
            if ids is None or name in looked_at:
                continue
            looked_at.add(name)
            wanted = ids[ids != self.padding_id].tolist()
            if wanted and not self.contains(wanted).any():
                unknown = f"{wanted[:3]} ..." if len(wanted) > 3 else f"{wanted}"
                _log.warning("`%s`: none of its ids is an item of the index: %s", name, unknown)


def check_vectors(vectors: Any, width: int) -> np.ndarray:
    """Returns query vectors as an array [B, D] float32.

    Raises:
        InputError: if the shape is not [B, width] or a number is not finite.
    """
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or array.shape[1] != width:
        raise bad_input("vectors", f"shape [B, {width}]", f"shape {list(array.shape)}")
    broken = np.argwhere(~np.isfinite(array))
    if len(broken):
        value, row = array[tuple(broken[0])], broken[0, 0]
        raise bad_input("vectors", "finite numbers", f"{value} in row {row}")
    return array


def check_lists(
    lists: Any, num_queries: int, *, argument: str, padding: int | str
) -> np.ndarray | None:
    """Turns lists of ids, one for all queries or one for each, into an array.

    An integer array is taken as it is, so that large lists cost nothing.

    Args:
        lists: None, [W] ids, or B lists of ids.
        num_queries: B.
        argument: what the caller calls the lists.
        padding: what fills up the shorter ones; ids are integers where it is one, else strings.

    Returns:
        [B, W] int64 or strings, [1, W] for one list for all, None for None.

    Raises:
        InputError: if there is another number of lists, or an id of another kind.

    Example:
        >>> check_lists([[5], [7, 8]], 2, argument="exclude", padding=-1).tolist()
        [[5, -1], [7, 8]]
        >>> check_lists(["a"], 2, argument="exclude", padding="").tolist()
        [['a']]
        >>> check_lists(["a"], 2, argument="exclude", padding=-1)
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `exclude`: expected integers, as the index has. Received:
        'a'
    """
    if lists is None:
        return None
    if not isinstance(padding, str) and _is_plain(lists, num_queries):
        return np.atleast_2d(lists).astype(np.int64)
    rows = _rows_of(lists, num_queries, argument)
    for value in (value for row in rows for value in row):
        _check_id(value, argument, padding)
    longest = max((len(row) for row in rows), default=0)
    filled = [[*row, *[padding] * (longest - len(row))] for row in rows]
    dtype = object if isinstance(padding, str) else np.int64
    return np.array(filled, dtype).reshape(len(rows), longest)


def _check_id(value: Any, argument: str, padding: int | str) -> None:
    kinds = (str,) if isinstance(padding, str) else (int, np.integer)
    if not isinstance(value, kinds) or isinstance(value, bool):
        name = "strings" if isinstance(padding, str) else "integers"
        raise bad_input(argument, f"{name}, as the index has", repr(value))
    if isinstance(value, str) and "\0" in value:
        # numpy would cut it off, and another item be meant.
        raise bad_input(argument, "ids without NUL characters", repr(value))
    if not isinstance(value, str) and not -(2**63) <= value < 2**63:
        raise bad_input(argument, "integers of 64 bits", value)


def _is_plain(lists: Any, num_queries: int) -> bool:
    is_array = isinstance(lists, np.ndarray) and lists.dtype.kind == "i"
    return is_array and (lists.ndim == 1 or (lists.ndim == 2 and len(lists) == num_queries))


def _rows_of(lists: Any, num_queries: int, argument: str) -> list[Sequence[Any]]:
    lists = _as_list(lists)
    if isinstance(lists, (str, bytes)) or not isinstance(lists, (Sequence, Set)):
        raise bad_input(argument, "a list of ids, or one for each query", repr(lists))
    lists = [_as_list(row) for row in lists]
    nested = [isinstance(row, (Sequence, Set)) for row in lists]
    strings = [isinstance(row, (str, bytes)) for row in lists]
    per_query = any(n and not s for n, s in zip(nested, strings, strict=True))
    if not per_query:
        return [list(lists)]
    if not all(nested) or any(strings):
        raise bad_input(argument, "ids, or a list for each query", "some of both")
    if len(lists) != num_queries:
        raise bad_input(argument, f"{num_queries} lists, one per query", f"{len(lists)} lists")
    return [list(row) for row in lists]


def _as_list(values: Any) -> Any:
    """Returns the values of any container as a list, bytes as text, others as they are."""
    if isinstance(values, (int, str)):
        return values
    if isinstance(values, bytes):
        return _as_text(values)
    if isinstance(values, tf.Tensor):
        values = values.numpy()
    for method in ("tolist", "to_pylist", "to_list"):
        if hasattr(values, method):
            values = getattr(values, method)()
            return [_as_list(v) for v in values] if isinstance(values, list) else _as_list(values)
    return values


def _as_text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value  # which is no id, and said so


def check_item_ids(ids: Any, padding: int | str) -> np.ndarray:
    """Returns the ids of items that are to be changed as an array [m] of int64 or strings.

    Args:
        ids: [m] integers or strings, each once.
        padding: the id of a column without an item; ids are strings where it is one.

    Raises:
        InputError: if they are no list, one is of another kind, occurs twice or is the padding.

    Example:
        >>> check_item_ids(["a", "b"], "").tolist()
        ['a', 'b']
        >>> check_item_ids([3, 3], -1)
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `ids`: expected each id once. Received: 3 twice
    """
    lists = check_lists(ids, -1, argument="ids", padding=padding)
    if lists is None:
        raise bad_input("ids", "a list of ids", "None")
    array = lists[0].astype(str) if isinstance(padding, str) else lists[0]
    known, counts = np.unique(array, return_counts=True)
    if (counts > 1).any():
        raise bad_input("ids", "each id once", f"{known[counts > 1][0].item()!r} twice")
    for reserved in (padding, *([] if isinstance(padding, str) else [EMPTY_ID])):
        if (array == reserved).any():
            raise bad_input("ids", "no item with the id of 'no item'", repr(reserved))
    return array


def check_upsert(
    ids: Any, vectors: Any, *, width: int, padding: int | str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is to be upserted as ids [m] and vectors [m, width] float32.

    Raises:
        InputError: if an id or a vector is malformed, or there is not one vector for each id.
    """
    ids, vectors = check_item_ids(ids, padding), check_vectors(vectors, width)
    if len(vectors) != len(ids):
        raise bad_input("vectors", f"{len(ids)} rows, one per id", f"{len(vectors)} rows")
    return ids, vectors


def check_k(k: Any, largest: int, expected: str) -> int:
    """Returns k as an integer in 1 .. largest.

    Raises:
        InputError: if it is not; `expected` ends the sentence that says what would be right.

    Example:
        >>> check_k(3, 2, "at most 2")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `k`: expected a positive integer, at most 2. Received: 3
    """
    if not is_positive_integer(k) or k > largest:
        raise bad_input("k", f"a positive integer, {expected}", repr(k))
    return operator.index(k)


def is_positive_integer(value: Any) -> bool:
    """Returns whether a value is an integer above 0 (True is not a number here)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value > 0)
