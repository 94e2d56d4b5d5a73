"""A log of interactions in memory: one row per event, columns as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.types import WEIGHTS
from tfrs_negatives.data import frames, table_files
from tfrs_negatives.data.batch_order import check_batch_size, check_start_step, shuffled
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.data.columns import num_rows, read_column, row_numbers
from tfrs_negatives.data.groups import Moment, event_of_each
from tfrs_negatives.data.ids import as_ids, check_ids, check_same_kind, id_kind
from tfrs_negatives.data.resampling import resampled_rows
from tfrs_negatives.data.roles import as_feature, as_numbers, as_times, as_type
from tfrs_negatives.data.schema import Column, ColumnSpec, Schema


@dataclass(frozen=True)
class Interactions:
    """E events: who (query features), what (item id), and where known when and how much.

    Every column may come in any container (list, numpy, pandas, polars, Arrow, tensor); rows are
    counted by position. `from_pandas` and its sisters read whole tables by a schema.

    Attributes:
        query_features: name -> [E, ...].
        item_ids: [E] integers or texts.
        query_key: the query feature that says which events belong to one query (a user id); None
            where every event is a query of its own.
        timestamps: [E] seconds since 1970 (UTC), or dates, or texts in ISO 8601, which become such;
            None where they are unknown.
        weights: [E] float32, the example weights, or None.
        labels: [E] float32, such as ratings, or None.
        columns: what is declared of query features, such as that one may miss values
            (`Column("query", missing="own")`).

    Raises:
        InputError: if a column has another length, mixes kinds, lacks values that it may not lack,
            an id is no id, a weight is negative, `query_key` is no feature, or a feature that is
            declared constant changes.

    Example:
        >>> users = {"user_id": np.array([1, 1, 2])}
        >>> log = Interactions(users, np.array([7, 8, 7]), query_key="user_id")
        >>> len(log), len(log.queries()[0]["user_id"])
        (3, 2)
    """

    query_features: Mapping[str, np.ndarray]
    item_ids: np.ndarray
    query_key: str | None = None
    timestamps: np.ndarray | None = None
    weights: np.ndarray | None = None
    labels: np.ndarray | None = None
    columns: Mapping[str, ColumnSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        schema = Schema(self.columns)
        self._check_names(schema)
        self._check_lengths()
        self._set(item_ids=as_ids(self.item_ids, "item_ids", are_items=True))
        features = {n: self._read(column, n, schema) for n, column in self.query_features.items()}
        key = {} if self.query_key is None else {self.query_key: Column("query_id")}
        self._set(query_features=features, columns={**key, **schema.columns})
        if self.timestamps is not None:
            self._set(timestamps=as_times(self.timestamps, "timestamps"))
        for name in ("weights", "labels"):
            if getattr(self, name) is not None:
                self._set(**{name: as_numbers(getattr(self, name), name)})
        if self.weights is not None and len(self.weights) and self.weights.min() < 0:
            raise bad_input("weights", "no negative weight", self.weights.min())
        self._check_declared(schema)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _read(self, column: Any, name: str, schema: Schema) -> np.ndarray:
        wanted = schema.type_of(name)
        if name == self.query_key:
            return check_ids(as_type(read_column(column, name), name, wanted), name)
        feature = as_feature(column, name, may_miss=name in schema.may_miss, wanted=wanted)
        if name in schema.names("history") and feature.ndim == 2 and not feature.shape[1]:
            # Nobody has chosen anything yet: no element says which kind they would be of.
            return np.empty(feature.shape, np.asarray(self.item_ids).dtype)
        return feature

    def _check_names(self, schema: Schema) -> None:
        if not isinstance(self.query_features, Mapping):
            expected = "a dict, name -> column"
            raise bad_input("query_features", expected, type(self.query_features).__name__)
        for name in self.query_features:
            if not isinstance(name, str):
                raise bad_input("query_features", "names that are texts", repr(name))
        if self.query_key is not None and self.query_key not in self.query_features:
            raise bad_input("query_key", f"one of {sorted(self.query_features)}", self.query_key)
        if WEIGHTS in self.query_features:
            expected = f"no feature named {WEIGHTS!r}, which weighs the rows of a batch"
            raise bad_input("query_features", expected, sorted(self.query_features))
        schema.check_against(self.query_features, where="the query features")

    def _check_lengths(self) -> None:
        others = {"timestamps": self.timestamps, "weights": self.weights, "labels": self.labels}
        num_events = num_rows(self.item_ids, "item_ids")
        for name, column in {**self.query_features, **others}.items():
            if column is not None and num_rows(column, name) != num_events:
                received = f"{num_rows(column, name)} rows"
                raise bad_input(name, f"{num_events} rows, one per event", received)

    def _check_declared(self, schema: Schema) -> None:
        for name in schema.names("history"):
            history = self.query_features[name]
            if history.ndim != 2 or history.dtype.kind not in "iU":
                raise bad_input(name, "a list of item ids per row", f"dtype {history.dtype}")
            check_same_kind(name, id_kind(history), id_kind(self.item_ids), other_name="item_ids")
        changing = [n for n in schema.names("constant") if n in self._changing()]
        if changing:
            expected = "one value in all events of a query, as it is declared constant"
            raise bad_input(changing[0], expected, "values that change within a query")

    @classmethod
    def from_pandas(cls, frame: Any, columns: Mapping[str, ColumnSpec]) -> Interactions:
        """Reads a log from a pandas frame; its index is not read.

        Args:
            frame: one row per event.
            columns: name -> role or `Column`, see there. Columns that are not named are not read.

        Returns:
            The log, in the order of the rows.

        Raises:
            InputError: for a column that does not exist, or that is not what it is declared to be.

        Example:
            >>> import pandas as pd
            >>> frame = pd.DataFrame({"user": ["a", "b"], "item": [7, 8], "age": [20, None]})
            >>> columns = {"user": "query_id", "item": "item_id"}
            >>> columns["age"] = Column("query", missing="own")
            >>> Interactions.from_pandas(frame, columns).query_features["age"].tolist()
            [20.0, nan]
        """
        schema = Schema(columns)
        return cls(**frames.log_arguments(frames.frame_columns(frame, schema), schema))

    @classmethod
    def from_polars(cls, frame: Any, columns: Mapping[str, ColumnSpec]) -> Interactions:
        """Reads a log from a polars frame; see `from_pandas`."""
        return cls.from_pandas(frame, columns)

    @classmethod
    def from_dataset(
        cls, dataset: tf.data.Dataset, columns: Mapping[str, ColumnSpec]
    ) -> Interactions:
        """Reads a log from a `tf.data.Dataset` of dicts, one event or one batch an element.

        It is read to its end and held in memory. See `from_pandas`.

        Raises:
            InputError: also if the elements are no dicts, or the data set has no end.
        """
        schema = Schema(columns)
        found = frames.dataset_columns(dataset, schema)
        return cls(**frames.log_arguments(found, schema))

    @classmethod
    def from_parquet(cls, path: str | Path, columns: Mapping[str, ColumnSpec]) -> Interactions:
        """Reads a log from a Parquet file or a folder of them; see `from_pandas`."""
        return cls._from_file(path, "parquet", columns)

    @classmethod
    def from_csv(cls, path: str | Path, columns: Mapping[str, ColumnSpec]) -> Interactions:
        """Reads a log from a CSV file or a folder of them; see `from_pandas`.

        A column is of integers where every value is written as one is ("7", but not "007"), of
        numbers where every value is one, else of texts.
        """
        return cls._from_file(path, "csv", columns)

    @classmethod
    def _from_file(cls, path: str | Path, kind: str, columns: Mapping[str, ColumnSpec]) -> Any:
        schema = Schema(columns)
        if not isinstance(path, (str, Path)):
            raise bad_input("path", "a file or a folder", repr(path))
        found = table_files.read_table(Path(path), kind, schema)
        return cls(**frames.log_arguments(found, schema))

    def __len__(self) -> int:
        return len(self.item_ids)

    def take(self, rows: Any) -> Interactions:
        """Returns the events at `rows` (a boolean mask or row numbers), in that order."""
        rows = row_numbers(rows, len(self))
        taken = object.__new__(Interactions)
        taken.__dict__.update(self.__dict__)  # what is checked stays so
        taken._set(query_features={n: column[rows] for n, column in self.query_features.items()})
        for name in ("item_ids", "timestamps", "weights", "labels"):
            column = getattr(self, name)
            taken._set(**{name: None if column is None else column[rows]})
        return taken

    def resample(
        self, *, threshold: float | None = None, exponent: float | None = None, seed: int = 0
    ) -> Interactions:
        """Returns the events with those of frequent items thinned or those of rare ones repeated.

        For training only: histories, evaluations and splits want the log as it is. Arguments and
        errors are those of `resampled_rows`.
        """
        options: dict[str, Any] = {"threshold": threshold, "exponent": exponent, "seed": seed}
        return self.take(resampled_rows(self.item_ids, **options))

    def queries(self, *, moment: Moment = "last") -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Groups the events by query.

        Args:
            moment: "last" describes a query as its latest event has it, "first" as its earliest: by
                time where the log has times, else by row; of events at one time the later row is
                later.

        Returns:
            The features of each distinct query, [Q, ...] each, in the order of the query key, and
            the number of the query that each event belongs to, [E] int64.
        """
        if moment not in get_args(Moment):
            raise bad_input("moment", "'first' or 'last'", repr(moment))
        if self.query_key is None:
            return dict(self.query_features), np.arange(len(self))
        _, query_of_event = np.unique(self.query_features[self.query_key], return_inverse=True)
        events = event_of_each(query_of_event, self.timestamps, moment=moment)
        return {n: column[events] for n, column in self.query_features.items()}, query_of_event

    @property
    def features(self) -> Mapping[str, np.ndarray]:
        """The query features, what a tower may read."""
        return self.query_features

    @property
    def event_features(self) -> tuple[str, ...]:
        """The query features that change with the event: declared so, or found to change."""
        declared = Schema(self.columns).names("event", "history")
        changing = self._changing()
        return tuple(n for n in self.query_features if n in declared or n in changing)

    def _changing(self) -> set[str]:
        profiles, query_of_event = self.queries()
        return {
            name
            for name, column in self.query_features.items()
            if not np.array_equal(
                column, profiles[name][query_of_event], equal_nan=column.dtype.kind == "f"
            )
        }

    def item_rows(self, items: ItemCatalogue) -> np.ndarray:
        """Returns [E] int64: the catalogue row of each event's item.

        Raises:
            InputError: if an item of the log is not in the catalogue.
        """
        rows: np.ndarray = items.rows(self.item_ids, name="item_ids").numpy()
        unknown = np.flatnonzero(rows < 0)
        if len(unknown):
            raise bad_input(
                "item_ids",
                "only items of the catalogue",
                f"{len(unknown)} events with others, the first is {self.item_ids[unknown[0]]!r}",
            )
        return rows

    def item_counts(self, items: ItemCatalogue) -> np.ndarray:
        """Returns [N] int64: how many events each item of the catalogue has."""
        return np.bincount(self.item_rows(items), minlength=len(items))

    def dataset(
        self, batch_size: int, *, item_key: str, shuffle: bool = True, seed: int = 0
    ) -> tf.data.Dataset:
        """Returns batches for `model.fit`: the query features, the item ids under `item_key`, and
        `sample_weight` where the log has weights. The last batch may be shorter; a shuffled data
        set has another order in every epoch, the same for the same seed.
        """
        check_batch_size(batch_size)
        order = tf.data.Dataset.range(len(self))
        if shuffle and len(self):
            order = order.shuffle(len(self), seed=seed, reshuffle_each_iteration=True)
        return self.gather_rows(order.batch(batch_size), item_key=item_key)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Returns how many batches hold every event once; the last may be shorter."""
        return -(-len(self) // batch_size)

    def stream(
        self,
        batch_size: int,
        *,
        item_key: str,
        seed: int = 0,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        """Returns the batches of `dataset`, epoch after epoch without end, from any step on.

        Which events batch t holds depends on t and the seed alone: epoch t // S, with
        S = `steps_per_epoch(batch_size)`, has an order of its own that is computed and not stored,
        and step t % S takes the next `batch_size` events of it (the last step what is left). So
        training that was interrupted goes on with the batch that was next, at once:

            checkpoints = tfn.Checkpoints("checkpoints", every_steps=1000)
            start = checkpoints.restore(model)
            model.fit(
                log.stream(2048, item_key="item_id", start_step=start),
                steps_per_epoch=log.steps_per_epoch(2048),
                epochs=10,
                callbacks=[checkpoints],
            )

        Args:
            batch_size: rows of a batch.
            item_key: the column of a batch that holds the item ids.
            seed: of the orders.
            start_step: the number of the first batch.

        Returns:
            An endless data set of dicts of tensors [batch_size, ...].

        Raises:
            InputError: if the log is empty, `batch_size` below 1 or `start_step` below 0.

        Example:
            >>> log = Interactions({"user_id": np.arange(5)}, np.arange(5), query_key="user_id")
            >>> users = [b["user_id"].numpy() for b in log.stream(2, item_key="item_id").take(6)]
            >>> [len(batch) for batch in users]
            [2, 2, 1, 2, 2, 1]
            >>> np.sort(np.concatenate(users[:3])).tolist()
            [0, 1, 2, 3, 4]
            >>> later = next(iter(log.stream(2, item_key="item_id", start_step=4)))
            >>> bool((later["user_id"] == users[4]).numpy().all())
            True
        """
        if not len(self):
            raise bad_input("stream", "a log with at least one event", "none")
        check_batch_size(batch_size)
        check_start_step(start_step)
        num_events, num_steps = len(self), self.steps_per_epoch(batch_size)

        def rows_of(step: tf.Tensor) -> tf.Tensor:
            first = step % num_steps * batch_size
            positions = tf.range(first, tf.minimum(first + batch_size, num_events))
            return shuffled(positions, num_events, seed=seed, epoch=step // num_steps)

        rows = tf.data.Dataset.counter(start_step).map(rows_of)
        return self.gather_rows(rows, item_key=item_key)

    def check_item_key(self, item_key: str) -> None:
        """Raises `InputError` if the items would replace another column of a batch."""
        if item_key == WEIGHTS:
            raise bad_input("item_key", f"another name than {WEIGHTS!r}, the weights", item_key)
        if item_key in self.query_features:
            expected = f"another name than the query feature {item_key!r}, which it would replace"
            raise bad_input("item_key", expected, f"{item_key!r}: rename one of the two")

    def gather_rows(self, batches: tf.data.Dataset, *, item_key: str) -> tf.data.Dataset:
        """Returns the batches whose row numbers [B] a data set gives, as `dataset` does."""
        self.check_item_key(item_key)
        columns = {**self.query_features, item_key: self.item_ids}
        if self.weights is not None:
            columns[WEIGHTS] = self.weights
        tensors = {name: tf.constant(column) for name, column in columns.items()}
        # Shuffling row numbers and gathering a batch at once is far cheaper than shuffling rows.
        gathered = batches.map(
            lambda rows: {name: tf.gather(column, rows) for name, column in tensors.items()},
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return gathered.prefetch(tf.data.AUTOTUNE)
