"""What callers hand to an index, checked once at the edge: features, vectors and k."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import EMPTY_ID, Features
from tfrs_negatives.data.columns import MISSING_INTEGER
from tfrs_negatives.towers.signature import may_miss

FeatureSpecs = Mapping[str, tf.TypeSpec]


def check_features(
    features: Features, signature: FeatureSpecs, *, argument: str = "features"
) -> dict[str, tf.Tensor]:
    """Turns a batch of query features into the tensors that the query tower reads.

    Args:
        features: name -> [B, ...] lists, arrays or tensors: exactly the names of the signature. A
            feature that may miss values may hold None, or NaN.
        signature: name -> `tf.TensorSpec` ([None, ...]), or `tf.RaggedTensorSpec` for a list of
            another length in each row; such as a `FeatureSignature`.
        argument: what the caller calls the features.

    Returns:
        name -> [B, ...] tensor of the dtype of the signature.

    Raises:
        InputError: if a feature is missing or unknown, is a scalar, has another shape or another
            kind of values, does not fit the dtype, is not finite, or has another number of rows.

    Example:
        >>> signature = {"user_id": tf.TensorSpec([None], tf.int64)}
        >>> check_features({"user_id": [7, 8]}, signature)["user_id"].numpy().tolist()
        [7, 8]
        >>> check_features({"user": [7]}, signature)
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `features`: expected the features ['user_id']. Received:
        ['user'] (missing ['user_id'], unknown ['user'])
    """
    if not isinstance(features, Mapping):
        raise bad_input(argument, "a dict of query features", f"a {type(features).__name__}")
    missing, unknown = sorted(signature.keys() - features), sorted(features.keys() - signature)
    if missing or unknown:
        received = f"{sorted(features)} (missing {missing}, unknown {unknown})"
        raise bad_input(argument, f"the features {sorted(signature)}", received)
    can_miss = may_miss(signature)
    tensors = {
        name: _as_tensor(f"{argument}[{name!r}]", features[name], spec, can_miss=name in can_miss)
        for name, spec in signature.items()
    }
    sizes = {name: tensor.shape[0] for name, tensor in tensors.items()}
    if len(set(sizes.values())) > 1:
        raise bad_input(argument, "the same number of rows in each", sizes)
    return tensors


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


def check_ks(ks: Any, num_items: int) -> tuple[int, ...]:
    """Returns the numbers of results that an export answers, in the given order.

    Raises:
        InputError: if there is none, one occurs twice, is not positive, or is above the corpus.
    """
    if not isinstance(ks, Sequence) or not ks or not all(is_positive_integer(k) for k in ks):
        raise bad_input("ks", "a list of positive integers", repr(ks))
    if len(set(ks)) < len(ks):
        raise bad_input("ks", "each k once", repr(ks))
    if max(ks) > num_items:
        raise bad_input("ks", f"no k above the {num_items} items of the index", repr(ks))
    return tuple(operator.index(k) for k in ks)


def is_positive_integer(value: Any) -> bool:
    """Returns whether a value is an integer above 0 (True is not a number here)."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value > 0)


def _as_tensor(label: str, values: Any, spec: tf.TypeSpec, *, can_miss: bool) -> tf.Tensor:
    if isinstance(spec, tf.RaggedTensorSpec):
        return _as_ragged(label, values, spec)
    return tf.constant(_as_array(label, values, spec, can_miss=can_miss), spec.dtype)


def _as_ragged(label: str, values: Any, spec: tf.RaggedTensorSpec) -> tf.RaggedTensor:
    wanted = f"lists of {spec.dtype.name} of shape {spec.shape}"
    splits = {"row_splits_dtype": spec.row_splits_dtype}
    if not isinstance(values, tf.RaggedTensor):
        lists = values.numpy() if tf.is_tensor(values) else values
        lists = lists.tolist() if isinstance(lists, np.ndarray) else lists
        try:
            values = tf.ragged.constant(lists, spec.dtype, ragged_rank=spec.ragged_rank, **splits)
        except (TypeError, ValueError) as error:
            raise bad_input(label, wanted, f"others ({error})") from error
    same = values.dtype == spec.dtype and values.ragged_rank == spec.ragged_rank
    if not same or not spec.shape.is_compatible_with([None, *values.shape[1:]]):
        raise bad_input(label, wanted, f"{values.dtype.name} of shape {values.shape}")
    if spec.dtype.is_floating and not np.isfinite(values.flat_values).all():
        raise bad_input(label, "finite numbers", "others")
    return values.with_row_splits_dtype(spec.row_splits_dtype)


def _as_array(label: str, values: Any, spec: tf.TensorSpec, *, can_miss: bool) -> np.ndarray:
    wanted = f"{spec.dtype.name} of shape {spec.shape}"
    if can_miss and isinstance(values, Sequence):
        nothing = _nothing(spec)
        values = [nothing if value is None else value for value in values]
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise bad_input(label, wanted, "rows of different lengths") from error
    if array.ndim == 0:
        raise bad_input(label, f"{wanted}, one entry per query", f"a single value, {values!r}")
    if not spec.shape.is_compatible_with([None, *array.shape[1:]]):
        raise bad_input(label, wanted, f"shape {list(array.shape)}")
    return _cast(label, wanted, array, spec.dtype, can_miss=can_miss)


def _nothing(spec: tf.TensorSpec) -> Any:
    """Returns what stands for a missing value, as in a log: of a list, one of padding."""
    is_list, dtype = spec.shape.rank == 2, spec.dtype
    if dtype == tf.string:
        filler: Any = ""
    else:
        filler = np.nan if dtype.is_floating else -1 if is_list else MISSING_INTEGER
    return [filler] * spec.shape[1] if is_list else filler


def _cast(
    label: str, wanted: str, array: np.ndarray, dtype: tf.DType, *, can_miss: bool
) -> np.ndarray:
    if dtype == tf.string:
        if array.size and not all(isinstance(value, (str, bytes)) for value in array.flat):
            raise bad_input(label, wanted, f"dtype {array.dtype}")
        return array.astype(object)
    kinds = "iuf" if dtype.is_floating else "b" if dtype.is_bool else "iu"
    if array.size and array.dtype.kind not in kinds:
        raise bad_input(label, wanted, f"dtype {array.dtype}")
    cast = array.astype(dtype.as_numpy_dtype)
    if dtype.is_integer and not np.array_equal(cast, array):
        raise bad_input(label, wanted, f"{array[cast != array].flat[0]}, which does not fit")
    finite = np.isfinite(cast) | (can_miss & np.isnan(array)) if dtype.is_floating else True
    if not np.all(finite):
        raise bad_input(label, "finite numbers", cast[~np.asarray(finite)].flat[0])
    return cast
