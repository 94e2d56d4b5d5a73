"""What a trained model thinks, in a few small arrays for the plots."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.evaluation.held_out import hold_out
from tfrs_negatives.model.corpus import embed_items, embed_queries
from tfrs_negatives.model.two_tower import TwoTower
from tfrs_negatives.runs import files
from tfrs_negatives.runs.train import load_run
from tfrs_negatives.step.frequency import StreamingFrequency, log_shares

MAX_PAIRS, MAX_ITEMS = 20_000, 2_000
NUM_BINS = 40
ROWS_AT_ONCE = 4096


def look_into(folder: Path, data: RetrievalData) -> dict[str, Any]:
    """Looks into the model of a run, once: the run keeps the answer in `diagnostics.json`.

    Args:
        folder: a complete run.
        data: the log it was trained on.

    Returns:
        `scores` of held-out and of random items, see `score_histograms`, and `log_q`, the estimated
        probabilities of items beside the exact ones; None where the model does not estimate.
    """
    path = folder / files.DIAGNOSTICS
    if not path.is_file():
        _, model = load_run(folder)
        record = {"scores": score_histograms(model, data), "log_q": compare_log_q(model, data)}
        write_text(path, json.dumps(record))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def score_histograms(model: TwoTower, data: RetrievalData, *, seed: int = 0) -> dict[str, Any]:
    """Scores of held-out items and of random ones, for the same queries.

    Args:
        model: the trained model.
        data: its log; at most 20,000 test events are looked at.
        seed: of the choice of events and items.

    Returns:
        `edges` [41]; `positives` and `random` [40], how many scores are in each bin; `auc`, the
        share of the pairs in which the held-out item scores higher, ties counting half.
    """
    rng = np.random.default_rng(seed)
    size = min(MAX_PAIRS, len(data.test))
    events = data.test.take(np.sort(rng.permutation(len(data.test))[:size]))
    drawn = rng.integers(0, len(data.items), size)
    found, other = _scores(model, events, [events.item_rows(data.items), drawn])
    low, high = (float(extreme(np.concatenate([found, other]))) for extreme in (np.min, np.max))
    edges = np.linspace(low, high if high > low else low + 1.0, NUM_BINS + 1)
    return {
        "edges": edges.tolist(),
        "positives": np.histogram(found, edges)[0].tolist(),
        "random": np.histogram(other, edges)[0].tolist(),
        "auc": float(np.mean(found > other) + np.mean(found == other) / 2),
    }


def _scores(
    model: TwoTower, events: Interactions, columns: list[np.ndarray]
) -> tuple[np.ndarray, ...]:
    """Scores the query of each event [E] with the item at its row in each of the columns."""
    queries = embed_queries(model, events.query_features, ROWS_AT_ONCE)
    items = embed_items(model, ROWS_AT_ONCE)
    return tuple(tf.reduce_sum(queries * items[rows], axis=1).numpy() for rows in columns)


def compare_log_q(model: TwoTower, data: RetrievalData, *, seed: int = 0) -> dict[str, Any] | None:
    """What the model's streaming estimator says of items, beside the counts of the log.

    Args:
        model: the trained model.
        data: its log.
        seed: of the choice of items.

    Returns:
        `exact` and `estimated`, natural logs of the probability of one draw, of at most 2,000 items
        with training events; `mean_error`, the mean absolute difference over all such items; None
        where the task has no `StreamingFrequency`.
    """
    frequency = model.task.frequency
    if not isinstance(frequency, StreamingFrequency):
        return None
    counts = data.train.item_counts(data.items)
    met = np.flatnonzero(counts)
    exact = log_shares(data.items, counts)[met]
    estimated = frequency.log_probability(tf.constant(data.items.keys[met])).numpy()
    shown = np.sort(np.random.default_rng(seed).permutation(len(met))[:MAX_ITEMS])
    return {
        "exact": np.round(exact[shown], 4).tolist(),
        "estimated": np.round(estimated[shown], 4).tolist(),
        "mean_error": float(np.abs(estimated - exact).mean()),
    }


def count_histogram(counts: np.ndarray) -> list[dict[str, Any]]:
    """How popularity is spread: items by the power of two of their training events.

    Args:
        counts: [N] training events of each item.

    Returns:
        A record per bin, each twice as wide as the one before: `low` and `high` number of events,
        both included, the `items` that have so many, and their share of all `events`.

    Example:
        >>> [tuple(record.values()) for record in count_histogram(np.array([0, 1, 1, 3, 5]))]
        [(0, 0, 1, 0.0), (1, 1, 2, 0.2), (2, 3, 1, 0.3), (4, 7, 1, 0.5)]
    """
    # 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 to 7 -> 3: the number of binary digits.
    digits = np.ceil(np.log2(counts + 1.0)).astype(int)
    items, events = np.bincount(digits), np.bincount(digits, counts)
    return [
        {
            "low": 2 ** (n - 1) if n else 0,
            "high": 2**n - 1,
            "items": int(items[n]),
            "events": float(events[n] / counts.sum()),
        }
        for n in range(len(items))
    ]


def liked_popularity(data: RetrievalData, *, exclude: Interactions | None) -> float:
    """Returns the training events of a held-out item, averaged over the items of each query first.

    `mean_popularity_at_k` would be that of a model which recommends to each query k such items.
    """
    pairs = hold_out(data.test, data.items, exclude=exclude).relevant
    counts = data.train.item_counts(data.items)[pairs.rows]
    return float(np.mean(np.bincount(pairs.queries, counts) / np.bincount(pairs.queries)))
