"""Queries times pool to scores: similarity, temperature, item bias."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import Part
from tfrs_negatives.core.types import Similarity
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.ids import check_same_kind, id_kind, to_keys
from tfrs_negatives.step.frequency import log_shares
from tfrs_negatives.step.records import Batch, Candidates, Pool

# A learned temperature stays where float32 logits of a cosine still resolve.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 1.0


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class ItemBias(Part, tf.keras.layers.Layer):
    """One learned number per item, added to its logit, started at the log of its share.

    On a sphere every item vector has the same length, so popularity has nowhere else to live. An
    item without any event starts as if it had half of one; ids outside the catalogue share one
    entry that starts there too.

    Args:
        ids: [N] item ids, integers or strings.
        counts: [N] how many training events each has.

    Raises:
        InputError: if lengths differ, a count is negative or all are zero.

    Example:
        >>> bias = ItemBias(["a", "b"], [3, 1])
        >>> np.exp(bias(tf.constant(["b", "a"]))).round(2).tolist()
        [0.25, 0.75]
    """

    def __init__(self, ids: Any, counts: Any, **kwargs: Any) -> None:
        super().__init__(**{"name": "item_bias", "dtype": "float32", **kwargs})
        self.items = ItemCatalogue(ids)
        self.counts = np.asarray(counts, np.float64)
        start = log_shares(self.items, self.counts)
        self.bias = self.add_weight(
            "bias", [len(start)], tf.float32, tf.keras.initializers.Constant(start)
        )

    def call(self, ids: tf.Tensor) -> tf.Tensor:
        """Returns [m] float32, in the unit of logits (nats), for ids or keys [m]."""
        rows = self.items.rows_of_keys(to_keys(ids), unknown=len(self.items))
        return tf.gather(self.bias, rows)


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Affinity(Part, tf.keras.layers.Layer):
    """How well each candidate fits each query.

        score(i, j) = <u_i, v_j> / temperature + bias_j        dot
        score(i, j) = cos(u_i, v_j) / temperature + bias_j     cosine
        score(i, j) = -|u_i - v_j|^2 / temperature + bias_j    euclidean

    A query of several vectors takes the best of them (maxsim). On unit vectors "euclidean" is
    "cosine" at half the temperature, less 2 / temperature.

    Args:
        similarity: "dot", "cosine" or "euclidean", the negative squared distance.
        temperature: divides the similarity.
        learn_temperature: train it, as its logarithm, within [0.01, 1].
        item_bias: an `ItemBias`, or None.

    Raises:
        InputError: for an unknown similarity or a temperature that is not positive, or not within
            its range where it is learned.

    Example:
        >>> Affinity("cosine", temperature=0.5).retrieval_vectors(tf.constant([[3.0, 4.0]])).numpy()
        array([[0.6, 0.8]], dtype=float32)
        >>> affinity, ids = Affinity("euclidean"), tf.constant([1])
        >>> affinity.retrieval_vectors(tf.constant([[3.0, 4.0]])).numpy()
        array([[6., 8., 1.]], dtype=float32)
        >>> affinity.retrieval_vectors(tf.constant([[3.0, 4.0]]), ids).numpy()
        array([[  3.,   4., -25.]], dtype=float32)
    """

    def __init__(
        self,
        similarity: Similarity = "dot",
        *,
        temperature: float = 1.0,
        learn_temperature: bool = False,
        item_bias: ItemBias | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "affinity", "dtype": "float32", **kwargs})
        if similarity not in get_args(Similarity):
            raise bad_input("similarity", f"one of {list(get_args(Similarity))}", repr(similarity))
        if not temperature > 0:
            raise bad_input("temperature", "a positive number", temperature)
        if learn_temperature and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            limits = f"a start in [{MIN_TEMPERATURE}, {MAX_TEMPERATURE}] where it is learned"
            raise bad_input("temperature", limits, temperature)
        self.similarity, self.item_bias = similarity, item_bias
        self.initial_temperature, self.learn_temperature = temperature, learn_temperature
        self.log_temperature = None
        if learn_temperature:
            start = tf.keras.initializers.Constant(np.log(temperature))
            # Bounded after each step, not where it is used: there it would have no way back.
            self.log_temperature = self.add_weight(
                "log_temperature", [], tf.float32, start, constraint=_within_bounds
            )

    @property
    def temperature(self) -> tf.Tensor | float:
        """The temperature in force."""
        if self.log_temperature is None:
            return self.initial_temperature
        return tf.exp(self.log_temperature)

    def scores(self, pool: Pool | Candidates, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores every candidate for every query, and each query's own positive apart.

        Args:
            pool: C candidates, shared or of each row.
            batch: the queries [B, D] or [B, H, D] and their positives.

        Returns:
            float32 scores: of the positives [B], of the candidates [B, C].
        """
        queries, (vectors, bias) = self.queries(batch), self.linear(pool)
        heads, several = ("h", "qhc") if batch.several_vectors else ("", "qc")
        of_row = "q" if pool.per_row else ""
        scores = tf.einsum(f"q{heads}d,{of_row}cd->{several}", queries, vectors)
        if batch.several_vectors:
            scores = tf.reduce_max(scores, axis=1)
        return self.positives(queries, batch), scores if self.item_bias is None else scores + bias

    def queries(self, batch: Batch) -> tf.Tensor:
        """Returns the queries, [B, W] or [B, H, W], divided by the temperature.

        W is D, and D + 2 for "euclidean": <(2u, 1, -|u|^2), (v, -|v|^2, 1)> = -|u - v|^2.
        """
        # Dividing [B, W] here spares a pass over [B, C] there.
        queries = self._on_sphere(batch.queries)
        if self.similarity == "euclidean":
            squares = _squared_length(queries)
            queries = tf.concat([2 * queries, tf.ones_like(squares), -squares], axis=-1)
        bare = self.log_temperature is None and self.initial_temperature == 1
        return queries if bare else queries / self.temperature

    def linear(self, pool: Pool | Candidates) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns vectors [..., C, W] and a bias [..., C]: score = <query, vector> + bias."""
        vectors = self._beside_queries(pool.vectors)
        if self.item_bias is None:
            return vectors, tf.zeros(tf.shape(pool.ids))
        return vectors, self.item_bias(pool.ids)

    def positives(self, queries: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns the score of each row's positive, [B] float32, for what `queries` returned."""
        positives = self._beside_queries(batch.positives)
        if batch.several_vectors:
            own = tf.reduce_max(tf.einsum("qhd,qd->qh", queries, positives), axis=-1)
        else:
            own = tf.reduce_sum(queries * positives, axis=-1)
        return own if self.item_bias is None else own + self.item_bias(batch.positive_ids)

    def retrieval_vectors(self, embeddings: tf.Tensor, ids: tf.Tensor | None = None) -> tf.Tensor:
        """Vectors whose inner product ranks as the score does, for evaluation and the index.

        With an item bias both sides are one dimension wider: temperature * bias on the side of the
        items, 1 on the side of the queries, so that <query, item> = temperature * score.

        So are they for "euclidean", with or without a bias: (2u, 1) for a query and
        (v, temperature * bias - |v|^2) for an item, so that <query, item> = temperature * score
        + |u|^2. What is added is the same for all items: it changes no ranking, and its lack would
        leave the scores of near neighbours no digits.

        Args:
            embeddings: [m, D] of a tower.
            ids: [m] ids of the items; None for queries.

        Returns:
            [m, D] or [m, D + 1] float32.
        """
        vectors, is_euclidean = self._on_sphere(embeddings), self.similarity == "euclidean"
        if self.item_bias is None and not is_euclidean:
            return vectors
        if ids is None:
            scale = 2.0 if is_euclidean else 1.0
            return tf.concat([scale * vectors, tf.ones_like(vectors[..., :1])], axis=-1)
        extra = -_squared_length(vectors) if is_euclidean else tf.zeros_like(vectors[..., :1])
        if self.item_bias is not None:
            kind = self.item_bias.items.id_kind
            check_same_kind("ids", id_kind(ids), kind, other_name="the item bias")
            extra += (self.temperature * self.item_bias(ids))[:, None]
        return tf.concat([vectors, extra], axis=-1)

    def _beside_queries(self, embeddings: tf.Tensor) -> tf.Tensor:
        vectors = self._on_sphere(embeddings)
        if self.similarity != "euclidean":
            return vectors
        squares = _squared_length(vectors)
        return tf.concat([vectors, -squares, tf.ones_like(squares)], axis=-1)

    def _on_sphere(self, embeddings: tf.Tensor) -> tf.Tensor:
        # In float32 whatever the towers answer in: a sum of squares overflows float16 at 256.
        embeddings = tf.cast(embeddings, tf.float32)
        if self.similarity != "cosine":
            return embeddings
        return tf.math.l2_normalize(embeddings, axis=-1)


def _squared_length(vectors: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(vectors), axis=-1, keepdims=True)


def _within_bounds(log_temperature: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(log_temperature, np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE))
