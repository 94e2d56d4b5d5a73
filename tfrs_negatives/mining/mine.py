"""A model and a log -> a Parquet file with the hard negatives of each query, in chunks."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from rich.console import Console
from rich.progress import track

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.files import drafted_file
from tfrs_negatives.core.types import Columns
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.id_lists import query_column
from tfrs_negatives.data.ids import to_keys
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.data.query_items import QueryItems
from tfrs_negatives.mining.rules import Choice, Found, MiningRules, MiningSummary, apply_rules
from tfrs_negatives.model.corpus import embed_items, embed_queries
from tfrs_negatives.model.retrieval_model import RetrievalModel
from tfrs_negatives.model.top_k import Answer, exact_top_k
from tfrs_negatives.towers.signature import check_features


class ModelIndex(Protocol):
    """What a mining asks of an index; `build_index` makes one."""

    @property
    def model(self) -> RetrievalModel:
        """The model whose items it holds, in the order of the catalogue."""

    @property
    def kind(self) -> str:
        """How it searches, for the metadata of the file."""

    @property
    def recall(self) -> dict[str, Any]:
        """What it was measured to find, likewise."""

    def best_rows(self, vectors: np.ndarray, k: int) -> Answer:
        """Returns scores [B, k] and catalogue rows [B, k]; -inf and -1 without an item."""


_COLUMNS = ("ids", "ranks", "scores", "positive_score")


def mine_hard_negatives(
    model: RetrievalModel,
    log: Interactions,
    catalogue: ItemCatalogue | None = None,
    *,
    out: str | Path,
    index: ModelIndex | None = None,
    rank_range: tuple[int, int] = (1, 100),
    relative_margin: float | None = None,
    num: int = 4,
    choose: Choice = "top",
    seed: int = 0,
    batch_size: int = 2048,
    progress: bool = False,
) -> MiningSummary:
    """Writes the items that the model ranks high for each query and that it has not chosen.

        keep(q, j) = no event (q, j) in the log, j in the catalogue, low <= rank(q, j) <= high,
                     and s_qj <= p_q - relative_margin |p_q|

    with the score s, the rank from 1 among the items that are no positive of q, and the mean score
    p of the positives of q. Of what is kept `num` are chosen.

    The limit is the mean because a query has many positives and one list: below the best of them is
    what outscores most of the others, and below the worst, perhaps one odd event, hardly anything.

    The file has a row per query: its key, `ids`, `ranks` and `scores` (lists, the best first), and
    `positive_score`, p. Its metadata are `query_key`, `settings` and `summary` (JSON)::

        json.loads(pq.read_metadata("mined.parquet").metadata[b"summary"])

    Beside the index, the log and a vector per item, memory is that of `batch_size` queries, each
    with the last rank and its history. How many items are asked for depends on that history only,
    so the size changes nothing; ScaNN alone may answer a few queries of a batch of another size a
    little differently.

    Args:
        model: whose query and item vectors rank.
        log: the E training events, never the test part. Each distinct query is answered once, with
            the features of its first event. Without a `query_key` each event is a query, known by
            its row number in the column `query`.
        catalogue: the items that may become negatives; None is the model's own. The others keep
            their ranks.
        out: the Parquet file; one that is there is replaced, and nothing half-written stays.
        index: of the model as it is now, by `build_index`; None scores every item.
        rank_range: the first and the last rank that may be chosen. A window that begins later has
            fewer items that the query would have chosen, had it seen them.
        relative_margin: distance that a negative keeps from the positives, as a share of their
            score: 0.05 asks for 95% of it, below 0 lets negatives score higher. None does not ask.
        num: how many negatives a query gets, at most.
        choose: "top" takes the best, "random" draws from all that are kept.
        seed: of the draws, at least 0; each query has its own.
        batch_size: queries, and items, that go through a tower at once.
        progress: whether to show a bar on standard error.

    Returns:
        How many items were retrieved, dropped by each rule, and kept.

    Raises:
        InputError: if an argument is out of range, the log is empty or has items that the model
            does not, the catalogue has ids of another kind, the index is of another model, a query
            is neither an integer nor a string, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> users, items = tf.eye(2), tf.constant([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
        >>> model = SimpleNamespace(
        ...     items=ItemCatalogue(["a", "b", "c"], {"row": [0, 1, 2]}),
        ...     similarity="dot",
        ...     query_signature={"user": tf.TensorSpec([None], tf.int64)},
        ...     query_vectors=lambda features: tf.gather(users, features["user"]),
        ...     item_vectors=lambda features: tf.gather(items, features["row"]),
        ... )
        >>> log = Interactions({"user": np.array([0, 1])}, np.array(["a", "b"]), query_key="user")
        >>> out = Path(tempfile.mkdtemp()) / "mined.parquet"
        >>> summary = mine_hard_negatives(model, log, out=out, num=1)
        >>> summary.retrieved, summary.dropped["positives"], summary.kept
        (6, 2, 2)
        >>> pq.read_table(out).column("ids").to_pylist()
        [['c'], ['c']]

    Source: `mine_hard_negatives` of sentence-transformers (rank window, relative margin, top or
        random); ANCE (Xiong et al., ICLR 2021) draws at random from the top 200. We differ: all
        positives of the query are removed, not one, and have no rank; the margin is to their mean.
    """
    began = time.perf_counter()
    if batch_size < 1:
        raise bad_input("batch_size", "at least 1", batch_size)
    rules = MiningRules(rank_range, relative_margin, num, choose, seed)
    if index is not None and index.model is not model:
        raise bad_input("index", "an index of the same model", "one of another")
    queries, counts = _group(log, model), Counter[str]()
    searcher = _Searcher(model, index, queries, catalogue or model.items, batch_size)
    schema, console = _schema(queries, searcher, rules), Console(stderr=True)
    with (
        drafted_file(Path(out), argument="out") as draft,
        pq.ParquetWriter(draft, schema) as writer,
    ):
        starts = range(0, len(queries.keys), batch_size)
        for begin in track(starts, "Mining", console=console, disable=not progress):
            chunk = searcher.embed(begin, min(begin + batch_size, len(queries.keys)))
            chosen, chunk_counts = searcher.mine(chunk, rules)
            writer.write_batch(_record_batch(chunk, chosen, model.items.ids, schema))
            counts.update(chunk_counts)
        summary = MiningSummary.from_counts(counts, time.perf_counter() - began)
        writer.add_key_value_metadata({"summary": json.dumps(asdict(summary))})
    return summary


class _Queries(NamedTuple):
    """The Q distinct queries of a log.

    Attributes:
        name: of the column with their keys.
        keys: [Q] integers or strings.
        features: name -> [Q, ...], what the model reads.
        positives: which items each has chosen.
    """

    name: str
    keys: np.ndarray
    features: Columns
    positives: QueryItems


def _group(log: Interactions, model: RetrievalModel) -> _Queries:
    if not len(log):
        raise bad_input("log", "at least one event", "an empty log")
    features, query_of_event = log.queries()
    if log.query_key is None:
        name, keys = "query", np.arange(len(log))
    else:
        name, keys = query_column(log, argument="log")[0], features[log.query_key]
    if name in _COLUMNS:
        raise bad_input("log.query_key", f"another name than {list(_COLUMNS)}", repr(name))
    read = {name: column for name, column in features.items() if name in model.query_signature}
    positives = QueryItems.distinct(query_of_event, log.item_rows(model.items))
    return _Queries(name, keys, read, positives)


class _Chunk(NamedTuple):
    """Some of the queries.

    Attributes:
        keys: [q] integers or strings.
        vectors: [q, D] float32.
        positives: which items each has chosen, the queries numbered from 0.
        lengths: [q] int64, how many these are.
        positive_score: [q] float32, their mean score.
    """

    keys: np.ndarray
    vectors: np.ndarray
    positives: QueryItems
    lengths: np.ndarray
    positive_score: np.ndarray


class _Chosen(NamedTuple):
    """Negatives, [m] each: the place of their query in the chunk, catalogue row, rank and score."""

    places: np.ndarray
    rows: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray


class _Searcher:
    """Answers chunks of the queries; what it holds is the same for all of them."""

    def __init__(
        self,
        model: RetrievalModel,
        index: ModelIndex | None,
        queries: _Queries,
        catalogue: ItemCatalogue,
        batch_size: int,
    ) -> None:
        self.model, self.index, self.queries = model, index, queries
        items = model.items
        if (catalogue.ids.dtype.kind == "U") != (items.ids.dtype.kind == "U"):
            expected = f"ids of dtype {items.ids.dtype}, as the model has"
            raise bad_input("catalogue", expected, catalogue.ids.dtype)
        # One entry more, the last, for a column without an item: its row is -1.
        self.may_be_negative = np.append(catalogue.rows_of_keys(items.keys).numpy() >= 0, False)
        self.item_vectors = tf.constant(embed_items(model, batch_size))

    def describe(self) -> dict[str, Any]:
        """Says how it searches."""
        if self.index is None:
            measured = {"k": min(10, len(self.item_vectors)), "recall": 1.0}
            return {"index": "exact", "recall": {**measured, "num_queries": 0, "probes": "exact"}}
        return {"index": self.index.kind, "recall": self.index.recall}

    def embed(self, begin: int, end: int) -> _Chunk:
        """Returns the queries begin to end - 1."""
        features = {name: column[begin:end] for name, column in self.queries.features.items()}
        tensors = check_features(features, self.model.query_signature)
        vectors = embed_queries(self.model, tensors, end - begin)
        positives = self.queries.positives.of(np.arange(begin, end))
        lengths = np.bincount(positives.queries, minlength=end - begin)
        # The mean score is the score of the mean vector, which needs no vector for each pair.
        shape = (end - begin, len(self.item_vectors))
        ones = tf.ones([len(positives.rows)])
        chosen = tf.SparseTensor(np.stack(positives, axis=1), ones, shape)
        means = tf.sparse.sparse_dense_matmul(chosen, self.item_vectors) / lengths[:, None]
        positive_score = np.einsum("qd,qd->q", vectors, means) - self._surplus(vectors)
        return _Chunk(self.queries.keys[begin:end], vectors, positives, lengths, positive_score)

    def _surplus(self, vectors: np.ndarray) -> np.ndarray:
        """Returns [q] float32: by how much the products with query vectors exceed the scores."""
        if self.model.similarity != "euclidean":
            return np.zeros(len(vectors), np.float32)
        # They are (2u, 1), and lack the -|u|^2 that would tell the distance of the nearest.
        surplus: np.ndarray = np.square(vectors[:, :-1] / 2).sum(axis=1)
        return surplus

    def mine(self, chunk: _Chunk, rules: MiningRules) -> tuple[_Chosen, Counter[str]]:
        """Returns the negatives of a chunk in the order of its queries, and the counts."""
        # One column for each positive, rounded up so that few different numbers are asked for. The
        # longest history of the chunk would make an answer depend on the neighbours.
        extra = 2 ** np.ceil(np.log2(chunk.lengths)).astype(np.int64)
        counts, parts = Counter(queries=len(chunk.keys)), []
        for more in np.unique(extra):
            places = np.flatnonzero(extra == more)
            found = self._search(
                chunk, places, min(rules.rank_range[1] + more, len(self.item_vectors))
            )
            chosen, ranks, dropped = apply_rules(found, rules)
            at = np.nonzero(chosen)
            parts.append((places[at[0]], found.rows[at], ranks[at], found.scores[at]))
            counts.update(dropped)
        joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
        # Stable: those of a query stay in the order of their ranks.
        order = np.argsort(joined[0], kind="stable")
        per_query = np.bincount(joined[0], minlength=len(chunk.keys))
        counts.update(short=int((per_query < rules.num).sum()), empty=int((per_query == 0).sum()))
        return _Chosen(*(column[order] for column in joined)), counts

    def _search(self, chunk: _Chunk, places: np.ndarray, k: int) -> Found:
        vectors = chunk.vectors[places]
        if self.index is None:
            scores, rows = exact_top_k(vectors, self.item_vectors, k)
        else:
            scores, rows = self.index.best_rows(vectors, k)
        return Found(
            scores - self._surplus(vectors)[:, None],
            rows,
            is_positive=chunk.positives.holds(places[:, None], rows),
            may_be_negative=self.may_be_negative[rows],
            positive_score=chunk.positive_score[places],
            query_keys=to_keys(chunk.keys[places]).numpy(),
        )


def _schema(queries: _Queries, searcher: _Searcher, rules: MiningRules) -> pa.Schema:
    ids = _arrow_type(searcher.model.items.ids)
    types = [pa.list_(ids), pa.list_(pa.int32()), pa.list_(pa.float32()), pa.float32()]
    fields = [(queries.name, _arrow_type(queries.keys)), *zip(_COLUMNS, types, strict=True)]
    settings = {**asdict(rules), **searcher.describe()}
    return pa.schema(fields, {"query_key": queries.name, "settings": json.dumps(settings)})


def _arrow_type(ids: np.ndarray) -> pa.DataType:
    return pa.string() if ids.dtype.kind == "U" else pa.int64()


def _record_batch(
    chunk: _Chunk, chosen: _Chosen, item_ids: np.ndarray, schema: pa.Schema
) -> pa.RecordBatch:
    lengths = np.bincount(chosen.places, minlength=len(chunk.keys))
    starts = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    values = (item_ids[chosen.rows], chosen.ranks, chosen.scores)
    lists = [
        pa.ListArray.from_arrays(starts, pa.array(column, field.type.value_type))
        for column, field in zip(values, list(schema)[1:4], strict=True)
    ]
    keys = pa.array(chunk.keys, schema.types[0])
    return pa.RecordBatch.from_arrays([keys, *lists, pa.array(chunk.positive_score)], schema=schema)
