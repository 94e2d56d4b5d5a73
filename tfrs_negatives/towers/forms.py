"""Towers as users write them: built or not, of named columns or of a single tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import WEIGHTS, Features
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.towers.build import columns_read


def item_tower_of(tower: Any, items: ItemCatalogue) -> Any:
    """Returns an item tower that takes a dict of the catalogue's features, built.

    A `Sequential` without a named input takes one tensor. Where the catalogue holds nothing but
    ids, these are the tensor.

    Args:
        tower: as the user wrote it.
        items: the catalogue.

    Raises:
        InputError: if it reads what the catalogue does not hold, cannot be called on it, or takes
            one tensor of a catalogue with several features.

    Example:
        >>> items = ItemCatalogue(["a", "b"], item_key="title")
        >>> lookup = tf.keras.layers.StringLookup(vocabulary=["a", "b"])
        >>> tower = tf.keras.Sequential([lookup, tf.keras.layers.Embedding(3, 8)])
        >>> item_tower_of(tower, items).input_names
        ['title']
    """
    unknown = sorted(set(input_names(tower)) - set(items.features))
    if _takes_a_tensor(tower) or (isinstance(tower, tf.keras.Sequential) and unknown):
        if set(items.features) != {items.item_key}:
            raise _unnamed("item_tower", f"one of {sorted(items.features)}", items.item_key)
        ids = items.features[items.item_key]
        dtype = tf.string if ids.dtype.kind == "U" else tf.int64
        column = tf.keras.Input((), name=items.item_key, dtype=dtype)
        return tf.keras.Model({items.item_key: column}, tower(column), name=tower.name)
    if unknown:
        rule = f"inputs named as the catalogue's features, {sorted(items.features)}"
        raise bad_input("item_tower", rule, f"inputs {unknown}")
    if not tower.built:
        _call(tower, items.gather(tf.range(1)), argument="item_tower")
    return tower


class QueryColumns:
    """The columns of a batch that the query tower reads: those of its inputs, or of its graph.

    A tower without named inputs is built by the first batch, and what it reads is seen then. The
    ids of the positives and the weights of the rows are never among it.

    Args:
        tower: as the user wrote it.
        item_key: the column of the positives' ids.

    Attributes:
        specs: name -> `tf.TypeSpec` ([None, ...]); None where it is not known yet.

    Raises:
        InputError: if the tower takes one tensor of no name, or reads the positives or weights.

    Example:
        >>> column = tf.keras.Input((), name="item_id", dtype=tf.int64)
        >>> tower = tf.keras.Model(column, tf.keras.layers.Embedding(3, 8)(column))
        >>> QueryColumns(tower, "item_id")
        Traceback (most recent call last):
        ...
        tfrs_negatives.InputError: `query_tower`: expected no input named 'item_id', the
        batch's column of the positives, which would tell it the answer: give the input, or that
        column by `item_key`, another name. Received: inputs ['item_id']
    """

    def __init__(self, tower: Any, item_key: str) -> None:
        self.reserved = (item_key, WEIGHTS)
        names = input_names(tower)
        if item_key in names:
            rule = (
                f"no input named {item_key!r}, the batch's column of the positives, which would "
                "tell it the answer: give the input, or that column by `item_key`, another name"
            )
            raise bad_input("query_tower", rule, f"inputs {names}")
        if WEIGHTS in names:
            rule = f"no input named {WEIGHTS!r}, the batch's column of weights: give it another"
            raise bad_input("query_tower", rule, f"inputs {names}")
        if _takes_a_tensor(tower):
            raise _unnamed("query_tower", "the column that it reads", "user_id")
        inputs = zip(names, tower.inputs, strict=True) if names else ()
        self.specs: dict[str, Any] | None = {n: _named(x.type_spec, n) for n, x in inputs} or None

    def check(self, batch: Mapping[str, Any]) -> None:
        """Checks that the columns are of the kind and the shape that the tower was made for.

        Args:
            batch: name -> tensors or specs [B, ...], with all columns that the tower reads.

        Raises:
            InputError: if one holds text in the place of numbers or the reverse, or has another
                shape. A last dimension of 1 may be there or not, as Keras has it.
        """
        for name, spec in (self.specs or {}).items():
            column, argument = batch[name], f"batch[{name!r}]"
            dtype, shape = tf.as_dtype(column.dtype), tf.TensorShape(column.shape)
            if (dtype == tf.string) != (spec.dtype == tf.string):
                kind = "strings" if spec.dtype == tf.string else "numbers"
                raise bad_input(
                    argument, f"{kind}, as the query tower reads", f"dtype {dtype.name}"
                )
            if not _fits(shape, spec.shape):
                rule = f"shape {spec.shape}, as the query tower reads"
                raise bad_input(argument, rule, f"shape {shape}")

    def learn(self, tower: Any, batch: Mapping[str, Any]) -> None:
        """Builds the tower by a batch, and sees what it reads.

        Args:
            tower: the query tower, without named inputs.
            batch: name -> tensors, arrays or specs [B, ...]; of these only the form is looked at.

        Raises:
            InputError: if the tower cannot be called on a dict of these columns.
        """
        columns = {n: x for n, x in batch.items() if n not in self.reserved}
        for name, column in columns.items():
            if getattr(column, "shape", None) == tf.TensorShape(None):
                rule = "a known number of dimensions, because the query tower has no named inputs"
                raise bad_input(f"batch[{name!r}]", rule, "an unknown one")
        specs = tf.nest.map_structure(_any_rows, columns)
        self.restore(tower, specs)
        read = columns_read(lambda columns: tower(columns, training=False), specs)
        self.specs = {name: _named(specs[name], name) for name in read}

    def restore(self, tower: Any, specs: Mapping[str, Any]) -> None:
        """Builds the tower for columns of these specs, which are all it reads."""
        if not tower.built:
            blank = tf.nest.map_structure(_blank, dict(specs))
            _call(tower, blank, argument="query_tower")
        self.specs = {name: _named(spec, name) for name, spec in specs.items()}

    def with_rank(self, features: Features) -> Features:
        """Returns the columns with the rank that the tower was told, where they have none."""
        specs = self.specs or {}
        return {
            name: _with_rank(column, specs[name].shape) if name in specs else column
            for name, column in features.items()
        }

    def unnamed(self) -> dict[str, Any]:
        """Returns the specs without their names, which Keras would not save as such."""
        return tf.nest.map_structure(_any_rows, self.specs)


def input_names(tower: Any) -> list[str]:
    """Returns the names of the inputs of a functional or sequential model; of others none."""
    return list(getattr(tower, "input_names", None) or [])


def width_of(tower: Any, items: ItemCatalogue) -> int | None:
    """Returns D of the embeddings [m, D] of a built item tower."""
    shape = getattr(tower, "output_shape", None)
    if shape is None:
        shape = tower(items.gather(tf.range(1)), training=False).shape
    width: int | None = shape[-1]
    return width


def _takes_a_tensor(tower: Any) -> bool:
    """Whether a model's first layer is one of Keras that knows no dict and has no named input."""
    if not isinstance(tower, tf.keras.Sequential) or not tower.layers:
        return False
    first = tower.layers[0]
    # Some layers bring an input along, which Keras names after them.
    if input_names(tower) not in ([], [f"{first.name}_input"]):
        return False
    of_keras = type(first).__module__.partition(".")[0] in ("keras", "tf_keras")
    takes_anything = (tf.keras.layers.Lambda, tf.keras.Model, tf.keras.layers.DenseFeatures)
    return of_keras and not isinstance(first, takes_anything)


