"""Negatives that a small model of their own learns to choose, from what it is rewarded for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import all_rows, row_draws
from tfrs_negatives.core.types import EMPTY_ID
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History, keys_of_rows
from tfrs_negatives.step.draws import drawn_by_softmax
from tfrs_negatives.step.masks.apply import kept_by
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Batch, Candidates, Mask, Sampler, Scored
from tfrs_negatives.step.samplers.of_rows import (
    candidates_of_rows,
    places,
    probes_of,
)

logger = logging.getLogger("tfrs_negatives")

# The draws of a step that have nothing to do with each other.
CANDIDATES, EXPOSED, CHOICE = 1, 2, 3


class _Drawn(NamedTuple):
    """What a step chose from: n candidates of each of B rows.

    Attributes:
        queries: [B] int64, the row of each query in its table.
        keys: [B, n] int64.
        rows: [B, n] int64, in the catalogue.
        exposed: [B, n] float32, 1 for an item that was shown and not chosen.
        policy: [B, n] float32, the probability of each; 0 for one that does not count.
        chosen: [B, 1] int32.
        some: [B] bool, whether any counts.
    """

    queries: tf.Tensor
    keys: tf.Tensor
    rows: tf.Tensor
    exposed: tf.Tensor
    policy: tf.Tensor
    chosen: tf.Tensor
    some: tf.Tensor


@part("sampler")
class Reinforced(Sampler, tf.keras.layers.Layer):
    """One of n random items of each row, chosen by a policy that is learned by reinforcement.

    The policy has a vector of its own for each query and each item; the model that is trained gives
    a reward for what it chose, the higher the harder, and one more for an item that was shown to
    the query and not chosen::

        pi(l) = softmax_l <a_query, b_l>                         over the n items of the row
        r1(l) = -sigmoid(-s_l),   r2(l) = 1 if l was exposed else 0
        advantage = (r1 - mean r1) + alpha (r2 - mean r2)
        gradient of the policy's logits:  -advantage (1[k = l] - pi(k))

    The means are moving averages over batches, from the first batch on. The vectors move by
    Adagrad, in which each row of the batch is an update of its own. Of the n items one is an
    exposed one where the row has any, the others are drawn uniformly, and those among them that are
    exposed, or the row's positive, do not count.

    The vectors are weights, with their squares 8 (Q + 1 + N) `width` bytes: saved, resumed, and the
    same on every replica; the optimizer of the model does not touch them. Queries that the log does
    not have share one vector.

    Args:
        items: the catalogue.
        log: the training part, whose Q queries have vectors.
        exposed: the batch column of items that were shown and not chosen, [B, m] ids filled up with
            -1, "" or `EMPTY_ID`, or a `tf.RaggedTensor`; items outside the catalogue do not count.
            Without it the rewards are the adversarial ones alone.
        num_candidates: from how many items a row's one is chosen, n.
        alpha: what the reward for an exposed item counts for.
        width: of the policy's vectors.
        learning_rate: of the policy.
        decay: of the moving averages.
        masks: which items do not count, by their ids: with `KnownPositives` the policy never learns
            to choose what the query likes.
        seed: of the start.

    Raises:
        InputError: if a number is out of its range, the log is empty or has no `query_key`, or a
            batch lacks the column.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> log = Interactions({"user": [1, 2]}, [7, 9], query_key="user")
        >>> Reinforced(ItemCatalogue([7, 8, 9]), log, exposed="shown").num_candidates
        30

    Relations: with `learning_rate=0` nearly a uniform draw of each row's own.

    Source: Ding et al., IJCAI 2019 (RNS), the exposure-matching sampler. We differ: the means are
        moving averages and not those of the last epoch, the policy starts untrained and learns
        by Adagrad. Feature matching (the discrepancy of the chosen items' features from those of
        exposed ones) is left out.
    """

    def __init__(
        self,
        items: ItemCatalogue,
        log: History | QueryRows,
        *,
        exposed: str | None = None,
        num_candidates: int = 30,
        alpha: float = 2.5,
        width: int = 32,
        learning_rate: float = 0.05,
        decay: float = 0.99,
        masks: Sequence[Mask] = (),
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "reinforced", "dtype": "float32", **kwargs})
        for name, number in {"num_candidates": num_candidates, "width": width}.items():
            if number < 1:
                raise bad_input(name, "at least 1", number)
        for name, value in {"alpha": alpha, "learning_rate": learning_rate}.items():
            if not 0 <= value < np.inf:
                raise bad_input(name, "a finite number of at least 0", value)
        if not 0 <= decay < 1:
            raise bad_input("decay", "a number in [0, 1)", decay)
        self.items, self.exposed, self.masks = items, exposed, list(masks)
        self.num_candidates, self.alpha, self.width = num_candidates, alpha, width
        self.learning_rate, self.decay, self.seed = learning_rate, decay, seed
        self.queries = self._arguments["log"] = QueryRows.of(log)

    def build(self, input_shape: Any) -> None:
        """Makes the policy; the task and a loaded file may both ask."""
        if self.built:
            return
        fixed: dict[str, Any] = {"trainable": False, "experimental_autocast": False}
        sizes = {"query": self.queries.num_queries + 1, "item": len(self.items)}
        constant, tables = tf.keras.initializers.Constant, []
        for number, (name, size) in enumerate(sizes.items()):
            start = tf.keras.initializers.RandomNormal(stddev=0.1, seed=self.seed + number)
            shape = [size, self.width]
            vectors = self.add_weight(f"{name}_vectors", shape, tf.float32, start, **fixed)
            past = self.add_weight(f"{name}_squares", shape, tf.float32, constant(0.1), **fixed)
            tables.append((vectors, past))
        (self.query_vectors, self.query_squares), (self.item_vectors, self.item_squares) = tables
        # Not a number until there is a batch to average.
        self.means = self.add_weight("means", [2], tf.float32, constant(np.nan), **fixed)
        super().build(input_shape)
        if self.exposed is None:
            logger.info("%s: no `exposed` column, rewards are adversarial only", self.name)

    def sample(self, batch: Batch) -> Candidates:
        """Returns candidates [B, 1]: what the policy chose for each row."""
        drawn = self._draw(batch)
        key = tf.gather(drawn.keys, drawn.chosen, batch_dims=1)
        given = candidates_of_rows(key, self.items, batch, label=self.name)
        return given._replace(valid=given.valid & drawn.some[:, None])

    def update(self, batch: Batch, scored: Scored) -> None:
        """Rewards what was chosen, and moves the policy."""
        drawn = self._draw(
            batch
        )  # The same draws: the seed is the step's, the policy has not moved.
        key = tf.gather(drawn.keys, drawn.chosen, batch_dims=1)
        given = candidates_of_rows(key, self.items, probes_of(batch), label=self.name)
        score = tf.stop_gradient(batch.score(given)[1])
        shown = tf.gather(drawn.exposed, drawn.chosen, batch_dims=1)
        rewards = all_rows(tf.concat([-tf.sigmoid(-score), shown], axis=1))
        some = drawn.some & tf.math.is_finite(score[:, 0])
        drawn = _Drawn(*(all_rows(field) for field in drawn._replace(some=some)))
        advantage = self._advantage(rewards, drawn.some)
        self._move(drawn, policy_gradient(drawn.policy, drawn.chosen[:, 0], advantage))

    def _draw(self, batch: Batch) -> _Drawn:
        queries = self.queries.rows(batch.features, batch.queries.shape[0])
        size = tf.shape(queries)[0]
        draws = row_draws(size, self.num_candidates, batch.for_part(CANDIDATES).seed)
        keys = self.items.keys_at(places(draws, len(self.items)))
        keys, shown = self._with_exposed(keys, batch)
        rows = self.items.rows_of_keys(keys)
        first = tf.range(self.num_candidates) == 0
        keep = tf.not_equal(keys, batch.positive_ids[:, None]) & (~shown | first)
        zeros = tf.zeros_like(keys, tf.float32)
        scored = Scored(zeros[:, 0], zeros, keep, zeros[:, 0], zeros, keys, per_row=True)
        keep, _ = kept_by(self.masks, scored, batch)
        ours, theirs = tf.gather(self.query_vectors, queries), tf.gather(self.item_vectors, rows)
        logit = tf.where(keep, tf.einsum("bd,bnd->bn", ours, theirs), tf.float32.min)
        policy = tf.where(keep, tf.nn.softmax(logit), 0.0)
        choice = row_draws(size, 1, batch.for_part(CHOICE).seed)
        chosen, some = drawn_by_softmax(logit, keep, choice), tf.reduce_any(keep, axis=1)
        return _Drawn(queries, keys, rows, tf.cast(shown, tf.float32), policy, chosen, some)

    def _with_exposed(self, keys: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Puts an exposed item first, where there is one; returns which of all are exposed."""
        if self.exposed is None:
            return keys, tf.zeros_like(keys, tf.bool)
        num_rows, kind = batch.queries.shape[0], self.items.id_kind
        shown = keys_of_rows(batch.features, self.exposed, num_rows, kind=kind)
        # One column more, so that there is one to take.
        shown = tf.pad(shown, [[0, 0], [0, 1]], constant_values=tf.constant(EMPTY_ID, tf.int64))
        valid = self.items.rows_of_keys(shown) >= 0
        valid &= tf.not_equal(shown, batch.positive_ids[:, None])
        size, width = tf.unstack(tf.shape(shown))
        draws = row_draws(size, width, batch.for_part(EXPOSED).seed)
        place = tf.argmax(tf.where(valid, draws, -1.0), axis=1)[:, None]
        is_one = tf.gather(valid, place, batch_dims=1)
        first = tf.where(is_one, tf.gather(shown, place, batch_dims=1), keys[:, :1])
        keys = tf.concat([first, keys[:, 1:]], axis=1)
        among = tf.equal(keys[:, :, None], shown[:, None, :]) & valid[:, None, :]
        return keys, tf.reduce_any(among, axis=2)

    def _advantage(self, rewards: tf.Tensor, some: tf.Tensor) -> tf.Tensor:
        """Returns [B]: by how much the rewards [B, 2] exceed their means, which move on."""
        rewards = tf.where(some[:, None], rewards, 0.0)
        number = tf.reduce_sum(tf.cast(some, tf.float32))
        mean = tf.reduce_sum(rewards, axis=0) / tf.maximum(number, 1.0)
        means = tf.where(tf.math.is_nan(self.means), mean, self.means)
        moved = self.decay * means + (1 - self.decay) * mean
        self.means.assign(tf.where(number > 0, moved, self.means))
        advantage = tf.linalg.matvec(rewards - means, tf.constant([1.0, self.alpha]))
        return tf.where(some, advantage, 0.0)

    def _move(self, drawn: _Drawn, gradient: tf.Tensor) -> None:
        """Takes a step of Adagrad against a gradient [B, n] in the logits of the policy."""
        ours = tf.gather(self.query_vectors, drawn.queries)
        theirs = tf.gather(self.item_vectors, drawn.rows)
        of_queries = tf.einsum("bn,bnd->bd", gradient, theirs)
        of_items = tf.reshape(gradient[:, :, None] * ours[:, None, :], [-1, self.width])
        rows = tf.reshape(drawn.rows, [-1])
        self._step(self.query_vectors, self.query_squares, drawn.queries, of_queries)
        self._step(self.item_vectors, self.item_squares, rows, of_items)

    def _step(
        self, vectors: tf.Variable, squares: tf.Variable, rows: tf.Tensor, gradient: tf.Tensor
    ) -> None:
        squares.scatter_add(tf.IndexedSlices(tf.square(gradient), rows))
        scale = self.learning_rate / tf.sqrt(tf.gather(squares, rows))
        vectors.scatter_add(tf.IndexedSlices(-scale * gradient, rows))


def policy_gradient(policy: tf.Tensor, chosen: tf.Tensor, advantage: tf.Tensor) -> tf.Tensor:
    """The gradient of -advantage log pi(chosen) in the logits of a softmax.

    Args:
        policy: [B, n] float32, the softmax.
        chosen: [B] int32.
        advantage: [B] float32.

    Returns:
        [B, n] float32.

    Example:
        >>> policy_gradient(tf.constant([[0.25, 0.75]]), tf.constant([0]), tf.constant([2.0]))
        <tf.Tensor: shape=(1, 2), dtype=float32, numpy=array([[-1.5,  1.5]], dtype=float32)>
    """
    one = tf.one_hot(chosen, tf.shape(policy)[1])
    return advantage[:, None] * (policy - one)
