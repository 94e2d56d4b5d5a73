"""What `fit` and `evaluate` are given: checked before the first trace, and put in one form."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import tensorflow as tf

from tfrs_negatives.core.errors import InputError, bad_input
from tfrs_negatives.core.types import WEIGHTS, Features


def check_data(
    arguments: Mapping[str, Any],
    *,
    item_key: str,
    columns: Sequence[str] = (),
    several: str | None = None,
) -> Features | None:
    """Checks the arguments of `fit` or `evaluate` that say what a batch is.

    Args:
        arguments: the arguments by name: `x`, `y`, `sample_weight`, `class_weight`, `batch_size`.
        item_key: the column of the positives' ids.
        columns: the columns that the query tower reads, as far as they are known.
        several: why a batch needs more than one row; None where it does not.

    Returns:
        name -> `tf.TypeSpec` of every column of a batch, where the data tell without being read:
        arrays and a `tf.data.Dataset` do, a generator does not.

    Raises:
        InputError: if there are labels or class weights, a batch is no dict of columns with the
            positives' ids, the weights are no numbers [B], or a batch has one row and needs more.
    """
    x, weights = arguments.get("x"), arguments.get(WEIGHTS)
    _check_no_labels(arguments.get("y"), item_key)
    if arguments.get("class_weight") is not None:
        rule = f"none, because there are no classes: weigh the rows by a column {WEIGHTS!r}"
        raise bad_input("class_weight", rule, type(arguments["class_weight"]).__name__)
    if isinstance(x, Mapping):
        specs = _specs_of_arrays(x, weights, arguments.get("batch_size") or 32)
    elif x is None or isinstance(x, Sequence) or hasattr(x, "dtype") or hasattr(x, "__array__"):
        raise bad_input("x", _DATA, f"a {type(x).__name__}")
    elif weights is not None:
        rule = f"none beside data that come in batches: give these a column {WEIGHTS!r}"
        raise bad_input(WEIGHTS, rule, f"a {type(weights).__name__}")
    elif not isinstance(x, tf.data.Dataset):
        return None
    else:
        specs = batch_features(x.element_spec, item_key)
    check_columns(specs, item_key=item_key, columns=columns)
    if several is not None and specs[item_key].shape[:1] == [1]:
        raise bad_input("batch", f"more than one row, because {several}", "batches of 1 row")
    return specs


_RAGGED = (tf.RaggedTensor, tf.RaggedTensorSpec)
_DATA = "a dict of columns, or a dataset or generator of such dicts"


def batch_features(batch: Any, item_key: str) -> dict[str, Any]:
    """Returns a batch as a dict of its columns, the weights among them.

    Args:
        batch: the dict, or a tuple of it, None, and weights [B], as Keras makes of
            `fit(x, sample_weight=...)`; of tensors or of their specs.
        item_key: the column of the positives' ids.

    Raises:
        InputError: if it has another form, has labels, or has weights in both places.

    Example:
        >>> ids = tf.constant([7, 8])
        >>> sorted(batch_features(({"item_id": ids}, None, tf.ones([2])), "item_id"))
        ['item_id', 'sample_weight']
        >>> batch_features(({"item_id": ids}, ids), "item_id")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `y`: expected no labels, because the positive of a row is
        the id in its column 'item_id'. Received: labels
    """
    parts = list(batch) if isinstance(batch, (tuple, list)) else [batch]
    if not 1 <= len(parts) <= 3 or not isinstance(parts[0], Mapping):
        kinds = [type(part).__name__ for part in parts]
        received = f"a tuple of {kinds}" if isinstance(batch, (tuple, list)) else f"a {kinds[0]}"
        raise bad_input("batch", "a dict of columns", received)
    features, labels, weights = [*parts, None, None][:3]
    _check_no_labels(labels, item_key)
    if _is_none(weights):
        return dict(features)
    if WEIGHTS in features:
        raise bad_input(WEIGHTS, "a column of the batch or an argument", "both")
    return {**features, WEIGHTS: weights}


class Rows(NamedTuple):
    """The rows of a batch, one for each positive.

    Attributes:
        ids: [B] the ids of the positives.
        weights: [B] numbers, or None.
        query_of_row: [B] int64, whose positive each is; None where row i is that of query i.
        features: the columns that are of queries.
    """

    ids: tf.Tensor
    weights: tf.Tensor | None
    query_of_row: tf.Tensor | None
    features: Features


def rows_of(features: Features, item_key: str) -> Rows:
    """Returns the rows of a batch whose ids are [B], or of a query each, [Q, n_i].

    Args:
        features: the batch, which `check_columns` has seen.
        item_key: the column of the positives' ids.

    Example:
        >>> rows_of({"item_id": tf.ragged.constant([[7, 8], [9]])}, "item_id").ids.numpy().tolist()
        [7, 8, 9]
    """
    ids, weights = features[item_key], features.get(WEIGHTS)
    if not isinstance(ids, tf.RaggedTensor):
        return Rows(tf.ensure_shape(ids, [None]), weights, None, features)
    of_queries = {n: x for n, x in features.items() if n not in (item_key, WEIGHTS)}
    flat = None if weights is None else weights.flat_values
    return Rows(ids.flat_values, flat, ids.value_rowids(), of_queries)


def as_dicts(x: Any, item_key: str) -> Any:
    """Returns a generator or a `Sequence` of batches as one of dicts, and data frames as arrays.

    Keras drops the weights of a tuple that it reads from one of these, where there are no labels,
    and makes a column of a data frame [B, 1]. Other data stay as they are.

    Args:
        x: what `fit` was given.
        item_key: the column of the positives' ids.
    """
    if isinstance(x, Mapping):
        return {
            n: column.to_numpy() if hasattr(column, "to_numpy") else column
            for n, column in x.items()
        }
    if isinstance(x, tf.keras.utils.Sequence):
        return _Dicts(x, item_key)
    if hasattr(x, "__next__"):
        return (batch_features(batch, item_key) for batch in x)
    return x


class _Dicts(tf.keras.utils.Sequence):
    def __init__(self, batches: tf.keras.utils.Sequence, item_key: str) -> None:
        self.batches, self.item_key = batches, item_key

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Features:
        return batch_features(self.batches[index], self.item_key)

    def on_epoch_end(self) -> None:
        self.batches.on_epoch_end()


def check_columns(features: Features, *, item_key: str, columns: Sequence[str] = ()) -> None:
    """Checks what is static of the columns of a batch, tensors or their specs.

    Args:
        features: name -> [B, ...].
        item_key: the column of the positives' ids.
        columns: others that must be there.

    Raises:
        InputError: if a column is missing, the ids are neither [B] nor ragged [Q, n_i], or the
            weights are not one number for each of them.
    """
    missing = sorted({item_key, *columns} - set(features))
    if missing:
        names = ", ".join(
            f"{name!r} of item ids" if name == item_key else f"{name!r}" for name in missing
        )
        raise bad_input("batch", f"a column {names}", f"the columns {sorted(map(str, features))}")
    ids, weights = features[item_key], features.get(WEIGHTS)
    shape, several = tf.TensorShape(ids.shape), isinstance(ids, _RAGGED)
    if shape.rank not in (None, 2 if several else 1):
        rule = "one id per row, shape [B], or a ragged row of ids for each query"
        raise bad_input(f"batch[{item_key!r}]", rule, f"shape {shape}")
    if weights is not None and several:
        if not isinstance(weights, _RAGGED) or tf.TensorShape(weights.shape).rank != 2:
            rule = f"a number for each id of {item_key!r}, ragged as they are"
            raise bad_input(WEIGHTS, rule, f"shape {weights.shape}")
    elif weights is not None:
        _check_weights(weights, shape[:1] if shape.rank else tf.TensorShape([None]))


def row_weights(weights: tf.Tensor, num_rows: tf.Tensor) -> tf.Tensor:
    """Returns the weights of the rows as [B] float32, which are there only if they are in order.

    A negative weight would push a positive away, and one that is not finite would end up in every
    weight of the towers. Compiled by XLA, which has no assertions, the values are not looked at.

    Args:
        weights: [B] or [B, 1] numbers.
        num_rows: B.

    Example:
        >>> row_weights(tf.constant([[1], [3]]), tf.constant(2)).numpy().tolist()
        [1.0, 3.0]
    """
    flat = tf.cast(tf.reshape(weights, [-1]), tf.float32)
    one_each = tf.shape(flat) == num_rows
    right = tf.math.is_finite(flat) & (flat >= 0)
    checks = [
        *assert_each(one_each, f"`{WEIGHTS}`: expected one number per row", tf.shape(flat)),
        *assert_each(right, f"`{WEIGHTS}`: expected finite numbers, none below 0", flat),
    ]
    with tf.control_dependencies(checks):
        return tf.identity(flat)


def assert_each(right: tf.Tensor, expected: str, values: tf.Tensor) -> list[tf.Operation]:
    """Asserts something of every value; the error names the first that is wrong.

    Args:
        right: [m] bool.
        expected: the beginning of the sentence, "`argument`: expected ...".
        values: [m].

    Returns:
        What must run first, for `tf.control_dependencies`.
    """
    wrong = tf.boolean_mask(values, ~right)[:1]
    check = tf.debugging.Assert(tf.reduce_all(right), [f"{expected}. Received:", wrong])
    return [] if check is None else [check]


@contextmanager
def one_sentence() -> Iterator[None]:
    """Raises what `assert_each` said inside a graph as an `InputError` of that one sentence.

    Example:
        >>> with one_sentence():
        ...     _ = assert_each(tf.constant([False]), "`x`: expected more", tf.constant([1.5]))
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `x`: expected more. Received: 1.5
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        # Graphs and eager calls put what was received into brackets, or on the next line.
        said = re.search(
            r"(`[^`\n]+`: expected [^\n]*Received:)[\]'\s]*\[?([^\]\n]*)", error.message
        )
        if said is None:
            raise
        raise InputError(f"{said[1]} {said[2]}") from None


