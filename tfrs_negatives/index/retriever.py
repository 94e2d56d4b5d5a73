"""What every index can do: the one in memory, an export, one that changes, several side by side."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from tfrs_negatives.core.types import Features
from tfrs_negatives.index.arguments import FeatureSpecs, check_lists

_log = logging.getLogger("tfrs_negatives")


class Retriever(ABC):
    """Answers which items a query is most likely to want, among those that the caller allows.

    Filters, the same everywhere: each is None, one list for all queries, or a list for each query.

    - `exclude`: ids that are not to come back. Ids that the index does not hold are ignored.
    - `allow`: ids of which alone the answer may consist; likewise. An empty list allows nothing.
    - `allow_groups`: values of the column that the index was grouped by, of which one must be the
      item's.

    An answer has exactly k columns, whatever the filters leave: scores [B, k] float32, falling, and
    ids [B, k]. A column without an item has score -inf and the id -1, or "" where ids are strings.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Returns how many items it holds; k is at most this."""

    @property
    @abstractmethod
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""

    @property
    @abstractmethod
    def query_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of a query."""

    @property
    @abstractmethod
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of an item, its id among them."""

    @property
    @abstractmethod
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""

    @abstractmethod
    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""

    @abstractmethod
    def embed_item(self, features: Features) -> np.ndarray:
        """Returns [m, D] float32: the vectors of a batch of item features, known or new."""

    @abstractmethod
    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""

    @abstractmethod
    def search(
        self,
        vectors: Any,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for query vectors [B, D] of the retrieval space; see `top_k`."""

    def top_k(
        self,
        features: Features,
        k: int,
        *,
        exclude: Any = None,
        allow: Any = None,
        allow_groups: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for a batch of query features.

        Args:
            features: name -> [B, ...], exactly the features of `query_signature`.
            k: how many items, at most as many as the index holds.
            exclude: ids that are not to come back: None, [E] for all queries, or B lists.
            allow: ids of which alone the answer may consist; likewise.
            allow_groups: groups of which one must be the item's; likewise.

        Returns:
            scores [B, k] float32, falling, and ids [B, k]. A column for which nothing was found
            has score -inf and the id -1, or "" where ids are strings.

        Raises:
            InputError: if a feature is missing, unknown or malformed, k is out of range, a list
                holds ids of another kind, or groups are asked for where the index has none.
        """
        vectors = self.embed_query(features)
        answer = self.search(vectors, k, exclude=exclude, allow=allow, allow_groups=allow_groups)
        for name, lists in {"exclude": exclude, "allow": allow}.items():
            self._warn_of_unknown(name, lists, num_queries=len(vectors))
        return answer

    def _warn_of_unknown(self, name: str, lists: Any, *, num_queries: int) -> None:
        """Says once of each filter, the first time it is used, where it knows none of its ids."""
        # Some are frozen data classes.
        looked_at: set[str] = self.__dict__.setdefault("_filters_looked_at", set())
        if name in looked_at:
            return
        ids = check_lists(lists, num_queries, argument=name, padding=self.padding_id)
        if ids is None:
            return
        looked_at.add(name)
        wanted = [i for row in ids.tolist() for i in row if i != self.padding_id]
        if wanted and not self.contains(wanted).any():
            unknown = f"{wanted[:3]} ..." if len(wanted) > 3 else f"{wanted}"
            _log.warning("`%s`: none of its ids is an item of the index: %s", name, unknown)


class InFront(Retriever):
    """An index in front of others, which embeds, and names ids and features, as one of them."""

    @property
    @abstractmethod
    def _model_of(self) -> Retriever:
        """The index whose model it has."""

    @property
    def padding_id(self) -> int | str:
        """The id of a column that holds no item: -1, or "" where ids are strings."""
        return self._model_of.padding_id

    @property
    def query_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of a query."""
        return self._model_of.query_signature

    @property
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature of an item, its id among them."""
        return self._model_of.item_signature

    @property
    def width(self) -> int:
        """The number of dimensions of its vectors, D."""
        return self._model_of.width

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        return self._model_of.embed_query(features)

    def embed_item(self, features: Features) -> np.ndarray:
        """Returns [m, D] float32: the vectors of a batch of item features, known or new."""
        return self._model_of.embed_item(features)
