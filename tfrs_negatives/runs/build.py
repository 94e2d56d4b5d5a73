"""A configuration and a log to a compiled model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.clustering import ClusteredBatches, doubling
from tfrs_negatives.core.errors import InputError
from tfrs_negatives.core.part import find_own
from tfrs_negatives.data import Interactions, QueryBatches, RetrievalData
from tfrs_negatives.model.optimizers import SparseAdam
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.runs.config import RunConfig
from tfrs_negatives.runs.sections import ModelConfig
from tfrs_negatives.step.arguments import Run
from tfrs_negatives.step.score import ItemBias
from tfrs_negatives.step.task import Retrieval
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import FeatureSpec, infer_features

OPTIMIZERS = {"adagrad": tf.keras.optimizers.Adagrad, "sparse_adam": SparseAdam}


class Learned(NamedTuple):
    """What is learned from the training part before anything is built.

    Attributes:
        queries: how the query tower reads its features.
        items: how the item tower reads its features.
        counts: [N] int64, the events of each item that are trained on.
    """

    queries: list[FeatureSpec]
    items: list[FeatureSpec]
    counts: np.ndarray


def training_log(config: RunConfig, data: RetrievalData) -> Interactions:
    """Returns the events that batches are made of: the training part, resampled where asked."""
    options = config.train
    chosen = {"threshold": options.resample_threshold, "exponent": options.resample_exponent}
    if chosen == {"threshold": None, "exponent": None}:
        return data.train
    try:
        return data.train.resample(**chosen, seed=options.seed)
    except InputError as error:
        raise InputError(
            f"`train.resample_threshold` and `train.resample_exponent`, {error}"
        ) from None


def learn_features(config: RunConfig, data: RetrievalData) -> Learned:
    """Learns from the training part how the towers read their features.

    Args:
        config: the run.
        data: its log; of the items, only those that occur in the training part are learned from.
    """
    occurs = data.train.item_counts(data.items) > 0
    seen = {name: column[occurs] for name, column in data.items.features.items()}
    share, key = config.model.id_dropout, data.train.query_key
    dropout = {} if key is None else {key: share}
    queries = infer_features(data.train, id_dropout=dropout)
    dropout = {data.items.item_key: share}
    items = infer_features(seen, declared=data.items.columns, id_dropout=dropout)
    return Learned(queries, items, training_log(config, data).item_counts(data.items))


def build_model(config: RunConfig, data: RetrievalData, learned: Learned | None = None) -> TwoTower:
    """Builds the towers from the training part and the task from the recipe, compiled.

    Args:
        config: the run.
        data: its log; only the training part and the catalogue are read.
        learned: what `learn_features` returned; None asks it.

    Returns:
        The model, ready for `fit`.
    """
    queries, items, counts = learned or learn_features(config, data)
    with _precision(config.train.precision), _strategy(config.train.strategy).scope():
        model = TwoTower(
            _tower("query_tower", queries, config.model),
            _tower("item_tower", items, config.model),
            data.items,
            _build_task(config, data, counts),
            encode_chunk=config.train.encode_chunk,
        )
        # Under mixed_float16 Keras puts loss scaling around the optimizer.
        model.compile(_optimizer(config, data), jit_compile=config.train.jit_compile or None)
    return model


def build_batches(
    config: RunConfig, data: RetrievalData, *, item_key: str
) -> ClusteredBatches | QueryBatches | None:
    """Builds the batches of similar queries, or of whole ones; None where the order is random.

    Args:
        config: the run.
        data: its log.
        item_key: the batch column with the item ids.

    Returns:
        The batches of the training part.
    """
    options = config.batches
    if config.order == "random":
        return None
    if config.order == "by_query":
        return _query_batches(config, data, item_key)
    log = training_log(config, data)
    every = options.double_every or _epochs_per_doubling(config, log)
    size = doubling(options.cluster_size, every=every, most=options.max_cluster_size)
    return ClusteredBatches(
        log,
        config.train.batch_size,
        item_key=item_key,
        cluster_size=size,
        refresh_every=options.refresh_every,
        min_clusters=options.min_clusters,
        random_share=options.random_share,
        seed=config.train.seed,
    )


def _query_batches(config: RunConfig, data: RetrievalData, item_key: str) -> QueryBatches:
    log, train = training_log(config, data), config.train
    most, size = config.batches.max_positives, train.batch_size
    return QueryBatches(log, size, item_key=item_key, max_positives=most, seed=train.seed)


def steps_per_epoch(config: RunConfig, data: RetrievalData) -> int:
    """Returns how many batches an epoch of a run has."""
    log, size = training_log(config, data), config.train.batch_size
    if config.order == "by_query":
        num_queries = len(next(iter(log.queries()[0].values())))
        return -(-num_queries // size)
    return log.steps_per_epoch(size)


def _epochs_per_doubling(config: RunConfig, log: Interactions) -> int:
    """Returns the epochs after which the size doubles so that the largest clusters have a share."""
    options, num_queries = config.batches, len(next(iter(log.queries()[0].values())))
    largest = num_queries / (options.min_clusters * options.cluster_size)
    doublings = max(1, math.ceil(math.log2(max(largest, 1.0))))
    return max(1, config.train.epochs // (doublings + 1))


def _optimizer(config: RunConfig, data: RetrievalData) -> tf.keras.optimizers.Optimizer:
    options, rate = config.train, config.train.learning_rate
    if options.schedule == "cosine":
        steps = options.epochs * steps_per_epoch(config, data)
        rate = tf.keras.optimizers.schedules.CosineDecay(rate, steps)
    kwargs = {"unit_rows": True} if options.unit_rows else {}
    return OPTIMIZERS[options.optimizer](rate, **kwargs)


def _tower(side: str, specs: list[FeatureSpec], options: ModelConfig) -> Any:
    own = getattr(options, side)
    if own is not None:
        return find_own(f"model.{side}", own)(specs, options)
    sizes = options.model_dump(include={"embedding_dim", "hidden", "output_dim"})
    return build_tower(specs, name=side, **sizes)


@contextmanager
def _precision(policy: str) -> Iterator[None]:
    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def _strategy(name: str | None) -> tf.distribute.Strategy:
    if name is None:
        return tf.distribute.get_strategy()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def _build_task(config: RunConfig, data: RetrievalData, counts: np.ndarray) -> Retrieval:
    score = {"similarity", "temperature", "learn_temperature"}
    options: dict[str, Any] = config.model.model_dump(include=score)
    if config.model.item_bias:
        options["item_bias"] = ItemBias(data.items.ids, counts)
    options |= {"seed": config.train.seed, "logits_budget": config.train.logits_budget}
    run = Run(data.items, data.train, counts)
    if config.order == "by_query":
        # What a long history does not bring to a batch is not part of the stream either.
        batches = _query_batches(config, data, data.items.item_key)
        rows = batches.log.item_rows(data.items)
        drawn = np.bincount(rows, batches.event_shares, len(data.items))
        run = Run(data.items, data.train, drawn, batches.positives_per_query)
    return config.task.expansion.build(run, reduction="mean", **options)
