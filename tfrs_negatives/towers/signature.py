"""What a tower reads: the name, type and shape of each feature, and which may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.data.columns import MISSING_INTEGER

FeatureSpecs = Mapping[str, tf.TypeSpec]


class FeatureSignature(dict[str, tf.TypeSpec]):
    """Name -> `tf.TypeSpec` ([None, ...]) of every feature that a tower reads.

    Args:
        specs: name -> spec.
        may_miss: the features of which a query or an item may have no value.

    Example:
        >>> signature = FeatureSignature({"age": tf.TensorSpec([None])}, may_miss=["age"])
        >>> list(signature), sorted(signature.may_miss)
        (['age'], ['age'])
    """

    def __init__(self, specs: Mapping[str, tf.TypeSpec], *, may_miss: Iterable[str] = ()) -> None:
        super().__init__(specs)
        self.may_miss = frozenset(may_miss)


def may_miss(signature: Mapping[str, tf.TypeSpec]) -> frozenset[str]:
    """Returns the features of a signature that may be missing; none where it does not say so."""
    return signature.may_miss if isinstance(signature, FeatureSignature) else frozenset()


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
    arrays = feature_arrays(features, signature, argument=argument)
    return {
        name: a if tf.is_tensor(a) else tf.constant(a, signature[name].dtype)
        for name, a in arrays.items()
    }


def feature_arrays(
    features: Features, signature: FeatureSpecs, *, argument: str = "features"
) -> dict[str, Any]:
    """Does what `check_features` does, but leaves dense features as arrays."""
    if not isinstance(features, Mapping):
        raise bad_input(argument, "a dict of query features", f"a {type(features).__name__}")
    missing, unknown = sorted(signature.keys() - features), sorted(features.keys() - signature)
    if missing or unknown:
        received = f"{sorted(features)} (missing {missing}, unknown {unknown})"
        raise bad_input(argument, f"the features {sorted(signature)}", received)
    can_miss = may_miss(signature)
    arrays = {
        name: _as_ragged(f"{argument}[{name!r}]", features[name], spec)
        if isinstance(spec, tf.RaggedTensorSpec)
        else _as_array(f"{argument}[{name!r}]", features[name], spec, can_miss=name in can_miss)
        for name, spec in signature.items()
    }
    sizes = {name: array.shape[0] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise bad_input(argument, "the same number of rows in each", sizes)
    return arrays


def join_rows(
    rows: Sequence[Mapping[str, np.ndarray]], signature: FeatureSpecs
) -> dict[str, tf.Tensor]:
    """Puts features [1, ...] that were checked one by one together, name -> [B, ...]."""
    return {
        name: tf.constant(np.concatenate([row[name] for row in rows]), spec.dtype)
        for name, spec in signature.items()
    }


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
