"""The models of `peers.py`, and how one that has no vectors is ranked."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import tensorflow as tf
import tensorflow_recommenders as tfrs
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import bm25_weight
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from tfrs_negatives.core.types import Features, Similarity
from tfrs_negatives.data import Interactions, RetrievalData
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.evaluation import Evaluation, evaluate
from tfrs_negatives.evaluation.held_out import HeldOut, hold_out
from tfrs_negatives.evaluation.ranks import Ranks, rank_lists
from tfrs_negatives.evaluation.summary import summarize
from tfrs_negatives.evaluation.top_k import BYTE_BUDGET
from tfrs_negatives.runs.build import OPTIMIZERS
from tfrs_negatives.towers.build import build_tower
from tfrs_negatives.towers.features import infer_features

Settings: TypeAlias = Mapping[str, Any]
MEMORY = Path("/proc/meminfo")
LAPACK_ROWS = 16384
"""From 2**31 bytes on OpenBLAS is not safe: it crashed at 29,859 rows."""
ROWS = 256
"""Users whose scores are in memory together; 42 MB for 41,000 items."""


class Histories:
    """The training log as a matrix of users and items.

    Args:
        train: E events with a `query_key`.
        items: the corpus of N items.

    Attributes:
        matrix: [U + 1, N] zeros and ones, sparse float32. The last row, which is empty, is that of
            every user without a training event.
    """

    def __init__(self, train: Interactions, items: ItemCatalogue) -> None:
        self.items = items
        queries, rows = train.queries()
        self._users = ItemCatalogue(queries[train.query_key])
        self._query_key = train.query_key
        cells, shape = (rows, train.item_rows(items)), (len(self._users) + 1, len(items))
        self.matrix = sp.csr_matrix((np.ones(len(train), np.float32), cells), shape)
        self.matrix.data[:] = 1.0

    def rows(self, features: Features) -> tf.Tensor:
        """Query features [B, ...] -> rows of the matrix, [B] int64."""
        return self._users.rows(features[self._query_key], unknown=len(self._users))


class Factors:
    """A model that is two matrices, those of implicit; biases are a dimension of them.

    Args:
        histories: whose rows the users have.
        users: [U + 1, D].
        items: [N, D].
    """

    similarity: Similarity = "dot"
    query_signature: Mapping[str, tf.TensorSpec] = {}

    def __init__(self, histories: Histories, users: np.ndarray, items: np.ndarray) -> None:
        self.items, self._rows = histories.items, histories.rows
        self._users, self._vectors = tf.constant(users), tf.constant(items)

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Query features [B, ...] -> [B, D]."""
        return tf.gather(self._users, self._rows(features))

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Item features [m, ...] -> [m, D]."""
        return tf.gather(self._vectors, self.items.rows(features[self.items.item_key]))


def train_als(train: Interactions, items: ItemCatalogue, settings: Settings, seed: int) -> Factors:
    """Trains weighted matrix factorisation; `alpha` is the weight of an event, that of none is 1.

    With `bm25` an event weighs `alpha` times what BM25 gives it.
    """
    options = dict(settings)
    histories = Histories(train, items)
    weights, bm25 = histories.matrix, options.pop("bm25")
    if bm25 is not None:
        weights = bm25_weight(weights, **bm25).tocsr()
    # The threads of implicit call the BLAS, whose own would get in their way.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(**options, random_state=seed)
        model.fit(weights, show_progress=False)
    return Factors(histories, model.user_factors, model.item_factors)


def train_bpr(train: Interactions, items: ItemCatalogue, settings: Settings, seed: int) -> Factors:
    """Trains BPR. In implicit a negative is the item of a random event: as popular items are drawn
    in proportion to their popularity, the scores lack it, as with uncorrected in-batch negatives.

    `log_popularity` is what the log of an item's count weighs beside its score; 0 is implicit's.
    """
    options = dict(settings)
    weight = options.pop("log_popularity", 0.0)
    # Several threads write to the same rows, so only one of them does the same again.
    model = BayesianPersonalizedRanking(**options, num_threads=1, random_state=seed)
    histories = Histories(train, items)
    model.fit(histories.matrix, show_progress=False)
    popularity = weight * np.log(np.maximum(train.item_counts(items), 1))
    return Factors(
        histories,
        np.pad(model.user_factors, [(0, 0), (0, 1)], constant_values=1.0),
        np.column_stack([model.item_factors, popularity]).astype(np.float32),
    )


class Ease:
    """EASE: the item weights of the least squares X B = X with a zero diagonal, in closed form.

    With X [U, N] the histories and P = (X'X + λI)^-1 the weights are B = I - P / diag P, by column.
    The scores X B need no matrix of items: with K = (XX' + λI)^-1, [U, U],

        X P = K X        λ diag P = 1 - diag X'KX

    and both logs have fewer users than items.

    Args:
        train: E events.
        items: the corpus of N items.
        settings: `regularization`, λ.
        seed: not used.

    Raises:
        MemoryError: if K and its workspace would not fit.

    Source: Steck, WWW 2019, eq. 8; the identities are the push-through identity and its diagonal.
    """

    def __init__(
        self, train: Interactions, items: ItemCatalogue, settings: Settings, seed: int
    ) -> None:
        self._histories = Histories(train, items)
        strength = settings["regularization"]
        self._inverse = _invert_gram(self._histories.matrix, strength)
        leverage = np.zeros(len(items))
        for rows in _chunks(self._histories.matrix.shape[0]):
            chunk = self._histories.matrix[rows].multiply(self._project(rows))
            leverage += np.asarray(chunk.sum(axis=0, dtype=np.float64)).ravel()
        self._diagonal = ((1.0 - leverage) / strength).astype(np.float32)

    def scores(self, features: Features) -> np.ndarray:
        """Query features [q, ...] -> [q, N] float32, a row of X B each."""
        rows = self._histories.rows(features).numpy()
        return self._histories.matrix[rows].toarray() - self._project(rows) / self._diagonal

    def _project(self, rows: Any) -> np.ndarray:
        """Returns [q, N], rows of K X."""
        return np.ascontiguousarray((self._histories.matrix.T @ self._inverse[:, rows]).T)


def _invert_gram(histories: sp.csr_matrix, strength: float) -> np.ndarray:
    """Returns (XX' + λI)^-1, [U, U] float32."""
    size = histories.shape[0]
    # The matrix and, of a quarter of its size each, up to six parts of it.
    _check_memory(10 * size**2)
    gram = np.zeros((size, size), np.float32)
    for rows in _chunks(size):
        gram[rows] = (histories[rows] @ histories.T).toarray()
    gram[np.diag_indices(size)] += strength
    return invert(gram)


def invert(matrix: np.ndarray) -> np.ndarray:
    """Inverts a symmetric positive definite matrix [n, n] float32, which is overwritten.

    By Cholesky up to `LAPACK_ROWS`; above, block by block, with the Schur complement of the first.
    """
    half = len(matrix) // 2
    if len(matrix) <= LAPACK_ROWS:
        return _invert_by_cholesky(matrix)
    below = matrix[half:, :half]
    first = invert(matrix[:half, :half].copy())
    weights = below @ first
    last = invert(matrix[half:, half:] - weights @ below.T)
    corner = last @ weights
    matrix[:half, :half] = first + weights.T @ corner
    matrix[half:, :half], matrix[:half, half:] = -corner, -corner.T
    matrix[half:, half:] = last
    return matrix


def _invert_by_cholesky(matrix: np.ndarray) -> np.ndarray:
    # The transpose is the same matrix, in the order that LAPACK works on in place.
    factor, failed = lapack.spotrf(matrix.T, lower=True, clean=False, overwrite_a=True)
    assert not failed, f"spotrf: {failed}"
    inverse, failed = lapack.spotri(factor, lower=True, overwrite_c=True)
    assert not failed, f"spotri: {failed}"
    lower = np.tril(inverse)
    return lower + np.tril(lower, -1).T


def _check_memory(needed: int) -> None:
    found = re.search(r"MemAvailable: *(\d+) kB", MEMORY.read_text()) if MEMORY.exists() else None
    if found is not None and 1024 * int(found[1]) < needed:
        available = int(found[1]) / 2**20
        raise MemoryError(f"EASE: expected {needed / 2**30:.1f} GiB. Received: {available:.1f}")


def _chunks(size: int) -> Iterator[slice]:
    for begin in range(0, size, ROWS):
        yield slice(begin, min(begin + ROWS, size))


class TutorialModel(tfrs.Model):
    """Two towers and the retrieval task, as the tutorials of TensorFlow Recommenders have them.

    Args:
        query_tower: query features -> [B, D].
        item_tower: item features -> [m, D].
        items: the corpus of N items.
        counts: [N], training events per item.
        settings: those of the task, and whether the vectors are normalised.
    """

    similarity: Similarity = "dot"
    query_signature: Mapping[str, tf.TensorSpec] = {}

    def __init__(
        self,
        query_tower: tf.keras.Model,
        item_tower: tf.keras.Model,
        items: ItemCatalogue,
        counts: np.ndarray,
        settings: Settings,
    ) -> None:
        super().__init__()
        self.query_tower, self.item_tower, self.items = query_tower, item_tower, items
        self._probability = tf.constant(counts / counts.sum(), tf.float32)
        self._settings = dict(settings)
        self.task = tfrs.tasks.Retrieval(
            temperature=settings["temperature"],
            remove_accidental_hits=settings["remove_accidental_hits"],
        )

    def compute_loss(self, features: Features, training: bool = False) -> tf.Tensor:
        """Returns the summed loss of one batch."""
        rows = self.items.rows(features[self.items.item_key])
        corrected = self._settings["candidate_sampling_probability"]
        return self.task(
            self.query_vectors(features),
            self.item_vectors(self.items.gather(rows)),
            candidate_ids=rows,
            candidate_sampling_probability=(
                tf.gather(self._probability, rows) if corrected else None
            ),
        )

    def query_vectors(self, features: Features) -> tf.Tensor:
        """Query features [B, ...] -> [B, D]."""
        return self._encode(self.query_tower, features)

    def item_vectors(self, features: Features) -> tf.Tensor:
        """Item features [m, ...] -> [m, D]."""
        return self._encode(self.item_tower, features)

    def _encode(self, tower: tf.keras.Model, features: Features) -> tf.Tensor:
        vectors = tower({name: features[name] for name in tower.input_names})
        return tf.math.l2_normalize(vectors, axis=1) if self._settings["normalize"] else vectors


def train_tfrs(
    train: Interactions, items: ItemCatalogue, settings: Settings, seed: int
) -> TutorialModel:
    """Trains the model of the tutorials; `sizes` are those of both towers."""
    tf.keras.utils.set_random_seed(seed)
    counts = train.item_counts(items)
    seen = {name: column[counts > 0] for name, column in items.features.items()}
    sizes = settings["sizes"]
    query_tower = build_tower(infer_features(train.query_features), name="query_tower", **sizes)
    item_tower = build_tower(infer_features(seen), name="item_tower", **sizes)
    model = TutorialModel(query_tower, item_tower, items, counts, settings)
    model.compile(OPTIMIZERS[settings["optimizer"]](settings["learning_rate"]))
    batches = train.dataset(settings["batch_size"], item_key=items.item_key, seed=seed)
    model.fit(batches, epochs=settings["epochs"], verbose=0)
    return model


Model: TypeAlias = "Factors | Ease | TutorialModel"
Train: TypeAlias = Callable[[Interactions, ItemCatalogue, Settings, int], Model]
MODELS: dict[str, Train] = {
    "als": train_als,
    "bpr": train_bpr,
    "bpr_popularity": train_bpr,
    "ease": Ease,
    "tfrs": train_tfrs,
    "tfrs_tuned": train_tfrs,
}


def measure(model: Model, log: RetrievalData, *, ks: Sequence[int]) -> Evaluation:
    """Evaluates on the test part; what was trained on is excluded."""
    if not isinstance(model, Ease):
        return evaluate(model, log.test, ks=ks, exclude=log.train, train=log.train)
    held_out = hold_out(log.test, log.items, exclude=log.train)
    ranks = rank_by_scores(model.scores, held_out, ks=ks, num_items=len(log.items))
    return summarize(held_out, ranks, item_counts=log.train.item_counts(log.items))


def rank_by_scores(
    score: Callable[[Features], np.ndarray],
    held_out: HeldOut,
    *,
    ks: Sequence[int],
    num_items: int,
) -> Ranks:
    """Ranks the catalogue as `evaluate` does, for a model that has no vectors.

    Args:
        score: query features [q, ...] -> [q, N] float32.
        held_out: Q queries.
        ks: lengths of lists.
        num_items: N.
    """

    def best(chunk: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        features = {name: c[chunk] for name, c in held_out.query_features.items()}
        return _best(score(features), length)

    return rank_lists(
        best, held_out, ks=sorted(ks), num_items=num_items, chunk_size=ROWS, byte_budget=BYTE_BUDGET
    )


def _best(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k best values and columns of each row, [q, k], the lower column first."""
    last = np.partition(scores, -k, axis=1)[:, -k]
    rows, columns = np.nonzero(scores >= last[:, None])
    order = np.lexsort((columns, -scores[rows, columns], rows))
    rows, columns = rows[order], columns[order]
    columns = columns[np.arange(len(rows)) - np.searchsorted(rows, rows) < k].reshape(-1, k)
    return np.take_along_axis(scores, columns, axis=1), columns
