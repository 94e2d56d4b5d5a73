"""The index of a trained model: built in memory, exported as a SavedModel, loaded anywhere.

Example:
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> import tensorflow as tf
    >>> from tfrs_negatives.data.catalogue import ItemCatalogue
    >>> users = tf.Variable([[1.0, 0.0], [0.0, 1.0]])
    >>> vectors = tf.constant([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    >>> model = SimpleNamespace(
    ...     items=ItemCatalogue([10, 20, 30], {"row": [0, 1, 2]}),
    ...     similarity="dot",
    ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
    ...     query_vectors=lambda features: tf.gather(users, features["user"]),
    ...     item_vectors=lambda features: tf.gather(vectors, features["row"]),
    ... )
    >>> path = export_index(
    ...     build_index(model), tempfile.mkdtemp() + "/index", ks=[2], check=False
    ... )
    >>> index = load_index(path)
    >>> scores, ids = index.top_k({"user": [0, 1]}, k=2)
    >>> ids.tolist(), scores.tolist()
    ([[10, 30], [30, 20]], [[3.0, 2.0], [2.0, 1.0]])
    >>> index.manifest["kind"], index.manifest["padding"]
    ('exact', {'id': -1, 'score': '-inf'})
"""

from tfrs_negatives.index.build.build import Index, build_index
from tfrs_negatives.index.build.parquet import vectors_to_parquet
from tfrs_negatives.index.live.delta import DeltaIndex
from tfrs_negatives.index.live.index import LiveIndex
from tfrs_negatives.index.live.shards import ShardedIndex, export_shards, load_shards
from tfrs_negatives.index.retriever import Retriever
from tfrs_negatives.index.saved.export import ExportError, export_index
from tfrs_negatives.index.saved.load import LoadedIndex, load_index
from tfrs_negatives.model.corpus import embed_items

__all__ = [
    "DeltaIndex",
    "ExportError",
    "Index",
    "LiveIndex",
    "LoadedIndex",
    "Retriever",
    "ShardedIndex",
    "build_index",
    "embed_items",
    "export_index",
    "export_shards",
    "load_index",
    "load_shards",
    "vectors_to_parquet",
]
