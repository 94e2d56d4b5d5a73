"""The training step: one screen, one line per arrow.

samplers propose -> pool -> scores -> masks -> logQ correction -> miners -> loss
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import tensorflow as tf
import tensorflow_recommenders as tfrs

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.replicas import all_rows
from tfrs_negatives.core.types import CorrectionPolicy, Features, Similarity
from tfrs_negatives.step.batch import catalogues_of, check_id_kinds, make_batch
from tfrs_negatives.step.correction import Correction
from tfrs_negatives.step.losses import SampledSoftmax
from tfrs_negatives.step.masks.apply import GivenMask
from tfrs_negatives.step.masks.keep import AccidentalHits
from tfrs_negatives.step.merge import sample_pools
from tfrs_negatives.step.metrics import KerasLoss, one_hot_labels, update_factorized_metrics
from tfrs_negatives.step.miners import Hardest
from tfrs_negatives.step.records import Batch, Frequency, Loss, Mask, Miner, Pool, Sampler
from tfrs_negatives.step.report import StepReport
from tfrs_negatives.step.samplers import InBatch
from tfrs_negatives.step.score import Affinity, ItemBias
from tfrs_negatives.step.scorer import ScoredPools, Scorer

# The draws of a miner differ from those of the samplers, whose numbers are small.
FIRST_MINER = 2**20

Reduction = Literal["mean", "sum"]


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Retrieval(Part, tf.keras.layers.Layer, tfrs.tasks.Task):
    """A retrieval task in the place of `tfrs.tasks.Retrieval`, with negatives from anywhere.

    The positional arguments are those of `tfrs.tasks.Retrieval` 0.7.7; what is new is keyword-only.

    Args:
        loss: a `Loss`, such as `SampledSoftmax()` (default), or a `tf.keras.losses.Loss` on one-hot
            labels and logits [B, C], which then does its own reduction.
        metrics: factorized metrics of TFRS over the corpus; they hold data and are not saved.
        batch_metrics: Keras metrics of one-hot labels and logits [B, C].
        loss_metrics: Keras metrics of the loss.
        temperature: divides the similarity; None is 1.
        num_hard_negatives: short for `miners=[Hardest(n)]`; None or not positive keeps all.
        remove_accidental_hits: short for `masks=[AccidentalHits()]`.
        name: name of the layer.
        negatives: the samplers; None is `[InBatch()]`.
        frequency: estimates the probability of each item in the stream of positives. Without one
            (and without `candidate_sampling_probability`) nothing is corrected.
        correct: which logits are corrected: "both", "negatives", or None.
        strength: share of the correction that is applied, in [0, 1].
        masks: which candidates may count.
        miners: choose among them, in this order.
        similarity: "dot", "cosine" or "euclidean", the negative squared distance.
        learn_temperature: train the temperature, starting at `temperature`.
        item_bias: an `ItemBias` that is part of the score.
        logits_budget: bytes that the logits may take at once, 4 each. A loss that needs no single
            logit (no miner that compares candidates, no batch metric, no `score_mask`, one vector
            per query, a loss that folds) is computed in blocks of candidates; beyond the budget
            each block twice, with the same result. Such a loss has no second derivative.
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
        loss: Loss | tf.keras.losses.Loss | None = None,
        metrics: Any = None,
        batch_metrics: Sequence[tf.keras.metrics.Metric] | None = None,
        loss_metrics: Sequence[tf.keras.metrics.Metric] | None = None,
        temperature: float | None = None,
        num_hard_negatives: int | None = None,
        remove_accidental_hits: bool = False,
        name: str | None = None,
        *,
        negatives: Sequence[Sampler] | None = None,
        frequency: Frequency | None = None,
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
        is_keras = isinstance(loss, tf.keras.losses.Loss)
        self.loss_function = KerasLoss(loss) if is_keras else loss or SampledSoftmax()
        # They hold data, and are not saved.
        self.factorized_metrics, self._arguments["metrics"] = metrics, None
        self.batch_metrics, self.loss_metrics = list(batch_metrics or []), list(loss_metrics or [])
        self.negatives = [InBatch()] if negatives is None else list(negatives)
        self.frequency, self.correction = frequency, Correction(correct, strength)
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
            raise bad_input("negatives", "at least one sampler", [])
        families = {"negatives": Sampler, "masks": Mask, "miners": Miner, "frequency": Frequency}
        for name, family in {**families, "loss_function": Loss}.items():
            for part in tf.nest.flatten(getattr(self, name)):
                if part is not None and not isinstance(part, family):
                    rule = f"a subclass of `records.{family.__name__}`"
                    raise bad_input(name.removesuffix("_function"), rule, repr(part))
        policies, reductions = list(get_args(CorrectionPolicy)), list(get_args(Reduction))
        if self.correction.policy not in (*policies, None):
            raise bad_input("correct", f"one of {policies} or None", self.correction.policy)
        if not 0 <= self.correction.strength <= 1:
            raise bad_input("strength", "a number in [0, 1]", self.correction.strength)
        if self.logits_budget < 4:
            raise bad_input("logits_budget", "bytes of at least one logit", self.logits_budget)
        if self.reduction not in reductions:
            raise bad_input("reduction", f"one of {reductions}", repr(self.reduction))
        lost = [s.name for s in self.negatives if s.needs_frequency]
        counted = self.frequency is not None or self.correction.policy is None
        if len(self.negatives) > 1 and lost and not counted:
            raise bad_input("frequency", f"an estimator, for {lost} beside other samplers", None)
        if self.factorized_metrics and (
            self.affinity.similarity != "dot" or self.affinity.item_bias is not None
        ):
            rule = "no factorized metrics, which rank by the bare dot product: use TopKEvaluation"
            raise bad_input(
                "metrics", rule, f"metrics beside {self.affinity.similarity!r}, or an item bias"
            )

    def _add_state(self) -> None:
        zeros = tf.keras.initializers.Zeros()
        self.step = self.add_weight("task_step", [], tf.int64, zeros, trainable=False)
        parts = {"has_masks": bool(self.masks), "has_miners": bool(self.miners)}
        self.report = StepReport(len(self.negatives), **parts)

    def build(self, input_shape: Any) -> None:
        """Makes the state of the parts, for embeddings of the width of the queries."""
        for part in self._parts:
            if isinstance(part, tf.keras.layers.Layer):
                part.build(input_shape)
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
        query_of_row: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Computes the loss of one batch, and updates the state and the metrics.

        Args:
            query_embeddings: [B, D], or [B, H, D] for several vectors per query; the best one
                counts. [Q, ...] beside a `query_of_row`.
            candidate_embeddings: [n, D], n >= B; row i < B is the positive of query i, rows from B
                on are more negatives of the same stream.
            sample_weight: [B], the weight of each row's loss.
            candidate_sampling_probability: [n] probability of each candidate in one draw; takes the
                place of `frequency` where the batch is the only sampler.
            candidate_ids: [n] integers or strings. Masks and frequencies need them.
            compute_metrics: whether to update the factorized metrics.
            compute_batch_metrics: whether to update the batch metrics.
            score_mask: [B, n] bool, False for a candidate that is no negative of a row.
            features: the raw batch, for parts that read a column of it.
            encode_items: item features -> [m, D], for samplers that propose other items.
            query_of_row: [B] integers below Q, where a query has several positives: whose positive
                each of the first B candidates is, each a row with a loss of its own. None: row i is
                that of query i. The positives that a query has in the batch are no negatives of it.
            training: whether this is a training step. Only then do frequencies and draws move on; a
                composition that has none may leave it out.

        Returns:
            The loss, a scalar.

        Raises:
            InputError: if an argument that this composition needs is missing or has the wrong
                shape.
        """
        self._check_call(score_mask, candidate_ids, training)
        self._check_rows(query_of_row)
        batch = make_batch(
            query_embeddings,
            candidate_embeddings,
            candidate_ids=candidate_ids,
            features=features or {},
            encode_items=encode_items,
            sample_weight=sample_weight,
            frequency=self.frequency,
            step=self._next_step(candidate_embeddings, candidate_ids, training),
            seed=self.seed,
            query_of_row=query_of_row,
        )
        batch = batch._replace(score=lambda given: self.affinity.scores(given, batch))
        if training:
            self._count(batch)
        pools = self._sample(batch, candidate_sampling_probability)
        scored = self._score(pools, batch, score_mask, compute_batch_metrics)
        for number, miner in enumerate(self.miners, FIRST_MINER):
            scored = scored.mined(miner, batch.for_part(number))
        loss = self._reduce(scored.losses(self.loss_function), batch)
        if training:
            self._update_parts(batch, pools, scored)
        if compute_batch_metrics and self.batch_metrics:
            self._update_batch_metrics(scored, sample_weight)
        for metric in self.loss_metrics:
            metric.update_state(loss)
        if compute_metrics and not batch.several_vectors:
            update_factorized_metrics(self.factorized_metrics, batch, candidate_ids, sample_weight)
        return loss

    def _next_step(
        self, candidates: tf.Tensor, ids: tf.Tensor | None, training: bool | None
    ) -> tf.Tensor:
        # Data of unknown length end inside a step: without a batch nothing may count or draw. Where
        # it waits for the embeddings, TensorFlow cannot fuse the last layers of the towers.
        given = candidates if ids is None else ids
        with tf.control_dependencies([given] if training else []):
            return self.step + int(bool(training))

    def _check_call(
        self, score_mask: tf.Tensor | None, candidate_ids: tf.Tensor | None, training: bool | None
    ) -> None:
        names = [sampler.name for sampler in self.negatives]
        if score_mask is not None and names[0] != InBatch.name:
            raise bad_input("score_mask", "the batch as the first sampler", names[0])
        if training is None and (self.frequency is not None or names != [InBatch.name]):
            rule = "True or False, because frequencies and draws move on in training only"
            raise bad_input("training", rule, None)
        if candidate_ids is None and (self.masks or self.frequency is not None):
            raise bad_input("candidate_ids", "ids, because masks or a frequency need them", None)
        if candidate_ids is not None:
            check_id_kinds(catalogues_of(self), candidate_ids)

    def _check_rows(self, query_of_row: tf.Tensor | None) -> None:
        one_hot = isinstance(self.loss_function, KerasLoss) or self.batch_metrics
        if query_of_row is not None and one_hot:
            rule = "None beside a Keras loss or batch metrics, whose labels have one positive a row"
            raise bad_input("query_of_row", rule, "several positives of a query")

    def _count(self, batch: Batch) -> None:
        self.step.assign(batch.step)
        if self.frequency is not None:
            with tf.control_dependencies([batch.step]):
                self.frequency.update(batch.item_ids)

    def _sample(self, batch: Batch, probability: tf.Tensor | None) -> list[Pool]:
        """Builds the pools, with log counts of the samplers or the caller's probabilities."""
        if probability is None or self.correction.policy is None:
            missing = self.frequency is None and any(s.needs_frequency for s in self.negatives)
            counted = not missing and self.correction.policy is not None
            return sample_pools(self.negatives, batch, counted=counted)
        names = [sampler.name for sampler in self.negatives]
        if names != [InBatch.name]:
            rule = "none beside other samplers than the batch: use `frequency`"
            raise bad_input("candidate_sampling_probability", rule, f"one beside {names}")
        (pool,) = sample_pools(self.negatives, batch, counted=False)
        own = tf.math.log(tf.cast(probability, tf.float32))
        # A probability differs from a count by a factor of the batch, which cancels in the softmax
        # of policy "both" (TFRS leaves it out); "negatives" needs it to estimate the denominator.
        if self.correction.policy == "negatives":
            own += tf.math.log(tf.cast(tf.shape(pool.ids)[0], tf.float32))
        positives = own[: tf.shape(batch.queries)[0]]
        return [pool._replace(log_count=all_rows(own), positive_log_count=positives)]

    def _score(
        self,
        pools: Sequence[Pool],
        batch: Batch,
        score_mask: tf.Tensor | None,
        compute_batch_metrics: bool,
    ) -> ScoredPools:
        masks = [*self.masks, *([] if score_mask is None else [GivenMask(score_mask)])]
        scorer = Scorer(self.affinity, masks, self.correction, self.logits_budget)
        at_once = bool(compute_batch_metrics and self.batch_metrics)
        at_once |= any(part.reads_scores for part in self._parts)
        return ScoredPools(scorer, pools, batch, at_once=at_once)

    @property
    def _parts(self) -> list[Any]:
        return [*self.negatives, *self.masks, *self.miners, self.loss_function]

    def _update_parts(self, batch: Batch, pools: Sequence[Pool], scored: ScoredPools) -> None:
        some, num_kept = scored.kept()
        self.report.record(pools, batch, some=some, num_kept=num_kept, by_query=scored.by_query)
        with tf.control_dependencies([batch.step]):
            for number, part in enumerate(self._parts):
                part.update(batch.for_part(number), scored.known())

    def _update_batch_metrics(self, scored: ScoredPools, sample_weight: tf.Tensor | None) -> None:
        labels, logits = one_hot_labels(scored.all())
        for metric in self.batch_metrics:
            metric.update_state(labels, logits, sample_weight=sample_weight)

    def _reduce(self, losses: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns this replica's part of the loss: their sum is that of the global batch."""
        if isinstance(self.loss_function, KerasLoss):
            return losses
        if not losses.shape.is_compatible_with(batch.positive_ids.shape):
            raise bad_input("loss", "one number per row, shape [B]", f"shape {losses.shape}")
        if batch.sample_weight is not None:
            losses *= tf.cast(tf.reshape(batch.sample_weight, [-1]), losses.dtype)
        total = tf.reduce_sum(losses)
        if self.reduction == "sum":
            return total
        return total / tf.cast(batch.num_queries, total.dtype)
