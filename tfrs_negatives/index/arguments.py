"""What callers hand to an index, checked once at the edge: features, vectors and k."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.types import Features, bad_input

QuerySignature = Mapping[str, tf.TensorSpec]


def check_features(
    features: Features, signature: QuerySignature, *, argument: str = "features"
) -> dict[str, tf.Tensor]:
    """Turns a batch of query features into the tensors that the query tower reads.

    Args:
        features: name -> [B, ...] lists, arrays or tensors: exactly the names of the signature.
        signature: name -> `tf.TensorSpec` ([None, ...]).
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
        tfrs_negatives.types.InputError: `features`: expected the features ['user_id']. Received:
        ['user'] (missing ['user_id'], unknown ['user'])
    """
    if not isinstance(features, Mapping):
        raise bad_input(argument, "a dict of query features", f"a {type(features).__name__}")
    missing, unknown = sorted(signature.keys() - features), sorted(features.keys() - signature)
    if missing or unknown:
        received = f"{sorted(features)} (missing {missing}, unknown {unknown})"
        raise bad_input(argument, f"the features {sorted(signature)}", received)
    arrays = {
        name: _as_array(f"{argument}[{name!r}]", features[name], spec)
        for name, spec in signature.items()
    }
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise bad_input(argument, "the same number of rows in each", sizes)
    return {n: tf.constant(array, signature[n].dtype) for n, array in arrays.items()}


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


def check_k(k: Any, largest: int, expected: str) -> int:
    """Returns k as an integer in 1 .. largest.

    Raises:
        InputError: if it is not; `expected` ends the sentence that says what would be right.

    Example:
        >>> check_k(3, 2, "at most 2")
        Traceback (most recent call last):
        ...
        tfrs_negatives.types.InputError: `k`: expected a positive integer, at most 2. Received: 3
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


def _as_array(label: str, values: Any, spec: tf.TensorSpec) -> np.ndarray:
    wanted = f"{spec.dtype.name} of shape {spec.shape}"
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise bad_input(label, wanted, "rows of different lengths") from error
    if array.ndim == 0:
        raise bad_input(label, f"{wanted}, one entry per query", f"a single value, {values!r}")
    if not spec.shape.is_compatible_with([None, *array.shape[1:]]):
        raise bad_input(label, wanted, f"shape {list(array.shape)}")
    return _cast(label, wanted, array, spec.dtype)


def _cast(label: str, wanted: str, array: np.ndarray, dtype: tf.DType) -> np.ndarray:
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
    if dtype.is_floating and not np.isfinite(cast).all():
        raise bad_input(label, "finite numbers", cast[~np.isfinite(cast)].flat[0])
    return cast
