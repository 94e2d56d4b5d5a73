"""An exported index in a process that knows nothing of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.index.archive import read_manifest
from tfrs_negatives.index.arguments import check_features, check_k
from tfrs_negatives.index.backends import scann_ops
from tfrs_negatives.types import Features


class LoadedIndex:
    """An exported index. Made by `load_index`.

    Attributes:
        manifest: what the export says about itself.
    """

    def __init__(self, module: Any, manifest: dict[str, Any]) -> None:
        # The signatures do not keep alive the variables that they read.
        self._module = module
        self.manifest = manifest
        self._query_signature = {
            feature["name"]: tf.TensorSpec(feature["shape"], feature["dtype"])
            for feature in manifest["query_features"]
        }

    def top_k(self, features: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Finds the best items for a batch of query features.

        Args:
            features: name -> [B, ...], exactly the features that the manifest lists.
            k: how many items, at most the largest exported k. The answer is the head of that for
                the smallest exported k that is large enough.

        Returns:
            scores [B, k] float32, falling, and ids [B, k]. A column for which nothing was found
            has score -inf and the id -1, or "" where ids are strings.

        Raises:
            InputError: if a feature is missing, unknown or malformed, or k is out of range.
        """
        ks = sorted(self.manifest["ks"])
        k = check_k(k, ks[-1], f"at most {ks[-1]}: exported were {ks}")
        exported = next(candidate for candidate in ks if candidate >= k)
        answer = self._call(f"top_{exported}", features)
        return answer["scores"].numpy()[:, :k], _plain_ids(answer["ids"].numpy()[:, :k])

    def embed_query(self, features: Features) -> np.ndarray:
        """Returns [B, D] float32: the vectors of a batch of query features."""
        vectors: np.ndarray = self._call("embed_query", features)["vectors"].numpy()
        return vectors

    def _call(self, signature: str, features: Features) -> dict[str, tf.Tensor]:
        tensors = check_features(features, self._query_signature)
        return self._module.signatures[signature](**tensors)


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


def _plain_ids(ids: np.ndarray) -> np.ndarray:
    return np.char.decode(ids.astype("S"), "utf-8") if ids.dtype == object else ids
