"""Ids and vectors as a Parquet file, as vector databases import them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted_file
from tfrs_negatives.data.ids import as_ids
from tfrs_negatives.index.retriever import is_positive_integer
from tfrs_negatives.model.corpus import check_item_vectors


def vectors_to_parquet(
    path: str | Path,
    ids: Any,
    vectors: np.ndarray | str | Path,
    *,
    rows_per_group: int = 65_536,
) -> Path:
    """Writes a file of the columns `id` and `vector`, in row groups, so that memory is bounded.

    `vector` is a list of fixed size, D floats of 32 bits: what DuckDB, LanceDB, Milvus, Qdrant's
    and pgvector's loaders read as a vector. The score is the inner product.

    Args:
        path: the file; one that is there is replaced once the new one is complete.
        ids: [N] integers or strings.
        vectors: [N, D] numbers, or the `.npy` file that `embed_items` wrote.
        rows_per_group: rows that are in memory at once.

    Returns:
        The path.

    Raises:
        InputError: if lengths differ, a number is not finite, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> import pyarrow.parquet as pq
        >>> folder = Path(tempfile.mkdtemp())
        >>> path = vectors_to_parquet(folder / "items.parquet", ["a", "b"], np.eye(2))
        >>> pq.read_table(path).to_pylist()
        [{'id': 'a', 'vector': [1.0, 0.0]}, {'id': 'b', 'vector': [0.0, 1.0]}]
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not is_positive_integer(rows_per_group):
        raise bad_input("rows_per_group", "a positive integer", repr(rows_per_group))
    ids = as_ids(ids, "ids", are_items=True)
    rows = check_item_vectors(vectors, len(ids))
    kind = pa.int64() if ids.dtype.kind in "iu" else pa.string()
    vector = pa.list_(pa.float32(), rows.shape[1])
    schema = pa.schema([("id", kind), ("vector", vector)])
    with (
        drafted_file(Path(path), argument="path") as draft,
        pq.ParquetWriter(draft, schema) as writer,
    ):
        for start in range(0, len(ids), rows_per_group):
            part = slice(start, start + rows_per_group)
            flat = pa.array(np.ascontiguousarray(rows[part], np.float32).ravel())
            columns = [
                pa.array(ids[part].tolist(), kind),
                pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]),
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    return Path(path)
