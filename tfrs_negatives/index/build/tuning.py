"""How ScaNN is to cut and search a corpus: measured, until the recall is met at the least time.

    queries to measure with, those given or items with noise

    leaves of the tree x candidates reordered -> the fewest leaves to search that meet the target
                                              -> of these the fastest

Recall is measured against exact search, time on the same queries asked as one batch. A target is
met where the recall is so far above it that other queries will meet it too: by 1.6 standard errors.

For more results than `k` the depth is measured apart, by the recall of the last k of them: the
1,000 best lie in more leaves than the 10 best, and those at the end are found worst.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.index.retriever import check_vectors
from tfrs_negatives.index.search.backends import Depth, ExactSearch, ScannSearch, ScannSettings
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.towers.signature import check_features

_log = logging.getLogger(__name__)

_TREES = (0.5, 1.0, 2.0)
"""Leaves of the trees that are tried, as multiples of the square root of the corpus."""

_REORDERS = (5, 10, 30)
_DEEP_REORDERS = (2, 4, 10)
"""Candidates reordered, for each result; of many results fewer are needed for each."""

_DEEPER = (100, 1000)
"""Numbers of results, beside the one asked for, for which the depth is measured."""

_DEEP_QUERIES = 300
_STANDARD_ERRORS = 1.645
"""One query set in twenty lies this far above the truth by chance."""

_TIMINGS = 3

_SAMPLE_QUERIES = 32
"""Queries that an index keeps to check its export with."""


@dataclass(frozen=True)
class Trial:
    """One setting, as it was measured.

    Attributes:
        num_leaves: of the tree.
        leaves: that a query looked into.
        reorder: candidates whose exact score was computed.
        k: results.
        recall: the share of the exact top k that was found, of its last ones where k is a depth.
        lower: what it is at least, by 1.6 standard errors.
        milliseconds: per query, of one batch on this machine, the best of three.
    """

    num_leaves: int
    leaves: int
    reorder: int
    k: int
    recall: float
    lower: float
    milliseconds: float


def tune(
    vectors: np.ndarray, queries: np.ndarray, *, k: int, target: float
) -> tuple[ScannSearch, list[dict[str, Any]], float]:
    """Trains ScaNN on some vectors, with the fastest settings that find enough.

    Args:
        vectors: [N, D] float32.
        queries: [Q, D] float32 to measure with.
        k: results at which recall is measured.
        target: the recall to reach, 0 to 1.

    Returns:
        The search, all trials as records, the chosen ones marked, and the recall at k.

    Example:
        >>> vectors = np.random.default_rng(0).normal(size=[2000, 8]).astype(np.float32)
        >>> search, sweep, recall = tune(vectors, vectors[:50], k=10, target=0.9)
        >>> recall >= 0.9, [depth.k for depth in search.settings.depths]
        (True, [10, 100, 1000])
    """
    exact, trials = ExactSearch(vectors), []
    goal = _Goal.of(exact, queries, k, k, target)
    best: tuple[ScannSearch, Trial] | None = None
    for search in _trees(exact.vectors()):
        tried = _sweep(search, goal, _REORDERS, best=best and best[1])
        trials += tried
        trial = goal.best_of(tried)
        if best is None or goal.best_of([best[1], trial]) is trial:
            best = search, trial
    assert best is not None  # noqa: S101
    search, trial = best
    chosen = [trial]
    for deeper in _deeper_goals(exact, queries, k, target):
        tried = _sweep(search, deeper, _DEEP_REORDERS, start=chosen[-1].leaves)
        trials += tried
        chosen.append(deeper.best_of(tried))
    depths = tuple(Depth(found.k, found.leaves, found.reorder) for found in chosen)
    search.settings = replace(search.settings, depths=depths)
    for found in chosen:
        if found.recall < target:
            text = "recall at %d is %.3f, below the target of %s"
            _log.warning(text, found.k, found.recall, target)
    return search, [{**asdict(t), "chosen": t in chosen} for t in trials], trial.recall


class _Goal(NamedTuple):
    """To find the last ones of the top k: their scores lie between two bars, [Q, 1]."""

    k: int
    last: int
    queries: np.ndarray
    low: np.ndarray
    high: np.ndarray
    target: float

    @classmethod
    def of(cls, exact: ExactSearch, queries: np.ndarray, k: int, last: int, target: float) -> _Goal:
        bars = lowest_score_of_top(exact, queries, k, max(1, k - last))
        high = bars[:, 1:] if last < k else np.full([len(queries), 1], np.inf)
        return cls(k, last, queries, bars[:, :1], high, target)

    def recall_of(self, scores: np.ndarray) -> np.ndarray:
        """Returns [Q], the share of each query's last ones that was found."""
        found = ((scores >= self.low) & (scores < self.high)).sum(axis=1)
        return np.minimum(found, self.last) / self.last

    def is_met(self, trial: Trial) -> bool:
        return trial.lower >= self.target

    def best_of(self, trials: Sequence[Trial]) -> Trial:
        """Returns the fastest that meets the target, else the one that finds most."""
        met = [trial for trial in trials if self.is_met(trial)]
        if met:
            return min(met, key=lambda trial: trial.milliseconds)
        return max(trials, key=lambda trial: trial.recall)


