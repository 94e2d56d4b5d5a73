"""What the replicas of a distribution strategy share: every one sees the items of all.

Outside a strategy, and with one replica, everything here gives back what it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf


def num_replicas() -> int:
    """How many replicas run this step together."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def all_rows(rows: tf.Tensor) -> tf.Tensor:
    """Joins the rows of all replicas, in the order of the replicas.

    The gradient of a row is the sum of what all replicas made of it. Replicas may have different
    numbers of rows, also none, as in a short last batch.

    Args:
        rows: [n, ...] of this replica.

    Returns:
        [N, ...], the same on every replica.

    Example:
        >>> all_rows(tf.constant([1, 2])).numpy().tolist()
        [1, 2]
    """
    if num_replicas() == 1:
        return rows
    context = tf.distribute.get_replica_context()
    local = context.strategy.extended.worker_devices
    # With one replica per worker the gather asks the tensor where it is, and in a graph not every
    # tensor knows. Replicas of one worker are there already.
    with tf.device(local[0] if len(local) == 1 else None):
        together = context.all_gather(tf.identity(rows), axis=0)
    # In a graph a gather forgets how wide the rows are.
    return tf.ensure_shape(together, [None, *rows.shape[1:]])


def place_of_rows(num_rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the place of this replica's rows among those of `all_rows`.

    Args:
        num_rows: scalar int32, rows of this replica.

    Returns:
        The number of rows of the replicas before this one, and of all; scalars int32.

    Example:
        >>> [int(x) for x in place_of_rows(tf.constant(3))]
        [0, 3]
    """
    if num_replicas() == 1:
        return tf.zeros_like(num_rows), num_rows
    sizes = all_rows(num_rows[None])
    before = tf.range(tf.shape(sizes)[0]) < replica_number()
    return tf.reduce_sum(tf.where(before, sizes, 0)), tf.reduce_sum(sizes)


def encode_together(rows: tf.Tensor, encode: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Encodes the same items on all replicas, each replica its share of them.

    Args:
        rows: [n] the items, the same on every replica.
        encode: rows [m] -> embeddings [m, D].

    Returns:
        [n, D] on every replica.

    Example:
        >>> encode_together(tf.constant([3, 1]), lambda rows: rows[:, None]).numpy().tolist()
        [[3], [1]]
    """
    replicas = num_replicas()
    if replicas == 1:
        return encode(rows)
    count = tf.shape(rows)[0]
    share = (count + replicas - 1) // replicas
    # Equal shares; what the last ones have too much is cut off again.
    places = tf.minimum(replica_number() * share + tf.range(share), count - 1)
    return all_rows(encode(tf.gather(rows, places)))[:count]


def replica_number() -> tf.Tensor:
    """The number of this replica, 0 for the first and only; scalar int32."""
    if num_replicas() == 1:
        return tf.constant(0)
    number = tf.distribute.get_replica_context().replica_id_in_sync_group
    return tf.cast(number, tf.int32)


def same_draws(shape: Sequence[int | tf.Tensor], seed: tf.Tensor) -> tf.Tensor:
    """Draws numbers that are the same on every replica and device.

    Args:
        shape: of the numbers.
        seed: [2] int32, see `Batch.seed`.

    Returns:
        float64, uniform in [0, 1).

    Example:
        >>> same_draws([2], tf.constant([0, 1])).numpy().tolist() == same_draws(
        ...     [2], tf.constant([0, 1])).numpy().tolist()
        True
    """
    # One algorithm by name, and whole numbers: XLA and other devices would each choose their own,
    # and XLA makes other fractions of the same bits.
    bits = tf.random.stateless_uniform(shape, seed, 0, 2**53, tf.int64, alg="philox")
    return tf.cast(bits, tf.float64) / 2**53


def row_draws(rows: tf.Tensor, width: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draws numbers for each row of this replica, the same however many replicas share the batch.

    Args:
        rows: scalar int32, the rows of this replica.
        width: how many numbers a row gets.
        seed: [2] int32, see `Batch.seed`.

    Returns:
        [rows, width] float64, uniform in [0, 1).

    Example:
        >>> row_draws(tf.constant(2), 3, tf.constant([0, 1])).shape.as_list()
        [2, 3]
    """
    first, total = place_of_rows(rows)
    return same_draws([total, width], seed)[first : first + rows]
