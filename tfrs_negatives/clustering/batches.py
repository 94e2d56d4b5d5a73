"""Mini-batches of similar queries for `model.fit`, and the callback that keeps them up to date."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfrs_negatives.clustering.clusters import balanced_clusters, cluster_bounds
from tfrs_negatives.clustering.epoch_order import Schedule, clustered_order, doubling
from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.data.batch_order import check_start_step
from tfrs_negatives.data.interactions import Interactions
from tfrs_negatives.model.corpus import embed_queries
from tfrs_negatives.model.retrieval_model import RetrievalModel

logger = logging.getLogger("tfrs_negatives")


class ClusterState(tf.Module):
    """The clusters of the last refresh, which a kill between two refreshes must not cost.

    Args:
        num_queries: Q.

    Attributes:
        sequence: [Q] int64, the queries, those of a cluster side by side.
        num_clusters: into how many the sequence is divided, int64; 0 before the first refresh.
        epoch: for which epoch they were made, int64; -1 before the first refresh.
    """

    def __init__(self, num_queries: int) -> None:
        super().__init__(name="clusters")
        options = {"trainable": False, "dtype": tf.int64}
        rows = tf.range(num_queries, dtype=tf.int64)
        self.sequence = tf.Variable(rows, name="sequence", **options)
        self.num_clusters = tf.Variable(0, name="num_clusters", **options)
        self.epoch = tf.Variable(-1, name="epoch", **options)


class ClusteredBatches:
    """Batches in which the queries are similar, so that in-batch negatives are hard.

    Queries are clustered by their vectors; the events of a cluster come in pieces of about as many
    events as it has queries, and a batch is made of pieces of random clusters. Every event comes
    once in an epoch; a boundary between two batches cuts at most one piece in two. With clusters of
    one query the order is random.

    Give `fit` the `steps_per_epoch` and a `RefreshClusters`, which clusters anew:

        batches = tfn.ClusteredBatches(log, 1024, item_key="item_id")
        checkpoints = tfn.Checkpoints("checkpoints", track={"clusters": batches.state})
        start = checkpoints.restore(model)
        model.fit(
            batches.dataset(start_step=start),
            steps_per_epoch=batches.steps_per_epoch,
            epochs=200,
            callbacks=[tfn.RefreshClusters(batches), checkpoints],
        )

    Clusters hold similar users, who like the same items: mask what each is known to have chosen
    (`KnownPositives`). Under a strategy a batch is divided among the replicas as it stands, and
    `Retrieval` gathers their items, so it does not matter where.

    A log that does not fit in memory: the columns of `Interactions` may be `np.memmap`s. What is
    held is the query of each event and their order, 16 bytes an event, and about 50 more while an
    order is made. `dataset` would copy the columns; `batches.rows().map(read)` gives `read` the row
    numbers of each batch instead.

    Args:
        log: E events of Q queries.
        batch_size: events of a batch, of all replicas.
        item_key: the column of a batch that holds the item ids.
        cluster_size: queries per cluster; a number, or a function of the epoch, from 0 on.
        refresh_every: epochs after which the queries are embedded and clustered anew. In between,
            larger clusters are neighbours put together.
        min_clusters: how many clusters remain at least, whatever the size.
        random_share: share of the events that are left out of the clusters and come anywhere.
        seed: of clusters and orders.

    Raises:
        InputError: if the log is empty or a number is out of its range.

    Example:
        >>> log = Interactions({"user_id": np.arange(6) // 2}, np.arange(6), query_key="user_id")
        >>> batches = ClusteredBatches(log, 4, item_key="item_id", cluster_size=1)
        >>> [len(batch["item_id"]) for batch in batches.dataset()]
        [4, 2]

    Source: Dahiya et al., WSDM 2023 (NGAME). There each query has one event in an epoch, drawn
        among its own; here all of them, each once.
    """

    def __init__(
        self,
        log: Interactions,
        batch_size: int,
        *,
        item_key: str,
        cluster_size: int | Schedule | None = None,
        refresh_every: int = 5,
        min_clusters: int = 10,
        random_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.log, self.batch_size, self.item_key = log, batch_size, item_key
        self.cluster_size = doubling() if cluster_size is None else cluster_size
        self.refresh_every, self.min_clusters = refresh_every, min_clusters
        self.random_share, self.seed = random_share, seed
        self._check_arguments()
        self.query_features, self.query_of_event = log.queries()
        self.num_queries = int(self.query_of_event.max()) + 1
        self.state = ClusterState(self.num_queries)
        self.next_step = 0
        # What was iterated to its end, so that an epoch that comes again is noticed.
        self._finished_step: int | None = None
        self.clustered_with: RetrievalModel | None = None

    def _check_arguments(self) -> None:
        if not len(self.log):
            raise bad_input("log", "at least one event", "none")
        sizes = ("batch_size", "refresh_every", "min_clusters")
        fixed = {} if callable(self.cluster_size) else {"cluster_size": self.cluster_size}
        for name, value in {**{n: getattr(self, n) for n in sizes}, **fixed}.items():
            if value < 1:
                raise bad_input(name, "at least 1", value)
        if not 0 <= self.random_share <= 1:
            raise bad_input("random_share", "a number in [0, 1]", self.random_share)
        if self.seed < 0:
            raise bad_input("seed", "at least 0", self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """How many batches hold every event once; the last may be shorter."""
        return self.log.steps_per_epoch(self.batch_size)

    def num_clusters(self, epoch: int) -> int:
        """Returns into how many clusters the queries are divided in an epoch."""
        size = self.cluster_size(epoch) if callable(self.cluster_size) else self.cluster_size
        if size < 1:
            raise bad_input(f"cluster_size({epoch})", "at least 1", size)
        return min(max(-(-self.num_queries // size), self.min_clusters), self.num_queries)

    def is_due(self, epoch: int) -> bool:
        """Returns whether an epoch needs new clusters."""
        wanted, last = self.num_clusters(epoch), int(self.state.epoch)
        if wanted == self.num_queries:
            return False
        # Neighbouring clusters can be put together, but not divided.
        is_finer = wanted > int(self.state.num_clusters)
        return last < 0 or is_finer or epoch // self.refresh_every != last // self.refresh_every

    def refresh(self, model: RetrievalModel, epoch: int) -> None:
        """Embeds all queries with the model as it is, and clusters them for an epoch."""
        vectors, wanted = self._embed(model), self.num_clusters(epoch)
        self.state.sequence.assign(balanced_clusters(vectors, wanted, seed=self.seed))
        self.state.num_clusters.assign(wanted)
        self.state.epoch.assign(epoch)
        self.clustered_with = model

    def _embed(self, model: RetrievalModel) -> np.ndarray:
        names = set(model.query_signature)
        columns = {n: c for n, c in self.query_features.items() if n in names}
        # Queries of several vectors are near each other where all of these are.
        return embed_queries(model, columns, 4096)

    def order(self, epoch: int) -> np.ndarray:
        """Returns [E] int64: the row numbers of the log in the order of an epoch.

        Raises:
            InputError: if the epoch needs new clusters first.
        """
        if self.is_due(epoch):
            rule = f"`RefreshClusters`, to cluster the queries for epoch {epoch}"
            raise bad_input("callbacks", rule, "none, or no `fit`")
        num_clusters = self.num_clusters(epoch)
        sizes = np.diff(cluster_bounds(self.num_queries, num_clusters))
        cluster_of_query = np.empty(self.num_queries, np.int64)
        cluster_of_query[self.state.sequence.numpy()] = np.repeat(np.arange(num_clusters), sizes)
        return clustered_order(
            self.query_of_event,
            cluster_of_query,
            piece_size=int(sizes.max()),
            random_share=self.random_share,
            seed=(self.seed, epoch),
        )

    def forget(self) -> None:
        """Takes the clusters for none, as before the first refresh."""
        self.state.num_clusters.assign(0)
        self.state.epoch.assign(-1)

    def rows(self, *, start_step: int | None = None) -> tf.data.Dataset:
        """Returns the batches as row numbers of the log, [batch_size] int64; see `dataset`."""
        if start_step is not None:
            check_start_step(start_step)
            self.next_step = start_step
        spec = tf.TensorSpec([None], tf.int64)
        batches = tf.data.Dataset.from_generator(self._batches_of_epoch, output_signature=spec)
        return batches.apply(tf.data.experimental.assert_cardinality(self.steps_per_epoch))

    def _batches_of_epoch(self) -> Iterator[np.ndarray]:
        begun = self.next_step
        if begun == self._finished_step:
            logger.warning("the same epoch again: is `RefreshClusters` among the callbacks?")
        epoch, first = divmod(begun, self.steps_per_epoch)
        order = self.order(epoch)
        # From the middle it goes round, so that a data set has as many batches as it says.
        for number in range(first, first + self.steps_per_epoch):
            begin = number % self.steps_per_epoch * self.batch_size
            # A copy: TensorFlow computes in the memory of what a generator gave it.
            yield order[begin : begin + self.batch_size].copy()
        self._finished_step = begun

    def dataset(self, *, start_step: int | None = None) -> tf.data.Dataset:
        """Returns the batches of one epoch: dicts of query features, item ids and, where the log
        has weights, `sample_weight`.

        Each iteration is an epoch: that of the step which `RefreshClusters` has told it last.

        Args:
            start_step: the step to begin with, counted from the first of all epochs; what
                `Checkpoints.restore` returns, 0 to begin anew. None goes on after the last epoch.

        Returns:
            A data set of `steps_per_epoch` batches. An iteration from the middle of an epoch has
            what is left of it and then what came before; `fit` with `Checkpoints` asks for the
            first part only.

        Raises:
            InputError: if `start_step` is below 0.
        """
        return self.log.gather_rows(self.rows(start_step=start_step), item_key=self.item_key)


class RefreshClusters(tf.keras.callbacks.Callback):
    """Clusters the queries between epochs where that is due, and adds `cluster_size` to the logs.

    Put it before `Checkpoints`, so that the new clusters are saved. Another model than the one that
    the clusters were made with, and training from step 0, begin with new ones.

    Args:
        batches: what `fit` is trained on.

    Raises:
        InputError: if the model has no `query_vectors`, or `steps_per_epoch` is not that of the
            batches.

    Example:
        >>> log = Interactions({"user_id": np.array([1, 2])}, np.array([7, 8]), query_key="user_id")
        >>> callback = RefreshClusters(ClusteredBatches(log, 2, item_key="item_id"))
    """

    def __init__(self, batches: ClusteredBatches) -> None:
        super().__init__()
        self.batches = batches

    def on_train_begin(self, logs: Any = None) -> None:
        """Clusters for the epoch that `fit` begins with, unless a checkpoint brought them."""
        batches, steps = self.batches, self.params.get("steps")
        if not hasattr(self.model, "query_vectors"):
            raise bad_input("model", "a RetrievalModel with query_vectors", type(self.model))
        if steps not in (None, batches.steps_per_epoch):
            raise bad_input("steps_per_epoch", f"{batches.steps_per_epoch}, a whole epoch", steps)
        is_other = batches.clustered_with not in (None, self.model)
        if batches.next_step == 0 or is_other:
            batches.forget()
        begun = batches.next_step // batches.steps_per_epoch
        epochs = range(begun, begun + self.params.get("epochs", 1))
        grows = callable(batches.cluster_size)
        if grows and all(batches.num_clusters(n) == batches.num_queries for n in epochs):
            logger.warning("no epoch of this training has clusters of more than one query")
        self._prepare()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Clusters for the next epoch."""
        batches = self.batches
        done = batches.next_step // batches.steps_per_epoch
        if logs is not None:
            logs["cluster_size"] = batches.num_queries / batches.num_clusters(done)
        batches.next_step = (done + 1) * batches.steps_per_epoch
        # What comes after the last epoch, if anything does, begins with `on_train_begin`.
        if epoch + 1 != self.params.get("epochs"):
            self._prepare()

    def _prepare(self) -> None:
        epoch = self.batches.next_step // self.batches.steps_per_epoch
        if self.batches.is_due(epoch):
            self.batches.refresh(self.model, epoch)
            number, queries = self.batches.num_clusters(epoch), self.batches.num_queries
            logger.info("epoch %d: %d queries in %d clusters", epoch + 1, queries, number)
