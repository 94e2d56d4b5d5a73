"""The training step: one screen, one line per arrow.

sources propose -> pool -> scores -> masks -> logQ correction -> miners -> loss
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.core.types import CorrectionPolicy, Features, Similarity
from tfrs_negatives.step.batch import build_context, catalogues_of, check_id_kinds
from tfrs_negatives.step.logits import Scorer, loss_within_budget
from tfrs_negatives.step.losses import SampledSoftmax
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.merge import build_pools
from tfrs_negatives.step.metrics import labels_and_scores, update_factorized_metrics
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.records import (
    CandidatePool,
    FrequencyEstimator,
    Logits,
    LossFunction,
    Mask,
    Miner,
    NegativeSource,
    RememberingSource,
    SoftmaxLoss,
    StepContext,
)
from tfrs_negatives.step.report import StepReport
from tfrs_negatives.step.samplers import InBatch
from tfrs_negatives.step.score import Affinity, ItemBias

Reduction = Literal["mean", "sum"]


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Retrieval(tf.keras.layers.Layer, tfrs.tasks.Task):
    """A retrieval task in the place of `tfrs.tasks.Retrieval`, with negatives from anywhere.

    The positional arguments are those of `tfrs.tasks.Retrieval` 0.7.7; what is new is keyword-only.

    Args:
        loss: `Logits -> [B]`, such as `SampledSoftmax()` (default), or a `tf.keras.losses.Loss` on
            one-hot labels and logits [B, C], which then does its own reduction.
        metrics: factorized metrics of TFRS over the corpus; they hold data and are not saved.
        batch_metrics: Keras metrics of one-hot labels and logits [B, C].
        loss_metrics: Keras metrics of the loss.
        temperature: divides the similarity; None is 1.
        num_hard_negatives: short for `miners=[Hardest(n)]`; None or not positive keeps all.
        remove_accidental_hits: short for `masks=[AccidentalHits()]`.
        name: name of the layer.
        negatives: the sources; None is `[InBatch()]`.
        frequency: estimates the probability of each item in the stream of positives. Without one
            (and without `candidate_sampling_probability`) nothing is corrected.
        correct: which logits are corrected: "both", "negatives", or None.
        strength: share of the correction that is applied, in [0, 1].
        masks: which columns may count.
        miners: choose among them, in this order.
        similarity: "dot" or "cosine".
        learn_temperature: train the temperature, starting at `temperature`.
        item_bias: an `ItemBias` that is part of the score.
        logits_budget: bytes that the logits may take at once, 4 each. A loss that needs no single
            logit (no miner that compares columns, no batch metric, no `score_mask`, one vector per
            query, a softmax loss) is computed in blocks of columns; beyond the budget each block
            twice, with the same result. Such a loss has no second derivative.
        reduction: "sum" over the batch, as in TFRS, or "mean", which does not grow with it.
        seed: of every draw; two runs with one seed agree.

    Raises:
        InputError: if an argument is out of its range or two of them cannot work together.

    Example:
        >>> total, mean = Retrieval(), Retrieval(reduction="mean")
        >>> float(total(tf.eye(4), tf.eye(4)) / mean(tf.eye(4), tf.eye(4)))
        4.0

    Relations: `Retrieval()` equals `tfrs.tasks.Retrieval()` in loss, gradient and batch metrics,
        except that a probability below 1e-6 is not raised to it, and that `score_mask` never hides
        a row's own positive.
    """

    def __init__(
        self,
        loss: LossFunction | tf.keras.losses.Loss | None = None,
        metrics: Any = None,
        batch_metrics: Sequence[tf.keras.metrics.Metric] | None = None,
        loss_metrics: Sequence[tf.keras.metrics.Metric] | None = None,
        temperature: float | None = None,
        num_hard_negatives: int | None = None,
        remove_accidental_hits: bool = False,
        name: str | None = None,
        *,
        negatives: Sequence[NegativeSource] | None = None,
        frequency: FrequencyEstimator | None = None,
        correct: CorrectionPolicy | None = "both",
        strength: float = 1.0,
        masks: Sequence[Mask] = (),
        miners: Sequence[Miner] = (),
        similarity: Similarity = "dot",
        learn_temperature: bool = False,
        item_bias: ItemBias | None = None,
        logits_budget: int = 2**27,
        reduction: Reduction = "sum",
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **{"dtype": "float32", **kwargs})
        self.loss_function = SampledSoftmax() if loss is None else loss
        self.factorized_metrics = metrics
        self.batch_metrics, self.loss_metrics = list(batch_metrics or []), list(loss_metrics or [])
        self.negatives = [InBatch()] if negatives is None else list(negatives)
        self.frequency, self.correct, self.strength = frequency, correct, strength
        self.masks = [*masks, *([AccidentalHits()] if remove_accidental_hits else [])]
        k = num_hard_negatives or 0
        self.miners = [*miners, *([Hardest(k)] if k > 0 else [])]
        self.affinity = Affinity(
            similarity,
            temperature=1.0 if temperature is None else temperature,
            learn_temperature=learn_temperature,
            item_bias=item_bias,
        )
        self.reduction, self.seed, self.logits_budget = reduction, seed, logits_budget
        self._check_arguments()
        self._add_state()

    @property
    def factorized_metrics(self) -> list[Any]:
        """The metrics over the whole corpus."""
        return self._factorized_metrics

    @factorized_metrics.setter
    def factorized_metrics(self, metrics: Any) -> None:
        several = isinstance(metrics, Sequence)
        self._factorized_metrics = list(metrics) if several else [metrics] if metrics else []

    def _check_arguments(self) -> None:
        if not self.negatives:
            raise bad_input("negatives", "at least one source", [])
        policies, reductions = list(get_args(CorrectionPolicy)), list(get_args(Reduction))
        if self.correct not in (*policies, None):
            raise bad_input("correct", f"one of {policies} or None", self.correct)
        if not 0 <= self.strength <= 1:
            raise bad_input("strength", "a number in [0, 1]", self.strength)
        if self.logits_budget < 4:
            raise bad_input("logits_budget", "bytes of at least one logit", self.logits_budget)
        if self.reduction not in reductions:
            raise bad_input("reduction", f"one of {reductions}", repr(self.reduction))
        lost = [s.name for s in self.negatives if s.needs_frequency]
        if len(self.negatives) > 1 and lost and self.frequency is None and self.correct is not None:
            raise bad_input("frequency", f"an estimator, for {lost} beside other sources", None)
        if self.factorized_metrics and (
            self.affinity.similarity == "cosine" or self.affinity.item_bias is not None
        ):
            rule = "no factorized metrics, which rank by the bare dot product: use TopKEvaluation"
            raise bad_input("metrics", rule, "metrics beside a cosine similarity or an item bias")

    def _add_state(self) -> None:
        zeros = tf.keras.initializers.Zeros()
        self.step = self.add_weight("task_step", [], tf.int64, zeros, trainable=False)
        parts = {"has_masks": bool(self.masks), "has_miners": bool(self.miners)}
        self.report = StepReport(len(self.negatives), **parts)

    def build(self, input_shape: Any) -> None:
        """Makes the state of the sources, for embeddings of the width of the queries."""
        for source in self.negatives:
            if isinstance(source, tf.keras.layers.Layer):
                source.build(input_shape)
        super().build(input_shape)

    def __call__(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Runs `call`, with all its updates also in a graph of TensorFlow 1."""
        call = super().__call__
        # Outside of a function a graph runs only what the loss is computed from.
        by_itself = tf.executing_eagerly() or tf.inside_function()
        return (call if by_itself else tf.function(call))(*args, **kwargs)

    def call(
        self,
        query_embeddings: tf.Tensor,
        candidate_embeddings: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
        candidate_sampling_probability: tf.Tensor | None = None,
        candidate_ids: tf.Tensor | None = None,
        compute_metrics: bool = True,
        compute_batch_metrics: bool = True,
        score_mask: tf.Tensor | None = None,
        *,
        features: Features | None = None,
        encode_items: Callable[[Features], tf.Tensor] | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Computes the loss of one batch, and updates the state and the metrics.

        Args:
            query_embeddings: [B, D], or [B, H, D] for several vectors per query; the best one
                counts.
            candidate_embeddings: [n, D], n >= B; row i < B is the positive of query i, rows from B
                on are more negatives of the same stream.
            sample_weight: [B], the weight of each row's loss.
            candidate_sampling_probability: [n] probability of each candidate in one draw; takes the
                place of `frequency` where the batch is the only source.
            candidate_ids: [n] integers or strings. Masks and frequencies need them.
            compute_metrics: whether to update the factorized metrics.
            compute_batch_metrics: whether to update the batch metrics.
            score_mask: [B, n] bool, False for a candidate that is no negative of a row.
            features: the raw batch, for sources that read a column of it.
            encode_items: item features -> [m, D], for sources that propose other items.
            training: whether this is a training step. Only then do frequencies and draws move on; a
                composition that has none may leave it out.

        Returns:
            The loss, a scalar.

        Raises:
            InputError: if an argument that this composition needs is missing or has the wrong
                shape.
        """
        self._check_call(score_mask, candidate_ids, training)
        # Data of unknown length end inside a step: without a batch nothing may count or draw. Where
        # it waits for the embeddings, TensorFlow cannot fuse the last layers of the towers.
        given = candidate_embeddings if candidate_ids is None else candidate_ids
        with tf.control_dependencies([given] if training else []):
            step = self.step + int(bool(training))
        context = build_context(
            query_embeddings,
            candidate_embeddings,
            candidate_ids=candidate_ids,
            features=features or {},
            encode_items=encode_items,
            log_probability=self.frequency.log_probability if self.frequency else _no_frequency,
            step=step,
            seed=self.seed,
        )
        if training:
            self._advance(context)
        pools = self._pools(context, candidate_sampling_probability)
        choosers = self.miners[len(self._scorer.filters) :]
        single = bool(choosers or (compute_batch_metrics and self.batch_metrics))
        single |= score_mask is not None or query_embeddings.shape.rank == 3
        if single or not isinstance(self.loss_function, SoftmaxLoss):
            logits = self._scorer.logits(pools, context, score_mask=score_mask)
            num_kept = tf.reduce_sum(tf.cast(logits.keep, tf.float32))
            for miner in choosers:
                logits = miner.mine(logits, context)
            some = tf.reduce_any(logits.keep, axis=1)
            loss = self._loss(logits, pools, context, sample_weight)
            if compute_batch_metrics and self.batch_metrics:
                labels, scores = self._labels_and_scores(logits, pools)
                for metric in self.batch_metrics:
                    metric.update_state(labels, scores, sample_weight=sample_weight)
        else:
            rows, some, num_kept = loss_within_budget(
                self.loss_function, self._scorer, pools, context, byte_budget=self.logits_budget
            )
            loss = self._reduce(rows, context, sample_weight)
        if training:
            self.report.record(pools, context, num_kept=num_kept)
            self.report.record_mined(some)
            self._remember(context)
        for metric in self.loss_metrics:
            metric.update_state(loss)
        if compute_metrics and query_embeddings.shape.rank == 2:
            update_factorized_metrics(
                self.factorized_metrics, context, candidate_ids, sample_weight
            )
        return loss

    @property
    def _scorer(self) -> Scorer:
        # Behind a miner that has chosen columns, a filter is one of several choosers.
        filters = itertools.takewhile(lambda m: getattr(m, "is_filter", False), self.miners)
        return Scorer(self.affinity, self.masks, self.correct, self.strength, list(filters))

    def _check_call(
        self, score_mask: tf.Tensor | None, candidate_ids: tf.Tensor | None, training: bool | None
    ) -> None:
        names = [source.name for source in self.negatives]
        if score_mask is not None and names[0] != InBatch.name:
            raise bad_input("score_mask", "the batch as the first source", names[0])
        if training is None and (self.frequency is not None or names != [InBatch.name]):
            rule = "True or False, because frequencies and draws move on in training only"
            raise bad_input("training", rule, None)
        if candidate_ids is None and (self.masks or self.frequency is not None):
            raise bad_input("candidate_ids", "ids, because masks or a frequency need them", None)
        if candidate_ids is not None:
            check_id_kinds(catalogues_of(self), candidate_ids)

    @property
    def _knows_counts(self) -> bool:
        """Whether every source can tell its expected counts, and somebody wants them."""
        known = self.frequency is not None or not any(s.needs_frequency for s in self.negatives)
        return known and self.correct is not None

    def _advance(self, context: StepContext) -> None:
        self.step.assign(context.step)
        if self.frequency is not None:
            with tf.control_dependencies([context.step]):
                self.frequency.update(context.item_ids)

    def _remember(self, context: StepContext) -> None:
        with tf.control_dependencies([context.step]):
            for source in self.negatives:
                if isinstance(source, RememberingSource):
                    source.remember(context)

    def _pools(self, context: StepContext, probability: tf.Tensor | None) -> list[CandidatePool]:
        """Builds the pools, with log counts from the sources or from the caller's probabilities."""
        if probability is None or self.correct is None:
            return build_pools(self.negatives, context, corrected=self._knows_counts)
        names = [source.name for source in self.negatives]
        if names != [InBatch.name]:
            rule = "none beside other sources than the batch: use `frequency`"
            raise bad_input("candidate_sampling_probability", rule, f"one beside {names}")
        (pool,) = build_pools(self.negatives, context, corrected=False)
        own = tf.math.log(tf.cast(probability, tf.float32))
        # A probability differs from a count by a factor of the batch, which cancels in the softmax
        # of policy "both" (TFRS leaves it out); "negatives" needs it to estimate the denominator.
        if self.correct == "negatives":
            own += tf.math.log(tf.cast(tf.shape(pool.ids)[0], tf.float32))
        positives = own[: tf.shape(context.query_embeddings)[0]]
        counts = all_rows(own)
        return [pool._replace(log_expected_count=counts, positive_log_expected_count=positives)]

    def _loss(
        self,
        logits: Logits,
        pools: Sequence[CandidatePool],
        context: StepContext,
        sample_weight: tf.Tensor | None,
    ) -> tf.Tensor:
        if isinstance(self.loss_function, tf.keras.losses.Loss):
            labels, scores = self._labels_and_scores(logits, pools)
            return self.loss_function(labels, scores, sample_weight=sample_weight)
        return self._reduce(self.loss_function(logits), context, sample_weight)

    def _reduce(
        self, rows: tf.Tensor, context: StepContext, sample_weight: tf.Tensor | None
    ) -> tf.Tensor:
        """Returns this replica's part of the loss: their sum is that of the global batch."""
        if sample_weight is not None:
            rows *= tf.cast(tf.reshape(sample_weight, [-1]), rows.dtype)
        total = tf.reduce_sum(rows)
        if self.reduction == "sum":
            return total
        return total / tf.cast(context.num_queries, total.dtype)

    def _labels_and_scores(
        self, logits: Logits, pools: Sequence[CandidatePool]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        batch_first = self.negatives[0].name == InBatch.name
        mined = len(self.miners) > len(self._scorer.filters)
        return labels_and_scores(logits, pools, batch_first=batch_first, mined=mined)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, without the factorized metrics."""
        parts = {
            "loss": self.loss_function,
            "batch_metrics": self.batch_metrics,
            "loss_metrics": self.loss_metrics,
            "negatives": self.negatives,
            "frequency": self.frequency,
            "masks": self.masks,
            "miners": self.miners,
            "item_bias": self.affinity.item_bias,
        }
        return {
            **super().get_config(),
            **{n: tf.keras.utils.serialize_keras_object(part) for n, part in parts.items()},
            "temperature": self.affinity.initial_temperature,
            "learn_temperature": self.affinity.learn_temperature,
            "similarity": self.affinity.similarity,
            "correct": self.correct,
            "strength": self.strength,
            "logits_budget": self.logits_budget,
            "reduction": self.reduction,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Retrieval:
        """Builds the task that `get_config` described."""
        return cls(**tf.keras.utils.deserialize_keras_object(config))


def _no_frequency(_ids: tf.Tensor) -> tf.Tensor:
    raise bad_input("frequency", "an estimator, because a source needs it", None)
