"""A slow exact index of plain arrays, and what any index should answer, for the tests."""

import numpy as np
import tensorflow as tf

from tfrs_negatives.index.retriever import Nature, Retriever


def brute_force(items, queries, k, *, exclude=None, allow=None, allow_groups=None, padding=-1):
    """The best items by sorting all scores.

    Args:
        items: id -> (vector, group).
        exclude: None, or a list for each query; likewise `allow` and `allow_groups`.
    """
    scores = np.full([len(queries), k], -np.inf, np.float32)
    ids = [[padding] * k for _ in queries]
    for row, query in enumerate(queries):
        found = [
            (-float(np.dot(query, vector)), place, item)
            for place, (item, (vector, group)) in enumerate(items.items())
            if (exclude is None or item not in exclude[row])
            and (allow is None or item in allow[row])
            and (allow_groups is None or group in allow_groups[row])
        ]
        for column, (negative, _, item) in enumerate(sorted(found)[:k]):
            scores[row, column], ids[row][column] = -negative, item
    return scores, np.array(ids)


class NumpyRetriever(Retriever):
    """Scores all items with numpy. A query is its vector, an item its id and its vector.

    Args:
        ids: [N] integers or strings.
        vectors: [N, D].
        groups: [N], the group of each item; None for an index without groups.
        scale: what the towers multiply a vector by, to tell one model from another.
    """

    def __init__(self, ids, vectors, *, groups=None, scale=1.0):
        self.ids, self.vectors = np.asarray(ids), np.asarray(vectors, np.float32)
        self.groups = None if groups is None else np.asarray(groups)
        self.scale = np.float32(scale)

    def __len__(self):
        return len(self.ids)

    @property
    def nature(self):
        width = self.vectors.shape[1]
        groups = None
        if self.groups is not None:
            groups = "" if self.groups.dtype.kind == "U" else -(2**63)
        return Nature(
            width=width,
            padding_id="" if self.ids.dtype.kind == "U" else -1,
            group_padding=groups,
            query_signature={"vector": tf.TensorSpec([None, width], tf.float32)},
        )

    @property
    def item_signature(self):
        dtype = tf.string if self.padding_id == "" else tf.int64
        return {"item_id": tf.TensorSpec([None], dtype), **self.query_signature}

    def embed(self, tower, features):
        return features["vector"].numpy() * self.scale

    def contains(self, ids):
        return np.isin(np.asarray(ids), self.ids)

    def answer(self, vectors, asked):
        kept = np.ones([len(vectors), len(self)], bool)
        kept &= ~self._marks(self.ids, asked.exclude, self.padding_id, False)
        kept &= self._marks(self.ids, asked.allow, self.padding_id, True)
        kept &= self._marks(self.groups, asked.allow_groups, self.nature.group_padding, True)
        scores = np.where(kept, vectors @ self.vectors.T, np.float32(-np.inf))
        order = np.argsort(-scores, axis=1, kind="stable")[:, : asked.k]
        scores = np.take_along_axis(scores, order, 1)
        return scores, np.where(scores == -np.inf, self.padding_id, self.ids[order])

    def _marks(self, values, lists, padding, without):
        if lists is None:
            return np.bool_(without)
        rows = lists.astype(str) if padding == "" else lists
        marks = [np.isin(values, row) & (values != padding) for row in rows]
        return np.array(marks).reshape(len(rows), len(values))
