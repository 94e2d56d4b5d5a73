"""The vectors of a catalogue: embedded in chunks, in memory or in a memory-mapped file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.data.schema import Schema
from tfrs_negatives.towers.signature import FeatureSignature
from tfrs_negatives.towers.build import columns_read
from tfrs_negatives.core.files import drafted_file
from tfrs_negatives.core.types import Features
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.core.errors import bad_input


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
    if out is None:
        return _embed(model, batch_size, lambda shape: np.empty(shape, np.float32))
    with drafted_file(out, argument="out") as draft:
        mapped = _embed(
            model,
            batch_size,
            lambda shape: np.lib.format.open_memmap(draft, "w+", np.float32, shape),
        )
        mapped.flush()
    return np.load(out, mmap_mode="r", allow_pickle=False)


def _embed(model: RetrievalModel, batch_size: int, allocate: Any) -> Any:
    vectors, start = np.empty([0, 0], np.float32), 0
    for features in model.items.batches(batch_size):
        chunk = tf.cast(model.item_vectors(features), tf.float32).numpy()
        if start == 0 and chunk.ndim == 2:
            vectors = allocate((len(model.items), chunk.shape[1]))
        if chunk.ndim != 2 or chunk.shape[1] != vectors.shape[1] or chunk.shape[1] == 0:
            raise bad_input("item_vectors", "one vector per item, of one width", chunk.shape)
        broken = np.argwhere(~np.isfinite(chunk))
        if len(broken):
            item, value = model.items.ids[start + broken[0, 0]].item(), chunk[tuple(broken[0])]
            raise bad_input("item_vectors", "finite numbers", f"{value} for the item {item!r}")
        vectors[start : start + len(chunk)] = chunk
        start += len(chunk)
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


def embed_features(function: Any, features: Features) -> np.ndarray:
    """Returns [m, D] float32, what a tower makes of checked features."""
    vectors: np.ndarray = tf.cast(function(features), tf.float32).numpy()
    return vectors
