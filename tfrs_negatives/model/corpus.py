"""From features to vectors: the catalogue of a model, some of its items, or queries, in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted_file
from tfrs_negatives.core.types import Columns, Features
from tfrs_negatives.data.schema import Schema
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.towers.build import columns_read
from tfrs_negatives.towers.signature import FeatureSignature

Tower = Callable[[Features], tf.Tensor]


def embed_items(model: RetrievalModel, batch_size: int, *, out: Path | None = None) -> np.ndarray:
    """Embeds the catalogue of a model, `batch_size` items at a time.

    Args:
        model: whose item tower embeds.
        batch_size: items that are embedded at once.
        out: a `.npy` file to write to instead of memory; it is there completely or not at all.

    Returns:
        [N, D] float32 in the order of the catalogue; of `out`, mapped into memory and read-only.

    Raises:
        InputError: if they are not one finite vector per item, of one width, or the file cannot be
            written.
    """
    items = model.items
    if out is None:
        return embed(model.item_vectors, items.batches(batch_size), ids=items.ids)
    with drafted_file(out, argument="out") as draft:

        def allocate(shape: tuple[int, int]) -> np.ndarray:
            return np.lib.format.open_memmap(draft, "w+", np.float32, shape)

        mapped: Any = embed(
            model.item_vectors, items.batches(batch_size), ids=items.ids, allocate=allocate
        )
        mapped.flush()
    return np.load(out, mmap_mode="r", allow_pickle=False)


def embed_queries(model: RetrievalModel, features: Columns, batch_size: int) -> np.ndarray:
    """Embeds queries, `batch_size` at a time.

    Args:
        model: whose query tower embeds.
        features: name -> [Q, ...], what the tower reads; more does no harm.
        batch_size: queries that are embedded at once.

    Returns:
        [Q, D] float32; of several vectors per query one after the other.

    Raises:
        InputError: if they are not one finite vector per query, of one width.
    """
    num_queries = next(iter(features.values())).shape[0]
    parts = (slice(start, start + batch_size) for start in range(0, num_queries, batch_size))
    batches = ({n: _tensor(c[part]) for n, c in features.items()} for part in parts)

    def tower(batch: Features) -> tf.Tensor:
        vectors = model.query_vectors(batch)
        return tf.reshape(vectors, [tf.shape(vectors)[0], -1])

    return embed(tower, batches, ids=np.arange(num_queries), kind="query")


def _tensor(column: Any) -> Any:
    return column if tf.is_tensor(column) else tf.constant(column)


def embed(
    tower: Tower,
    batches: Iterable[Features],
    *,
    ids: np.ndarray,
    kind: str = "item",
    allocate: Callable[[tuple[int, int]], np.ndarray] | None = None,
) -> np.ndarray:
    """Embeds batches one after the other into one array.

    Args:
        tower: features -> [m, D].
        batches: the features of N rows in all, in their order.
        ids: [N], by which an error names a row.
        kind: "item" or "query", what an error calls it.
        allocate: shape -> an array of float32 to write to; None is memory.

    Returns:
        [N, D] float32.

    Raises:
        InputError: if they are not one finite vector per row, of one width.
    """
    argument, start = f"{kind}_vectors", 0
    vectors = np.empty([0, 0], np.float32)
    for features in batches:
        chunk = embed_features(tower, features)
        if start == 0 and chunk.ndim == 2:
            shape = (len(ids), chunk.shape[1])
            vectors = allocate(shape) if allocate else np.empty(shape, np.float32)
        if chunk.ndim != 2 or chunk.shape[1] != vectors.shape[1] or chunk.shape[1] == 0:
            raise bad_input(argument, f"one vector per {kind}, of one width", chunk.shape)
        broken = np.argwhere(~np.isfinite(chunk))
        if len(broken):
            row, value = start + broken[0, 0], chunk[tuple(broken[0])]
            raise bad_input(
                argument, "finite numbers", f"{value} for the {kind} {ids[row].item()!r}"
            )
        vectors[start : start + len(chunk)] = chunk
        start += len(chunk)
    return vectors


def embed_features(tower: Tower, features: Features) -> np.ndarray:
    """Returns [m, D] float32, what a tower makes of checked features."""
    vectors: np.ndarray = tf.cast(tower(features), tf.float32).numpy()
    return vectors


def item_signature(model: RetrievalModel) -> FeatureSignature:
    """Returns the features of the catalogue that the item tower reads: name -> spec [None, ...].

    Which it reads is seen in its graph, so that a new item needs no more than these.
    """
    specs = {
        name: tf.TensorSpec([None, *column.shape[1:]], tf.as_dtype(_plain(column)), name=name)
        for name, column in model.items.features.items()
    }
    read = {name: specs[name] for name in columns_read(model.item_vectors, specs)}
    return FeatureSignature(read, may_miss=Schema(model.items.columns).may_miss)


def _plain(column: np.ndarray) -> Any:
    return tf.string if column.dtype.kind in "UO" else column.dtype


def check_item_vectors(vectors: Any, num_items: int) -> np.ndarray:
    """Returns given vectors as [N, D] float32, mapped into memory where they are a file's.

    Args:
        vectors: an array [N, D], or the path of a `.npy` file with one.
        num_items: N.

    Raises:
        InputError: if the file cannot be read, the shape or the kind of numbers is another, or one
            is not finite.
    """
    if isinstance(vectors, (str, Path)):
        try:
            vectors = np.load(vectors, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise bad_input("vectors", "a .npy file of numbers", f"{vectors}: {error}") from error
    array = vectors if isinstance(vectors, np.ndarray) else np.asarray(vectors, np.float32)
    if array.ndim != 2 or len(array) != num_items or array.shape[1] == 0:
        raise bad_input("vectors", f"shape [{num_items}, D]", f"shape {list(array.shape)}")
    if array.dtype.kind != "f":
        raise bad_input("vectors", "floating-point numbers", f"dtype {array.dtype}")
    for start in range(0, num_items, 2**16):
        if not np.isfinite(array[start : start + 2**16]).all():
            raise bad_input("vectors", "finite numbers", f"others in rows from {start} on")
    return array.astype(np.float32, copy=False)