def _deeper_goals(
    exact: ExactSearch, queries: np.ndarray, k: int, target: float
) -> Iterator[_Goal]:
    for deeper in _DEEPER:
        # Beyond half of the corpus there is little to leave out.
        if k < deeper <= exact.num_items // 2:
            yield _Goal.of(exact, queries[:_DEEP_QUERIES], deeper, k, target)


def _trees(vectors: tf.Variable) -> Iterator[ScannSearch]:
    rule = ScannSettings.rule_of_thumb(vectors.shape[0])
    factors = _TREES if rule.num_leaves > 1 else (1,)
    for factor in factors:
        leaves = max(1, round(factor * rule.num_leaves))
        _log.info("ScaNN: training a tree of %d leaves on %d items", leaves, vectors.shape[0])
        yield ScannSearch(vectors, replace(rule, num_leaves=leaves))


def _sweep(
    search: ScannSearch,
    goal: _Goal,
    reorders: Sequence[int],
    *,
    start: int = 1,
    best: Trial | None = None,
) -> list[Trial]:
    trials: list[Trial] = []
    if search.settings.num_leaves == 1:
        return [_measure(search, goal, 1, search.num_items)]
    for reorder in reorders:
        known = [*trials, *([best] if best else [])]
        slowest = min((t.milliseconds for t in known if goal.is_met(t)), default=math.inf)
        trials += _fewest_leaves(
            search, goal, min(reorder * goal.k, search.num_items), start=start, slowest=slowest
        )
    return trials


