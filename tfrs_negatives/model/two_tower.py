"""The model: two towers, a catalogue, a task."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import num_replicas, place_of_rows
from tfrs_negatives.core.types import WEIGHTS, Features, Similarity
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.model.batch_form import (
    as_dicts,
    assert_each,
    batch_features,
    check_columns,
    check_data,
    one_sentence,
    row_weights,
    rows_of,
)
from tfrs_negatives.step.batch import catalogues_of
from tfrs_negatives.step.frequency import StreamingFrequency
from tfrs_negatives.step.samplers import InBatch
from tfrs_negatives.step.task import Retrieval
from tfrs_negatives.towers.chunked import check_repeatable, encode_in_chunks
from tfrs_negatives.towers.forms import QueryColumns, input_names, item_tower_of, width_of
from tfrs_negatives.towers.layers import MayMiss
from tfrs_negatives.towers.shared_layers import deserialize_towers, serialize_towers
from tfrs_negatives.towers.signature import FeatureSignature

logger = logging.getLogger("tfrs_negatives")
# Measured in training steps; in the logs of an evaluation they would be 0, which is no measurement.
TRAINING_ONLY = frozenset(
    {"masked_share", "empty_row_share", "bank_fill", "bank_age", "bank_drift"}
)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class TwoTower(tfrs.Model):
    """A two-tower retrieval model for `model.fit` on batches of query features and item ids.

    The item tower reads the catalogue's features of each batch's items, so the log needs no item
    columns but the id. A batch is a dict of columns without labels. Its `sample_weight` [B], or
    that of `fit(x, sample_weight=...)`, weighs its rows: finite numbers, none negative.

    Where the ids are a `tf.RaggedTensor` [Q, n_i] (`tfn.data.QueryBatches`), a row is a query with
    all of its positives: the towers see each query and each distinct item once, every positive has
    a term in the loss, and the positives of a query are no negatives of it.

    Args:
        query_tower: a dict of query features [B, ...], also ragged ones -> [B, D]. One that has no
            named inputs is built by the first batch, of which it gets all but the positives' ids
            and the weights.
        item_tower: a dict of item features [m, ...], as the catalogue holds them -> [m, D]. A
            `Sequential` may take the ids as they are where the catalogue holds nothing else. Both
            towers may hold the same layer.
        items: the corpus.
        task: the composition of negatives; None is in-batch with logQ, cosine, temperature 0.05,
            and the mean over the batch.
        item_key: the batch column with the positive's id; None is the catalogue's name for it.
        encode_chunk: how many rows may be in a tower at once in training, for towers whose
            activations of a whole batch do not fit; a second pass over the towers gives the same
            gradients (`encode_in_chunks`). None encodes a batch at once.

    Raises:
        InputError: if `encode_chunk` is below 1, a tower cannot be encoded twice with one result
            (`check_repeatable`), the item tower cannot be called on the catalogue, or the query
            tower reads the positives' ids.

    Example:
        >>> items = ItemCatalogue([1, 2, 3])
        >>> def embed(name):
        ...     ids = tf.keras.Input((), name=name, dtype=tf.int64)
        ...     return tf.keras.Model(ids, tf.keras.layers.Embedding(4, 8)(ids))
        >>> model = TwoTower(embed("user_id"), embed("item_id"), items)
        >>> model.compile(tf.keras.optimizers.Adagrad(0.1))
        >>> batch = {"user_id": tf.constant([0, 1]), "item_id": tf.constant([3, 1])}
        >>> history = model.fit(tf.data.Dataset.from_tensors(batch), verbose=0)
        >>> sorted(history.history)
        ['loss', 'regularization_loss', 'total_loss']
    """

    def __init__(
        self,
        query_tower: tf.keras.Model,
        item_tower: tf.keras.Model,
        items: ItemCatalogue,
        task: Retrieval | None = None,
        *,
        item_key: str | None = None,
        encode_chunk: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encode_chunk = encode_chunk
        if encode_chunk is not None and encode_chunk < 1:
            raise bad_input("encode_chunk", "at least 1", encode_chunk)
        self.item_key = item_key or items.item_key
        self.query_columns = QueryColumns(query_tower, self.item_key)
        item_tower = item_tower_of(item_tower, items)
        self.query_tower, self.item_tower, self.items = query_tower, item_tower, items
        self.task = task or Retrieval(
            temperature=0.05,
            similarity="cosine",
            frequency=StreamingFrequency(),
            reduction="mean",
        )
        self._check_repeatable()
        self._warn_of_unknown_items()
        width = width_of(item_tower, items)
        if width is not None and not self.task.built:
            self.task.build([None, width])
        names = ("loss", "regularization_loss", "total_loss")
        self.loss_trackers = [tf.keras.metrics.Mean(name) for name in names]
        self.built = self.query_columns.specs is not None

    def _check_repeatable(self) -> None:
        if self.encode_chunk is not None:
            check_repeatable(self.query_tower)
            check_repeatable(self.item_tower)

    def _warn_of_unknown_items(self) -> None:
        for name, known in catalogues_of(self.task).items():
            if not np.isin(self.items.keys, known.keys).any():
                logger.warning("`%s`: it knows none of the %d items", name, len(self.items))

    def fit(self, *args: Any, **kwargs: Any) -> tf.keras.callbacks.History:
        """Trains as Keras does, and reports once what the first step was made of.

        Raises:
            InputError: if a batch is not what `TwoTower` says, as early as that can be seen.
        """
        given = inspect.signature(super().fit).bind(*args, **kwargs)
        arguments = given.arguments
        self._prepare(arguments)
        held_out = arguments.get("validation_data")
        if held_out is not None:
            parts = held_out if isinstance(held_out, (tuple, list)) else [held_out]
            own = dict(zip(("x", "y", WEIGHTS), parts, strict=False))
            self._prepare(own)
            arguments["validation_data"] = own["x"]
        # A `CallbackList` asks its callbacks only once what they do, when it is made.
        callbacks = arguments.get("callbacks")
        callbacks = tf.nest.flatten(getattr(callbacks, "callbacks", callbacks) or [])
        arguments["callbacks"] = [*callbacks, FirstStepReport(self.task)]
        with one_sentence():
            return super().fit(*given.args, **given.kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as Keras does; raises what `fit` raises."""
        return self._checked(super().evaluate, args, kwargs)

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Takes one step as Keras does; raises what `fit` raises."""
        return self._checked(super().train_on_batch, args, kwargs)

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates one batch as Keras does; raises what `fit` raises."""
        return self._checked(super().test_on_batch, args, kwargs)

    def _checked(self, method: Any, args: Any, kwargs: Any) -> Any:
        given = inspect.signature(method).bind(*args, **kwargs)
        self._prepare(given.arguments)
        with one_sentence():
            return method(*given.args, **given.kwargs)

    def _prepare(self, arguments: dict[str, Any]) -> None:
        """Checks what a batch is, and builds the query tower where that is known without one."""
        only_batch = [source.name for source in self.task.negatives] == [InBatch.name]
        specs = check_data(
            arguments,
            item_key=self.item_key,
            columns=list(self.query_columns.specs or ()),
            several="the batch is the only source of negatives" if only_batch else None,
        )
        weights = arguments.pop(WEIGHTS, None)
        if weights is not None:
            # Keras drops the weights of data that have no labels.
            arguments["x"] = {**arguments["x"], WEIGHTS: weights}
        arguments["x"] = as_dicts(arguments["x"], self.item_key)
        if specs is not None:
            self.query_columns.check(specs)
            with self.distribute_strategy.scope():
                self._learn_columns(specs)

    def _learn_columns(self, batch: Mapping[str, Any]) -> None:
        if self.query_columns.specs is None:
            self.query_columns.learn(self.query_tower, batch)
            self._check_repeatable()
            self.built = True

    def compute_loss(self, features: Features, training: bool = False) -> tf.Tensor:
        """Returns the loss of one batch, a scalar."""
        columns = list(self.query_columns.specs or ())
        check_columns(features, item_key=self.item_key, columns=columns)
        self.query_columns.check(features)
        self._learn_columns(features)
        ids, weights, query_of_row, features = rows_of(features, self.item_key)
        return self.task(
            self._run(self.query_tower, features, training),
            self._embed_positives(ids, training, repeated=query_of_row is not None),
            sample_weight=None if weights is None else row_weights(weights, tf.size(ids)),
            candidate_ids=ids,
            compute_metrics=not training,
            features=features,
            encode_items=lambda f, training=training: self._run(self.item_tower, f, training),
            query_of_row=query_of_row,
            training=training,
        )

    def _embed_positives(self, ids: tf.Tensor, training: bool, *, repeated: bool) -> tf.Tensor:
        rows = self.items.rows(ids, name=self.item_key)
        known = f"`{self.item_key}`: expected only items of the catalogue"
        with tf.control_dependencies(assert_each(rows >= 0, known, ids)):
            rows = tf.identity(rows)
        if not repeated:
            return self._run(self.item_tower, self.items.gather(rows), training)
        # Several queries have the same popular items: the tower sees each of them once.
        distinct, place = tf.unique(rows)
        vectors = self._run(self.item_tower, self.items.gather(distinct), training)
        return tf.gather(vectors, place)

    def train_step(self, batch: Any) -> dict[str, tf.Tensor]:
        """One step of `fit`; the logs are means over the epoch, not the last batch."""
        features = batch_features(batch, self.item_key)
        # Data of unknown length end inside a step, which must not count or draw or gather then.
        with tf.control_dependencies(tf.nest.flatten(features)):
            with tf.GradientTape() as tape:
                losses = self._step_losses(features, training=True)
            self.optimizer.minimize(losses[-1], self.trainable_variables, tape=tape)
            return self._log(losses, features)

    def test_step(self, batch: Any) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the loss on held-out batches, with the state left alone."""
        features = batch_features(batch, self.item_key)
        logs = self._log(self._step_losses(features, training=False), features)
        return {name: value for name, value in logs.items() if name not in TRAINING_ONLY}

    def _step_losses(self, features: Features, *, training: bool) -> tuple[tf.Tensor, ...]:
        loss = self.compute_loss(features, training=training)
        regularization = tf.add_n([tf.reduce_sum(x) for x in self.losses] or [tf.zeros([])])
        # Every replica has the same weights, and the gradients of all are added up.
        regularization /= num_replicas()
        return loss, regularization, loss + regularization

    def _log(self, losses: tuple[tf.Tensor, ...], features: Features) -> dict[str, tf.Tensor]:
        # Each replica has a part of every loss; the trackers add up values and weights.
        # A sum over the batch already weighs each batch by its rows.
        rows = place_of_rows(tf.size(rows_of(features, self.item_key).ids))[1]
        weight = tf.cast(rows, tf.float32) if self.task.reduction == "mean" else tf.ones([])
        for tracker, value in zip(self.loss_trackers, losses, strict=True):
            # A batch without any row has no mean.
            tracker.total.assign_add(tf.math.multiply_no_nan(value, weight))
            tracker.count.assign_add(weight / num_replicas())
        return {metric.name: metric.result() for metric in self.metrics}

    @property
    def steps_done(self) -> tf.Variable:
        """The number of training steps so far, scalar int64; also those that overflowed."""
        return self.task.step

    @property
    def similarity(self) -> Similarity:
        """The similarity of the task."""
        return self.task.affinity.similarity

    @property
    def query_signature(self) -> FeatureSignature:
        """Name -> spec of every feature that the query tower reads.

        Raises:
            InputError: if the tower has no named inputs, and no batch has shown what it reads.
        """
        if self.query_columns.specs is None:
            rule = "a model with named `tf.keras.Input`s, or a call of `fit` before"
            raise bad_input("query_tower", rule, self.query_tower)
        layers = self.query_tower.submodules
        can_miss = [layer.feature for layer in layers if isinstance(layer, MayMiss)]
        return FeatureSignature(self.query_columns.specs, may_miss=can_miss)

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Query features [B, ...] -> vectors [B, D] whose inner product with an item's ranks it."""
        embeddings = self._run(self.query_tower, features, training=False)
        return self.task.affinity.retrieval_vectors(embeddings)

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Item features [m, ...] as the catalogue holds them -> vectors [m, D]."""
        embeddings = self._run(self.item_tower, features, training=False)
        return self.task.affinity.retrieval_vectors(embeddings, features[self.items.item_key])

    def _run(self, tower: tf.keras.Model, features: Features, training: bool) -> tf.Tensor:
        # A functional model warns of every column that it does not read.
        names: Any = input_names(tower)
        if tower is self.query_tower:
            names = self.query_columns.specs
        if names:
            missing = sorted(set(names) - set(features))
            if missing:
                raise bad_input(f"features of {tower.name}", f"columns {missing}", sorted(features))
            features = {name: features[name] for name in names}
        if tower is self.query_tower:
            features = self.query_columns.with_rank(features)
        if training and self.encode_chunk is not None:
            return encode_in_chunks(tower, features, self.encode_chunk)
        return tower(features, training=training)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        towers = serialize_towers({"query_tower": self.query_tower, "item_tower": self.item_tower})
        parts = {"items": self.items, "task": self.task}
        saved = {name: tf.keras.utils.serialize_keras_object(part) for name, part in parts.items()}
        own = {"item_key": self.item_key, "encode_chunk": self.encode_chunk, "name": self.name}
        return {**towers, **saved, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TwoTower:
        """Builds the model that `get_config` described."""
        return cls(**deserialize_towers(config))

    def get_build_config(self) -> dict[str, Any] | None:
        """Returns what the query tower was built for, where its inputs do not say it."""
        if input_names(self.query_tower) or self.query_columns.specs is None:
            return None
        return {"query_columns": self.query_columns.unnamed()}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Builds the query tower for what `get_build_config` returned."""
        specs = tf.keras.utils.deserialize_keras_object(config["query_columns"])
        self.query_columns.restore(self.query_tower, specs)
        self.built = True


