"""A slow exact index of plain arrays, and what any index should answer, for the tests."""

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.index.arguments import check_features, check_k, check_lists, check_vectors
from tfrs_negatives.index.retriever import Retriever


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
    def padding_id(self):
        return "" if self.ids.dtype.kind == "U" else -1

    @property
    def query_signature(self):
        return {"vector": tf.TensorSpec([None, self.width], tf.float32)}

    @property
    def item_signature(self):
        dtype = tf.string if self.padding_id == "" else tf.int64
        return {"item_id": tf.TensorSpec([None], dtype), **self.query_signature}

    @property
    def width(self):
        return self.vectors.shape[1]

    def embed_query(self, features):
        return check_features(features, self.query_signature)["vector"].numpy() * self.scale

    def embed_item(self, features):
        return check_features(features, self.item_signature)["vector"].numpy() * self.scale

    def contains(self, ids):
        return np.isin(np.asarray(ids), self.ids)

    def search(self, vectors, k, *, exclude=None, allow=None, allow_groups=None):
        k = check_k(k, len(self), f"at most the {len(self)} items of the index")
        queries = check_vectors(vectors, self.width)
        kept = np.ones([len(queries), len(self)], bool)
        kept &= ~self._marks(self.ids, exclude, kept, "exclude", False)
        kept &= self._marks(self.ids, allow, kept, "allow", True)
        if allow_groups is not None and self.groups is None:
            raise bad_input("allow_groups", "None: the index has no groups", repr(allow_groups))
        kept &= self._marks(self.groups, allow_groups, kept, "allow_groups", True)
        scores = np.where(kept, queries @ self.vectors.T, np.float32(-np.inf))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        scores = np.take_along_axis(scores, order, 1)
        return scores, np.where(scores == -np.inf, self.padding_id, self.ids[order])

    def _marks(self, values, lists, kept, argument, without):
        if lists is None:
            return np.full(kept.shape, without)
        padding = "" if values.dtype.kind == "U" else -1
        rows = check_lists(lists, len(kept), argument=argument, padding=padding)
        rows = rows.astype(str) if padding == "" else rows
        marks = [np.isin(values, row) & (values != padding) for row in rows]
        return np.array(marks).reshape(len(rows), len(values))
