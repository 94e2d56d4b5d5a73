"""Negatives from pools that are resampled by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.core.replicas import row_draws
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import History
from tfrs_negatives.step.correction import log_importance
from tfrs_negatives.step.draws import drawn_by_softmax
from tfrs_negatives.step.query_rows import QueryRows
from tfrs_negatives.step.records import Batch, Candidates, Mask, Sampler, Scored
from tfrs_negatives.step.samplers.of_rows import (
    candidates_of_rows,
    places,
    write_rows,
)
from tfrs_negatives.step.samplers.query_pool import CHOICE, SLOT, QueryPool


@part("sampler")
class AdaptivePool(QueryPool):
    """Items of a pool that each query has of its own, which follows the scores of the model.

    After each batch, the pool of a query in it is half made anew, on average. M proposals of
    probability q become P items, drawn with replacement by importance, and each slot of the pool
    is drawn from the 2 P old and new ones::

        new_1 ... new_P ~ softmax_m(s_m / temperature - log q_m)
        slot_p ~ uniform(old_1 ... old_P, new_1 ... new_P)

    With many proposals the new ones are draws from softmax(s / temperature) over the whole
    catalogue, hard negatives that no mining has to look for. A step draws n of the P slots evenly,
    with replacement; a query that the log does not have keeps uniform items.

    The pools are weights, 8 (Q + 1) P bytes: saved, resumed, and the same on every replica. A step
    encodes the M proposals once for the whole batch, and n items for each row.

    Args:
        proposals: `Uniform`, `Popularity` or `LogUniform`, with M as its `num_negatives`.
        items: the catalogue.
        log: the training part, whose Q queries have pools.
        num_negatives: how many candidates a row has, n.
        pool_size: how many items a pool has, P.
        temperature: divides the score, which already is similarity / temperature of the task.
        masks: what of the proposals may enter a pool. `KnownPositives` is advised: what a query
            likes scores high, and fills its pool.

    Raises:
        InputError: if the proposals are of another kind, a number is out of its range, or the log
            is empty or has no `query_key`.

    Example:
        >>> from tfrs_negatives.data import Interactions
        >>> from tfrs_negatives.step.samplers import Uniform
        >>> log = Interactions({"user": [1, 2]}, [7, 9], query_key="user")
        >>> items = ItemCatalogue([7, 8, 9])
        >>> AdaptivePool(Uniform(items, 200), items, log, num_negatives=2).pool_size
        50

    Relations: at an infinite temperature with uniform proposals, uniform draws of each row's own.

    Source: Chen et al., WWW 2022 (AdaSIR). We differ: a pool changes with each batch of its query,
        not once an epoch, and the rows of a batch share the proposals. There the loss weighs the
        draws by softmax(s) once more, which makes them twice as hard; here a loss takes them as
        they are. Items of the history may be kept out.
    """

    def __init__(
        self,
        proposals: Sampler,
        items: ItemCatalogue,
        log: History | QueryRows,
        *,
        num_negatives: int = 5,
        pool_size: int = 50,
        temperature: float = 1.0,
        masks: Sequence[Mask] = (),
        **kwargs: Any,
    ) -> None:
        own: dict[str, Any] = {"pool_size": pool_size, "temperature": temperature, "masks": masks}
        super().__init__(proposals, items, log, **own, **{"name": "adaptive_pool", **kwargs})
        if num_negatives < 1:
            raise bad_input("num_negatives", "at least 1", num_negatives)
        self.num_negatives = num_negatives

    def sample(self, batch: Batch) -> Candidates:
        """Returns candidates [B, n]: some of the pool of each row."""
        rows = self.rows(batch)
        draws = row_draws(tf.shape(rows)[0], self.num_negatives, batch.seed)
        slots = places(draws, self.pool_size)
        keys = tf.gather(tf.gather(self.pool, rows), slots, batch_dims=1)
        return candidates_of_rows(keys, self.items, batch, label=self.name)

    def update(self, batch: Batch, scored: Scored) -> None:
        """Resamples the pools of the batch's queries; of a query's rows the first one does it."""
        proposed, rows = self.proposed(batch), self.rows(batch)
        shape, seeds = (tf.shape(rows)[0], self.pool_size), batch.for_part
        logit = log_importance(proposed.score / self.temperature, proposed.log_count)
        chosen = drawn_by_softmax(logit, proposed.keep, row_draws(*shape, seeds(CHOICE).seed))
        new = tf.gather(proposed.ids, chosen)
        both = tf.concat([tf.gather(self.pool, rows), new], axis=1)
        slots = places(row_draws(*shape, seeds(SLOT).seed), 2 * self.pool_size)
        write_rows(
            self.pool,
            rows,
            tf.gather(both, slots, batch_dims=1),
            tf.reduce_any(proposed.keep, axis=1),
        )
