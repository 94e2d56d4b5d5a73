"""One corpus in several indexes, which are asked at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tfrs_negatives.index.arguments import FeatureSignature, check_k, check_lists, check_vectors
from tfrs_negatives.index.build import Index
from tfrs_negatives.index.load import LoadedIndex
from tfrs_negatives.index.merging import Answer, merge_answers
from tfrs_negatives.index.retriever import Retriever
from tfrs_negatives.types import Features, bad_input


class ShardedIndex(Retriever):
    """Asks all of its shards and merges what they find.

    The first shard embeds; all hold vectors of one model. Scores are inner products everywhere, so
    the answer is that of one index of all items, at the recall of the shards. An item must be in
    one shard only. That is checked among indexes in memory; elsewhere an item that is in two comes
    back twice.

    Args:
        shards: at least one, of the same ids, features and width.

    Raises:
        InputError: if there is none, two do not fit together, or an item is in two.

    Example:
        >>> from types import SimpleNamespace
        >>> import tensorflow as tf
        >>> from tfrs_negatives.encode.catalogue import ItemCatalogue
        >>> from tfrs_negatives.index.build import build_index
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue([10], {"value": [0.0]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.float32)},
        ...     query_vectors=lambda features: features["user"][:, None],
        ...     item_vectors=lambda features: features["value"][:, None],
        ... )
        >>> first = build_index(model, ids=[10, 20], vectors=np.array([[3.0], [1.0]]))
        >>> second = build_index(model, ids=[30], vectors=np.array([[2.0]]))
        >>> index = ShardedIndex([first, second])
        >>> index.top_k({"user": [1.0]}, k=3)[1].tolist()
        [[10, 30, 20]]
    """

    def __init__(self, shards: Sequence[Retriever]) -> None:
        if not isinstance(shards, Sequence) or not shards:
            raise bad_input("shards", "a list of at least one index", repr(shards))
        wanted = _traits(shards[0])
        for number, shard in enumerate(shards):
            for trait, value in _traits(shard).items():
                if trait in wanted and value != wanted[trait]:
                    expected = f"the {trait} of the first shard, {wanted[trait]!r}"
                    raise bad_input(f"shards[{number}]", expected, repr(value))
        _check_apart([shard.ids for shard in shards if isinstance(shard, Index)])
        self._shards = tuple(shards)
        self._threads = ThreadPoolExecutor(len(shards), thread_name_prefix="shard")

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    @property
    def shards(self) -> tuple[Retriever, ...]:
        """The indexes that it asks."""
        return self._shards

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return self._shards[0].padding_id

    @property
    def query_signature(self) -> FeatureSignature:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of a query."""
        return self._shards[0].query_signature

    @property
    def item_signature(self) -> FeatureSignature:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the item tower reads."""
        return self._shards[0].item_signature

    @property
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""
        return self._shards[0].width

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        return self._shards[0].embed_query(features)

    def embed_item(self, features: Features) -> np.ndarray:
        """Returns [m, D] float32: the vectors of a batch of item features, known or new."""
        return self._shards[0].embed_item(features)

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that one of the shards holds."""
        found: np.ndarray = np.any([shard.contains(ids) for shard in self._shards], axis=0)
        return found

    def search(
        self,
        vectors: Any,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> Answer:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""
        k = check_k(k, len(self), f"at most the {len(self)} items of the index")
        queries, padding = check_vectors(vectors, self.width), self.padding_id
        lists = {
            name: check_lists(given, len(queries), argument=name, padding=padding)
            for name, given in {"exclude": exclude, "allow": allow}.items()
        }
        # As callers hand them in: one list for all queries has one dimension.
        filters: dict[str, Any] = {
            name: rows[0] if rows is not None and len(rows) == 1 else rows
            for name, rows in lists.items()
        }

        def ask(shard: Retriever) -> Answer:
            size = min(k, len(shard))
            return shard.search(queries, size, allow_groups=allow_groups, **filters)

        # A shard may have lost all its items.
        asked = [shard for shard in self._shards if len(shard)]
        return merge_answers(list(self._threads.map(ask, asked)), k, padding)


def _traits(shard: Retriever) -> dict[str, Any]:
    """What all shards must have alike; the similarity where the index knows it."""
    traits = {
        "width": shard.width,
        "padding_id": shard.padding_id,
        "query_signature": _plain(shard.query_signature),
        "item_signature": _plain(shard.item_signature),
    }
    if isinstance(shard, Index):
        traits["similarity"] = shard.model.similarity
    elif isinstance(shard, LoadedIndex):
        traits["similarity"] = shard.manifest["similarity"]
    return traits


def _check_apart(ids: list[np.ndarray]) -> None:
    if not ids:
        return
    known, counts = np.unique(np.concatenate(ids), return_counts=True)
    if (counts > 1).any():
        repeated = known[counts > 1]
        received = f"{len(repeated)} in two, the first is {repeated[0].item()!r}"
        raise bad_input("shards", "every item in one shard", received)


def _plain(signature: FeatureSignature) -> dict[str, Any]:
    # Without the names of the tensors, which differ between a model and its export.
    return {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in signature.items()}
