"""Evaluation over the full corpus: as a function, and as a callback of `model.fit`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.evaluation.held_out import HeldOut, hold_out
from tfrs_negatives.evaluation.propensity import checked_constants, inverse_propensities
from tfrs_negatives.evaluation.ranks import rank_lists, searcher
from tfrs_negatives.evaluation.summary import Evaluation, summarize
from tfrs_negatives.model.retrieval_model import RetrievalModel

BYTE_BUDGET = 64 * 2**20


def evaluate(
    model: RetrievalModel,
    test: Interactions,
    *,
    ks: Sequence[int] = (10, 100),
    exclude: Interactions | None = None,
    train: Interactions | None = None,
    propensity: Sequence[float] | None = None,
    batch_size: int = 4096,
    byte_budget: int = BYTE_BUDGET,
    progress: bool = False,
) -> Evaluation:
    """Ranks the whole catalogue for every test query and measures what is found.

    The test events of one query (`test.query_key`) count together, equal events once, weights not
    at all. An excluded item is neither recommended nor asked for; a query without anything left to
    ask for is skipped. Among items of equal score the held-out ones come last.

    Args:
        model: a model or a baseline.
        test: the held-out events; a query has the features of its first event.
        ks: lengths of the lists.
        exclude: a log of items that each query has seen, usually the training log; None excludes
            nothing. Queries are matched by `test.query_key`.
        train: the log that popularity is counted in, whatever is excluded; without it the metrics
            that need popularity are absent.
        propensity: a and b of `inverse_propensities`, whose counts are those of `train`: adds
            `psp_at_k`. None leaves it out.
        batch_size: the most queries or items that go through a tower at once.
        byte_budget: bytes that the lists of the queries that are ranked together may take, k and
            the hidden items of each long; on a GPU or without ScaNN the scores of all items, too
            (at least one query goes at a time). It changes speed and memory, not the result.
        progress: whether to show a bar.

    Returns:
        Metrics by plain name, see `Evaluation`.

    Raises:
        InputError: if a log is empty, holds unknown items or leaves nothing to find, if `ks` are
            not positive integers up to the corpus size, or if a tower yields NaN or infinity.

    Example:
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> from tfrs_negatives.evaluation import MostPopular
        >>> items = ItemCatalogue([5, 6, 7])
        >>> log = Interactions({"user_id": np.array([1, 2, 2])}, np.array([7, 6, 7]), "user_id")
        >>> test = Interactions({"user_id": np.array([1, 2])}, np.array([6, 5]), "user_id")
        >>> popular = MostPopular(items, log.item_counts(items))
        >>> evaluate(popular, test, ks=[1], exclude=log).metrics["recall_at_1"]
        1.0
        >>> evaluate(popular, test, ks=[1]).metrics["recall_at_1"]
        0.0
    """
    _check_positive(batch_size=batch_size, byte_budget=byte_budget)
    protocol = _prepare(model, test, ks=ks, exclude=exclude, train=train, propensity=propensity)
    return _measure(
        model, protocol, batch_size=batch_size, byte_budget=byte_budget, progress=progress
    )


class TopKEvaluation(tf.keras.callbacks.Callback):
    """Evaluates at the end of epochs and adds `val_recall_at_10` and all the others to the logs.

    Put it before the callbacks that read these names (`EarlyStopping`, `ModelCheckpoint`), and give
    those `mode="max"`: Keras takes an unknown metric for a loss. In an epoch without evaluation the
    names are absent from the logs, so `History` has fewer values than epochs and `EarlyStopping`
    warns and waits. `CSVLogger` takes its columns from the first epoch: give it `every_epochs=1`.

    Args:
        test: see `evaluate`, as for all other arguments.
        ks: lengths of the lists.
        exclude: the log of seen items.
        train: the log that popularity is counted in.
        propensity: a and b of `psp_at_k`.
        every_epochs: evaluates after every so many epochs.
        batch_size: the most queries or items that go through a tower at once.
        byte_budget: bytes that a chunk of queries may take.

    Raises:
        InputError: as `evaluate`; what is wrong with the data is found before the first epoch.

    Example:
        >>> log = Interactions({"user_id": np.array([1])}, np.array([7]), query_key="user_id")
        >>> callbacks = [
        ...     TopKEvaluation(log, ks=[10]),
        ...     tf.keras.callbacks.EarlyStopping("val_recall_at_10", mode="max"),
        ... ]
    """

    def __init__(
        self,
        test: Interactions,
        *,
        ks: Sequence[int] = (10, 100),
        exclude: Interactions | None = None,
        train: Interactions | None = None,
        propensity: Sequence[float] | None = None,
        every_epochs: int = 1,
        batch_size: int = 4096,
        byte_budget: int = BYTE_BUDGET,
    ) -> None:
        super().__init__()
        _check_positive(every_epochs=every_epochs, batch_size=batch_size, byte_budget=byte_budget)
        logs = {"test": test, "exclude": exclude, "train": train}
        self._data: dict[str, Any] = {**logs, "ks": ks, "propensity": propensity}
        self._every_epochs = every_epochs
        self._limits = {"batch_size": batch_size, "byte_budget": byte_budget}
        self._protocol: _Protocol

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Groups the events, once for all epochs."""
        self._protocol = _prepare(self.model, **self._data)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the metrics to `logs`, which Keras hands on to the later callbacks."""
        if logs is not None and (epoch + 1) % self._every_epochs == 0:
            evaluation = _measure(self.model, self._protocol, **self._limits, progress=False)
            logs.update({f"val_{name}": value for name, value in evaluation.metrics.items()})


class _Protocol(NamedTuple):
    """All that does not depend on the weights of the model."""

    ks: list[int]
    held_out: HeldOut
    item_counts: np.ndarray | None
    item_weights: np.ndarray | None


def _prepare(
    model: RetrievalModel,
    test: Interactions,
    *,
    ks: Sequence[int],
    exclude: Interactions | None,
    train: Interactions | None,
    propensity: Sequence[float] | None,
) -> _Protocol:
    absent = [n for n in ("items", "query_vectors", "item_vectors") if not hasattr(model, n)]
    if absent:
        raise bad_input(
            "model", "a RetrievalModel", f"a {type(model).__name__} without {', '.join(absent)}"
        )
    if train is not None and not len(train):
        raise bad_input("train", "at least one event", "an empty log")
    return _Protocol(
        _checked_ks(ks, len(model.items)),
        hold_out(test, model.items, exclude=exclude),
        None if train is None else train.item_counts(model.items),
        _item_weights(model, train, propensity),
    )


def _item_weights(
    model: RetrievalModel, train: Interactions | None, propensity: Sequence[float] | None
) -> np.ndarray | None:
    constants = checked_constants(propensity)
    if constants is None:
        return None
    if train is None:
        raise bad_input("propensity", "None without a training log (`train`)", propensity)
    return inverse_propensities(train, model.items, a=constants[0], b=constants[1])


def _measure(
    model: RetrievalModel,
    protocol: _Protocol,
    *,
    batch_size: int,
    byte_budget: int,
    progress: bool,
) -> Evaluation:
    held_out = protocol.held_out
    ranks = rank_lists(
        searcher(model, held_out, batch_size=batch_size, byte_budget=byte_budget),
        held_out,
        ks=protocol.ks,
        num_items=len(model.items),
        chunk_size=batch_size,
        byte_budget=byte_budget,
        progress=progress,
    )
    counts, weights = protocol.item_counts, protocol.item_weights
    return summarize(held_out, ranks, item_counts=counts, item_weights=weights)


def _checked_ks(ks: Sequence[int], num_items: int) -> list[int]:
    """Returns each k once, ascending."""
    try:
        lengths = sorted({operator.index(k) for k in ks})
    except TypeError:
        lengths = []
    if not lengths or lengths[0] < 1:
        raise bad_input("ks", "a list of positive integers", ks)
    if lengths[-1] > num_items:
        raise bad_input("ks", f"at most {num_items}, the number of items", lengths[-1])
    return lengths


def _check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise bad_input(name, "a positive integer", size)
