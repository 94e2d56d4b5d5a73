"""What the caller of a step gives, put in the form that sources and masks read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import all_rows, place_of_rows
from tfrs_negatives.core.types import EMPTY_ID, Features
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import check_same_kind, id_kind, to_keys
from tfrs_negatives.step.records import Batch, Frequency, Queries

Encoder = Callable[..., tf.Tensor]


def make_batch(
    queries: tf.Tensor,
    candidates: tf.Tensor,
    *,
    candidate_ids: tf.Tensor | None,
    features: Features,
    encode_items: Encoder | None,
    sample_weight: tf.Tensor | None,
    frequency: Frequency | None,
    step: tf.Tensor,
    seed: int,
    query_of_row: tf.Tensor | None = None,
) -> Batch:
    """Gathers the items of all replicas and keeps the queries of this one.

    Everything is cast to float32 here: scores, masks and losses are computed in it whatever the
    towers answer in.

    Args:
        queries: [B, D] or [B, H, D]; [Q, ...] beside a `query_of_row`.
        candidates: [n, D], n >= B; the first B are the positives.
        candidate_ids: [n] integers or strings, or None.
        features: the raw batch.
        sample_weight: [B] or [B, 1], the weight of each row's loss, or None.
        encode_items: item features -> [m, D]; where it takes `training`, probes are encoded with
            False.
        frequency: of the items in the stream of positives, or None.
        step: the number of this training step.
        seed: of the task.
        query_of_row: [B] integers, whose positive each of the first B candidates is; None: row i is
            that of query i.

    Raises:
        InputError: if there are fewer candidates than queries, or not one id per candidate.
    """
    ids = _keys(candidate_ids, candidates)
    queries, candidates = tf.cast(queries, tf.float32), tf.cast(candidates, tf.float32)
    grouped = None if query_of_row is None else _grouped(queries, features, query_of_row)
    if grouped is not None:
        queries = tf.gather(queries, grouped.of_rows)
        features = {name: tf.gather(column, grouped.of_rows) for name, column in features.items()}
    rows, columns = queries.shape[0], candidates.shape[0]
    if None not in (rows, columns) and columns < rows:
        raise bad_input("candidate_embeddings", f"at least {rows} rows, one per query", columns)
    num_rows, all_ids = tf.shape(queries)[0], all_rows(ids)
    return Batch(
        queries=queries,
        positives=_first(candidates, queries),
        positive_ids=_first(ids, queries),
        items=all_rows(candidates),
        item_ids=all_ids,
        own_rows=_own_rows(num_rows, tf.shape(candidates)[0], grouped),
        expected_items=_expected_items(all_ids, grouped, frequency),
        num_queries=place_of_rows(num_rows)[1],
        sample_weight=sample_weight,
        features=features,
        step=step,
        seed=tf.stack([seed, tf.cast(step, tf.int32)]),
        log_probability=_no_frequency if frequency is None else frequency.log_probability,
        encode_items=encode_items or _no_item_tower,
        encode_probes=_without_training(encode_items or _no_item_tower),
        grouped=grouped,
    )


def _grouped(queries: tf.Tensor, features: Features, query_of_row: tf.Tensor) -> Queries:
    of_rows = tf.cast(query_of_row, tf.int32)
    if of_rows.shape.rank != 1:
        raise bad_input("query_of_row", "the number of a query per row, [B]", of_rows.shape)
    return Queries(queries, features, of_rows)


def _expected_items(
    ids: tf.Tensor, grouped: Queries | None, frequency: Frequency | None
) -> tf.Tensor:
    each = None if frequency is None else frequency.positives_per_query
    if grouped is None or each is None:
        return tf.cast(tf.shape(ids)[0], tf.float32)
    return each * tf.cast(place_of_rows(tf.shape(grouped.vectors)[0])[1], tf.float32)


def _own_rows(num_rows: tf.Tensor, num_columns: tf.Tensor, grouped: Queries | None) -> tf.Tensor:
    # Row i of this replica is column first + i; its extra candidates are nobody's positives.
    first, total = place_of_rows(num_columns)
    if grouped is not None:
        around = [[first, total - first - num_rows]]
        return tf.pad(grouped.of_rows, around, constant_values=-1)
    rows = tf.range(total) - first
    return tf.where((rows >= 0) & (rows < num_rows), rows, -1)


class TaskParts(Protocol):
    """The parts of a task that may know items."""

    frequency: Any
    affinity: Any
    negatives: Any
    masks: Any
    miners: Any


def catalogues_of(task: TaskParts) -> dict[str, ItemCatalogue]:
    """Returns the items that the parts of a task know.

    Returns:
        "name" or "name[i]" of a part -> its catalogue.
    """
    parts = {"frequency": task.frequency, "item_bias": task.affinity.item_bias}
    for name in ("negatives", "masks", "miners"):
        parts |= {f"{name}[{i}]": part for i, part in enumerate(getattr(task, name))}
    items = {n: getattr(p, "items", None) for n, p in parts.items()}
    return {name: known for name, known in items.items() if isinstance(known, ItemCatalogue)}


def check_id_kinds(catalogues: Mapping[str, ItemCatalogue], candidate_ids: Any) -> None:
    """Refuses parts whose ids are of another kind than the batch: they would find no item.

    Args:
        catalogues: the name of each part -> the items that it knows.
        candidate_ids: [n] integers or strings.

    Raises:
        InputError: with the name of the part.
    """
    kind = id_kind(tf.convert_to_tensor(candidate_ids))
    for name, items in catalogues.items():
        check_same_kind(name, items.id_kind, kind, other_name="candidate_ids")


def _first(columns: tf.Tensor, queries: tf.Tensor) -> tf.Tensor:
    """Returns as many rows as there are queries."""
    if columns.shape[0] is not None and columns.shape[0] == queries.shape[0]:
        return columns
    return columns[: tf.shape(queries)[0]]


def _keys(candidate_ids: tf.Tensor | None, candidates: tf.Tensor) -> tf.Tensor:
    if candidate_ids is None:
        return tf.fill([tf.shape(candidates)[0]], tf.constant(EMPTY_ID, tf.int64))
    ids, columns = to_keys(candidate_ids), candidates.shape[0]
    if not ids.shape.is_compatible_with([columns]):
        raise bad_input("candidate_ids", f"shape [{columns}], one per candidate", ids.shape)
    return ids


def _without_training(encode: Encoder) -> Encoder:
    # The signature of a layer itself is that of any layer.
    call = encode.call if isinstance(encode, tf.keras.layers.Layer) else encode
    if "training" not in inspect.signature(call).parameters:
        return encode
    return lambda features: encode(features, training=False)


def _no_frequency(_ids: tf.Tensor) -> tf.Tensor:
    raise bad_input("frequency", "an estimator, because a sampler needs it", None)


def _no_item_tower(_features: Features) -> tf.Tensor:
    raise bad_input("encode_items", "the item tower, because a source proposes other items", None)