def _fewest_leaves(
    search: ScannSearch, goal: _Goal, reorder: int, *, start: int, slowest: float
) -> list[Trial]:
    """Doubles the leaves to search until the target is met, and then halves the last step.

    Gives up where a trial that misses the target is slower than one that meets it elsewhere.
    """
    most = search.settings.num_leaves
    leaves, below = min(max(start, most // 200), most), 0
    trials = [_measure(search, goal, leaves, reorder)]
    while not goal.is_met(trials[-1]):
        if leaves == most or trials[-1].milliseconds > slowest:
            return trials
        below, leaves = leaves, min(2 * leaves, most)
        trials.append(_measure(search, goal, leaves, reorder))
    while leaves - below > max(1, below // 8) and below:
        middle = (below + leaves) // 2
        trials.append(_measure(search, goal, middle, reorder))
        below, leaves = (below, middle) if goal.is_met(trials[-1]) else (middle, leaves)
    return trials


def _measure(search: ScannSearch, goal: _Goal, leaves: int, reorder: int) -> Trial:
    settings, seconds = search.settings, []
    search.settings = replace(settings, depths=(Depth(goal.k, leaves, reorder),))
    for _ in range(_TIMINGS):
        start = time.perf_counter()
        scores, _ = search.search_arrays(goal.queries, goal.k)
        seconds.append(time.perf_counter() - start)
    search.settings = settings
    shares = goal.recall_of(scores)
    recall = float(shares.mean())
    lower = recall - _STANDARD_ERRORS * float(shares.std()) / math.sqrt(len(shares))
    milliseconds = round(1000 * min(seconds) / len(goal.queries), 5)
    return Trial(settings.num_leaves, leaves, reorder, goal.k, recall, lower, milliseconds)


class Probes(NamedTuple):
    """Queries to measure with.

    Attributes:
        vectors: [Q, D] float32.
        source: where they came from.
        features: a few of them as features, [n, ...] each.
    """

    vectors: np.ndarray
    source: str
    features: dict[str, np.ndarray]


def draw_probes(
    model: RetrievalModel,
    vectors: np.ndarray,
    queries: Features | None,
    *,
    count: int,
    seed: int,
) -> Probes:
    """Draws queries to measure with from those given, or makes them from item vectors.

    Args:
        model: embeds the queries.
        vectors: [N, D] of the items.
        queries: query features, [M, ...] each; None takes item vectors plus noise of the same
            length, about 45 degrees away.
        count: how many, at most.
        seed: of the choice.

    Raises:
        InputError: if the features are not those of the model, or there is no query.
    """
    generator = np.random.default_rng(seed)
    if queries is None:
        return _noisy_items(model, vectors, count, generator)
    checked = check_features(queries, model.query_signature, argument="probe_queries")
    return _given_queries(model, checked, count, generator)


def _noisy_items(
    model: RetrievalModel, vectors: np.ndarray, count: int, generator: np.random.Generator
) -> Probes:
    rows = generator.choice(len(vectors), min(count, len(vectors)), replace=False)
    drawn = vectors[np.sort(rows)]
    is_euclidean = model.similarity == "euclidean"
    # The last dimension of an item holds its length; as a query it has a 1 there.
    drawn = drawn[:, :-1] if is_euclidean else drawn
    # As much noise as signal: a query is near the items it wants, but it is none of them.
    scale = np.sqrt(np.mean(np.square(drawn)))
    probes = drawn + generator.normal(0, scale or 1.0, drawn.shape)
    if is_euclidean:
        probes = np.column_stack([2 * probes, np.ones(len(probes))])
    features = {name: _blank(spec) for name, spec in model.query_signature.items()}
    return Probes(probes.astype(np.float32), "item vectors with noise", features)


def _blank(spec: tf.TensorSpec) -> np.ndarray:
    # Zeros and empty strings are in the range of every feature that nothing else is known of.
    fill = "" if spec.dtype == tf.string else spec.dtype.as_numpy_dtype(0)
    return np.full([2, *(size or 1 for size in spec.shape[1:])], fill)


def _given_queries(
    model: RetrievalModel, queries: Features, count: int, generator: np.random.Generator
) -> Probes:
    available = next(iter(queries.values())).shape[0]
    if not available:
        raise bad_input("probe_queries", "at least one query", "none")
    rows = np.sort(generator.choice(available, min(count, available), replace=False))
    drawn = {name: tf.gather(column, rows) for name, column in queries.items()}
    vectors = model.query_vectors(drawn)
    features = {name: column[:_SAMPLE_QUERIES].numpy() for name, column in drawn.items()}
    return Probes(check_vectors(vectors, vectors.shape[-1]), "given queries", features)


def lowest_score_of_top(exact: ExactSearch, queries: np.ndarray, *ks: int) -> np.ndarray:
    """Returns what an item must score to be among the top k of each query, [Q, number of ks].

    An item that ties with the last one counts as found, and rounding, which grows with the lengths
    of both vectors, is allowed for.
    """
    scores, _ = exact.search_arrays(queries, max(ks))
    lengths = np.linalg.norm(queries, axis=1, keepdims=True) * exact.longest
    rounding = np.finfo(np.float32).eps * np.sqrt(exact.width)
    return scores[:, [k - 1 for k in ks]] - rounding * lengths