class FirstStepReport(tf.keras.callbacks.Callback):
    """Logs one line after the first training step: what it was made of.

    `TwoTower.fit` adds it by itself; give it to `fit` of a model of your own that holds the task.

    Args:
        task: the task whose step is reported.
    """

    def __init__(self, task: Retrieval) -> None:
        super().__init__()
        self.task, self.is_due = task, False

    def on_train_begin(self, logs: Any = None) -> None:
        """Finds out whether the task is at the beginning of its life."""
        self.is_due = self.task.step.numpy() == 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Logs once, after the first step (or the first `steps_per_execution` of them)."""
        if self.is_due:
            logger.info("first step: %s", describe_last_step(self.task))
            # Of several steps at once the last is described, which may be a batch of one row.
            if not (logs or {}).get("loss") and _lacks_negatives(self.task):
                logger.warning(
                    "first step: not one row had a negative, so the loss is 0 and nothing is "
                    "learned; give larger batches, another sampler of negatives, or other masks"
                )
            self.is_due = False


def _lacks_negatives(task: Retrieval) -> bool:
    if any(sampler.starts_empty for sampler in task.negatives):
        return False
    return task.report.lacks_negatives(sum(s.name == InBatch.name for s in task.negatives))


def describe_last_step(task: Retrieval) -> str:
    """Says in one line what the last training step did."""
    policy = (
        f"{task.correction.policy} x {task.correction.strength:g}"
        if task.report.corrected.numpy()
        else "none"
    )
    return (
        f"{task.report.describe([source.name for source in task.negatives])}, "
        f"correction {policy}, "
        f"{task.affinity.similarity} / {float(task.affinity.temperature):g}"
    )
