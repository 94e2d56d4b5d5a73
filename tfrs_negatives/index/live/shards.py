"""A corpus in parts: each built, exported and searched alone, the answers merged by score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted, write_text
from tfrs_negatives.index.build.build import build_index
from tfrs_negatives.index.retriever import (
    Asked,
    Retriever,
    is_positive_integer,
)
from tfrs_negatives.index.saved.export import export_index
from tfrs_negatives.index.saved.load import LoadedIndex, load_index
from tfrs_negatives.model.corpus import check_item_vectors, embed_items
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.model.top_k import Answer, merge_answers

_SHARDS_NAME = "shards.json"


class ShardedIndex(Retriever):
    """Several indexes of different items that answer as one.

    A query is embedded once, by the first. Every one is asked for k items, and the best of all are
    kept: an answer is exact where the parts are. Each part uses all cores, so they are asked in
    turn. An item that stands in two of them would come back twice: it is not looked for.

    Args:
        shards: at least one, all with the same features, width and kind of ids, and made with the
            same model, so that their scores can be compared.

    Raises:
        InputError: if there is none, or two differ.

    Example:
        >>> from types import SimpleNamespace
        >>> import tensorflow as tf
        >>> from tfrs_negatives.data.catalogue import ItemCatalogue
        >>> vectors = np.array([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]], np.float32)
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue([10, 20, 30], {"row": [0, 1, 2]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(tf.eye(2), features["user"]),
        ...     item_vectors=lambda features: tf.gather(tf.constant(vectors), features["row"]),
        ... )
        >>> parts = [
        ...     build_index(model, ids=[10, 20], vectors=vectors[:2]),
        ...     build_index(model, ids=[30], vectors=vectors[2:]),
        ... ]
        >>> ShardedIndex(parts).top_k({"user": [0]}, k=3)[1].tolist()
        [[10, 30, 20]]
    """

    def __init__(self, shards: Sequence[Retriever]) -> None:
        if not shards:
            raise bad_input("shards", "at least one index", "none")
        self._shards = tuple(shards)
        # Not every index knows all of it: what the first one says that does.
        known: dict[str, tuple[int, Any]] = {}
        for number, shard in enumerate(shards):
            for name, value in _nature(shard).items():
                before, wanted = known.setdefault(name, (number, value))
                if value != wanted:
                    received = f"{name} {value} in number {number}, {wanted} in number {before}"
                    raise bad_input("shards", "indexes of the same model", received)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    @property
    def shards(self) -> tuple[Retriever, ...]:
        """The indexes that it asks."""
        return self._shards

    @property
    def behind(self) -> Retriever:
        """The index whose model it has."""
        return self._shards[0]

    def contains(self, ids: Any) -> np.ndarray:
        """Returns [m] bool: whether each of some ids is an item of any part."""
        found: np.ndarray = np.any([shard.contains(ids) for shard in self._shards], axis=0)
        return found

    def answer(self, vectors: np.ndarray, asked: Asked) -> Answer:
        """Finds the best items for checked query vectors [B, D] float32; see `top_k`."""
        # One that changes may have lost all its items.
        parts = [shard for shard in self._shards if len(shard)]
        answers = [s.answer(vectors, asked._replace(k=min(asked.k, len(s)))) for s in parts]
        return merge_answers(answers, asked.k, self.padding_id)


def export_shards(
    model: RetrievalModel,
    path: str | Path,
    *,
    byte_budget: int,
    vectors: np.ndarray | str | Path | None = None,
    batch_size: int = 4096,
    ks: Sequence[int] = (10, 100),
    check: bool = True,
    **options: Any,
) -> Path:
    """Exports the catalogue of a model in parts whose vectors fit a budget, one after the other.

    Only the vectors of one part are in memory, those of all in a memory-mapped file.

    Args:
        model: embeds the items.
        path: the folder to make; a folder for each part comes into it, and it appears when all are
            written.
        byte_budget: bytes of float32 that the vectors of one part may take. The index of a part
            takes about three times as much while it is built.
        vectors: [N, D] of the items where they are embedded already, or the `.npy` file that
            `embed_items` wrote; None embeds into a file beside the parts, which goes at the end.
        batch_size: items that are embedded at once.
        ks: how many results the signatures answer with; a smaller part takes those it can.
        check: whether another process must give the same answers, part by part.
        **options: of `build_index`: `kind`, `target_recall`, `probe_queries`, ...

    Returns:
        The path.

    Raises:
        InputError: if the folder is there, the budget does not hold one vector, or an option is
            wrong.
    """
    target = Path(path).resolve()
    if target.exists():
        raise bad_input("path", "a new folder", f"{target}, which exists")
    ids = model.items.ids
    with drafted(target, argument="path") as work:
        if vectors is None:
            mapped = embed_items(model, batch_size, out=work / "vectors.npy")
        else:
            mapped = check_item_vectors(vectors, len(ids))
        parts = _parts(len(ids), mapped.shape[1], byte_budget)
        for number, part in enumerate(parts):
            index = build_index(model, ids=ids[part], vectors=np.array(mapped[part]), **options)
            fitting = [k for k in ks if k <= len(index)] or [len(index)]
            export_index(index, work / _name(number), ks=fitting, check=check)
        (work / "vectors.npy").unlink(missing_ok=True)
        write_text(work / _SHARDS_NAME, json.dumps({"shards": len(parts)}) + "\n")
    return Path(path)


def load_shards(path: str | Path) -> ShardedIndex:
    """Loads what `export_shards` wrote, every file checked against its manifest.

    Raises:
        InputError: if it is no such folder, or a part is missing, truncated or changed.
    """
    folder = Path(path)
    try:
        count = json.loads((folder / _SHARDS_NAME).read_text(encoding="utf-8"))["shards"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise bad_input("path", f"a folder with {_SHARDS_NAME}", folder) from error
    if not is_positive_integer(count):
        raise bad_input(str(folder / _SHARDS_NAME), "a number of parts", repr(count))
    return ShardedIndex([load_index(folder / _name(number)) for number in range(count)])


def _parts(num_items: int, width: int, byte_budget: int) -> list[slice]:
    bytes_of_one = 4 * width
    if not is_positive_integer(byte_budget) or byte_budget < bytes_of_one:
        raise bad_input("byte_budget", f"at least {bytes_of_one}, one vector", repr(byte_budget))
    # Parts of equal size: the last one is not to be a rest of a few.
    count = -(-num_items // (byte_budget // bytes_of_one))
    bounds = [num_items * number // count for number in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(bounds)]


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _nature(shard: Retriever) -> dict[str, Any]:
    nature: dict[str, Any] = {"width": shard.width, "padding id": shard.padding_id}
    for name, signature in (
        ("query features", shard.query_signature),
        ("item features", shard.item_signature),
    ):
        nature[name] = {n: (s.dtype.name, s.shape.as_list()) for n, s in signature.items()}
    if isinstance(shard, LoadedIndex):
        nature["similarity"] = shard.manifest["similarity"]
    return nature