def _unnamed(argument: str, name: str, example: str) -> Exception:
    rule = (
        f"a model whose input is named as {name}, such as tf.keras.Sequential(["
        f"tf.keras.Input((), name={example!r}, dtype=...), ...])"
    )
    return bad_input(argument, rule, "a Sequential that takes one tensor of no name")


def _call(tower: Any, features: Features, *, argument: str) -> Any:
    try:
        with tf.init_scope():
            return tower(features, training=False)
    # The code of a user may raise anything.
    except Exception as error:
        first = f"{type(error).__name__}: {error}".partition("\n")[0]
        rule = f"a model of a dict of the columns {sorted(features)}"
        raise bad_input(argument, rule, first) from error


def _any_rows(column: Any) -> Any:
    spec = column if isinstance(column, tf.TypeSpec) else tf.type_spec_from_value(column)
    if isinstance(spec, tf.RaggedTensorSpec):
        shape = [None, *spec.shape[1:]]
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.SparseTensorSpec([None, *spec.shape[1:]], spec.dtype)
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype)


def _with_rank(column: Any, shape: tf.TensorShape) -> Any:
    # Keras traces columns [B] and [B, 1] of one name as one of unknown rank.
    if not isinstance(column, tf.Tensor) or column.shape.rank is not None:
        return column
    if not shape[1:].is_fully_defined():
        return tf.ensure_shape(column, shape)
    return tf.reshape(column, [tf.shape(column)[0], *shape[1:]])


def _fits(shape: tf.TensorShape, wanted: tf.TensorShape) -> bool:
    if None in (shape.rank, wanted.rank):
        return True
    forms = [wanted, wanted.concatenate([1]), *([wanted[:-1]] if wanted[-1:] == [1] else [])]
    return any(shape[1:].is_compatible_with(form[1:]) for form in forms)


def _named(spec: Any, name: str) -> Any:
    # Specs of ragged tensors have no names.
    return tf.TensorSpec(spec.shape, spec.dtype, name) if type(spec) is tf.TensorSpec else spec


def _blank(spec: Any) -> Any:
    """Returns a row of zeros or empty strings."""
    shape: Sequence[int] = [size or 1 for size in spec.shape]
    dense = tf.fill(shape, "") if spec.dtype == tf.string else tf.zeros(shape, spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensor.from_tensor(dense, ragged_rank=spec.ragged_rank)
    return tf.sparse.from_dense(dense) if isinstance(spec, tf.SparseTensorSpec) else dense
