"""An index that is a graph, and one restored where nothing is known of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import Features
from tfrs_negatives.index.retriever import Asked, Nature, Retriever, TowerName, check_lists
from tfrs_negatives.index.saved.archive import read_manifest
from tfrs_negatives.index.search.backends import scann_ops
from tfrs_negatives.model.top_k import Answer, in_parts, queries_at_once
from tfrs_negatives.towers.signature import FeatureSignature, FeatureSpecs, check_features


class GraphRetriever(Retriever):
    """An index whose answers come from the graph of `Answers`, traced here or restored."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind of its search, "exact" or "scann"."""

    @property
    @abstractmethod
    def functions(self) -> tuple[Any, Any]:
        """`answer` and `contains`, as `Answers.functions` returns them."""

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item that it holds."""
        wanted = check_lists(list(ids), 1, argument="ids", padding=self.padding_id)
        assert wanted is not None  # noqa: S101
        found: np.ndarray = self.functions[1](_as_tensor(wanted[0])).numpy()
        return found

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`."""
        lists = self._lists(asked)

        def search(part: slice) -> Answer:
            of_part = [_rows(ids, part) for ids in lists]
            found = self.functions[0](tf.constant(vectors[part]), tf.constant(asked.k), *of_part)
            return found["scores"].numpy(), plain_ids(found["ids"].numpy())

        filtered = lists[0] is not None
        at_once = queries_at_once(len(self), kind=self.kind, filtered=filtered)
        return in_parts(search, len(vectors), at_once)

    def _lists(self, asked: Asked) -> list[tf.Tensor | None]:
        """Returns what the graph reads: it has no filter without `exclude`."""
        lists = [asked.exclude, asked.allow, asked.allow_groups]
        if lists[0] is None and any(ids is not None for ids in lists):
            lists[0] = np.empty([1, 0], object if isinstance(self.padding_id, str) else np.int64)
        return [None if ids is None else _as_tensor(ids) for ids in lists]


class LoadedIndex(GraphRetriever):
    """An exported index. Made by `load_index`.

    Attributes:
        manifest: what the export says about itself.
    """

    def __init__(self, module: Any, manifest: dict[str, Any]) -> None:
        # The signatures do not keep alive the variables that they read.
        self._module = module
        self._functions = _graphs_of(module.answer), _graphs_of(module.contains)
        self.manifest = manifest
        groups = manifest["group_by"]
        self._nature = Nature(
            manifest["width"],
            manifest["padding"]["id"],
            None if groups is None else groups["padding"],
            _signature(manifest["query_features"]),
        )
        self._item_signature = _signature(manifest["item_features"])

    def __len__(self) -> int:
        return int(self.manifest["num_items"])

    @property
    def kind(self) -> str:
        """The kind of its search, "exact" or "scann"."""
        return str(self.manifest["kind"])

    @property
    def nature(self) -> Nature:
        """What has to be known to ask it."""
        return self._nature

    @property
    def item_signature(self) -> FeatureSpecs:
        """Name -> `tf.TensorSpec` ([None, ...]) of every feature that the item tower reads."""
        return self._item_signature

    @property
    def functions(self) -> tuple[Any, Any]:
        """`answer` and `contains`, restored."""
        return self._functions

    def embed(self, tower: TowerName, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of checked features."""
        signature = self._module.signatures[f"embed_{tower}"]
        vectors: np.ndarray = signature(**features)["vectors"].numpy()
        return vectors

    def call(
        self, signature: str, features: Features, **lists: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Asks one signature, as a server of SavedModels does.

        Args:
            signature: "top_K", "serving_default", "with_exclusions", "with_allowed" or
                "with_allowed_groups".
            features: name -> [B, ...] of the queries.
            **lists: the filters that the signature takes, [B, W] each.

        Returns:
            scores [B, K] and ids [B, K].

        Raises:
            InputError: if there is no such signature, or a feature is malformed.
        """
        answering = [name for name in self.manifest["signatures"] if not name.startswith("embed_")]
        if signature not in answering:
            raise bad_input("signature", f"one of {answering}", repr(signature))
        tensors = check_features(features, self.query_signature)
        answer = self._module.signatures[signature](
            **tensors, **{name: tf.constant(lists[name]) for name in lists}
        )
        return answer["scores"].numpy(), plain_ids(answer["ids"].numpy())


def load_index(path: str | Path) -> LoadedIndex:
    """Loads an export, after checking every file against its manifest.

    Needs TensorFlow, this module, and ScaNN where the manifest lists its operations; nothing of
    the model.

    Args:
        path: the folder that `export_index` wrote. It may have been moved.

    Raises:
        InputError: if it is no export, or a file is missing, truncated or changed.
        ImportError: if it needs ScaNN and that is not installed.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if any(operation.startswith("Scann>") for operation in manifest["custom_ops"]):
        scann_ops()
    return LoadedIndex(tf.saved_model.load(str(folder)), manifest)


def _graphs_of(function: Any) -> Callable[..., Any]:
    # A restored function would be traced anew for every shape that comes, and keep all traces: its
    # graphs take any shape, and differ by which lists of ids they are given.
    graphs = {
        tuple(spec is not None for spec in graph.structured_input_signature[0]): graph
        for graph in function.concrete_functions
    }
    return lambda *inputs: graphs[tuple(tensor is not None for tensor in inputs)](*inputs)


def _signature(features: list[dict[str, Any]]) -> FeatureSignature:
    specs = {f["name"]: tf.TensorSpec(f["shape"], f["dtype"]) for f in features}
    return FeatureSignature(specs, may_miss=[f["name"] for f in features if f["may_miss"]])


def plain_ids(ids: np.ndarray) -> np.ndarray:
    """Returns ids as numpy users know them: strings are strings and no bytes."""
    return np.char.decode(ids.astype("S"), "utf-8") if ids.dtype == object else ids


def _as_tensor(lists: np.ndarray) -> tf.Tensor:
    return tf.constant(lists.astype(object) if lists.dtype.kind == "U" else lists)


def _rows(lists: tf.Tensor | None, part: slice) -> tf.Tensor | None:
    # One list for all queries stays one.
    return lists if lists is None or len(lists) == 1 else lists[part]