def _check_no_labels(labels: Any, item_key: str) -> None:
    if not _is_none(labels):
        rule = f"no labels, because the positive of a row is the id in its column {item_key!r}"
        raise bad_input("y", rule, "labels")


def _is_none(part: Any) -> bool:
    # In the specs of a dataset None has a type that has no public name.
    return part is None or type(part).__name__ == "NoneTensorSpec"


def _check_weights(weights: Any, rows: tf.TensorShape) -> None:
    shape, dtype = tf.TensorShape(weights.shape), tf.as_dtype(weights.dtype)
    if not (dtype.is_floating or dtype.is_integer or dtype.is_bool):
        raise bad_input(WEIGHTS, "numbers", f"dtype {dtype.name}")
    is_column = any(shape.is_compatible_with([*rows, *more]) for more in ([], [1]))
    if isinstance(weights, (tf.RaggedTensor, tf.RaggedTensorSpec)) or not is_column:
        raise bad_input(WEIGHTS, "one number per row, shape [B]", f"shape {shape}")


def _specs_of_arrays(x: Features, weights: Any, batch_size: int) -> dict[str, Any]:
    """Returns the specs of the batches that Keras cuts out of arrays."""
    columns = batch_features((x, None, weights), "")
    for name, column in columns.items():
        if not hasattr(column, "shape") or not hasattr(column, "dtype") or not len(column.shape):
            raise bad_input(f"x[{name!r}]", "an array of one entry per row", _describe(column))
    rows = {name: column.shape[0] for name, column in columns.items()}
    if len(set(rows.values())) > 1:
        raise bad_input("x", "the same number of rows in every column", rows)
    size = 1 if min([batch_size, *rows.values()]) == 1 else None
    return {name: _spec_of_array(column, size) for name, column in columns.items()}


def _spec_of_array(column: Any, size: int | None) -> Any:
    if isinstance(column, tf.RaggedTensor):
        spec = tf.type_spec_from_value(column)
        shape = [size, *spec.shape[1:]]
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    text = getattr(column.dtype, "kind", "") in "UO" and not isinstance(column.dtype, tf.DType)
    return tf.TensorSpec([size, *column.shape[1:]], tf.string if text else column.dtype)


def _describe(column: Any) -> str:
    return "a single value" if hasattr(column, "dtype") else f"a {type(column).__name__}"
