"""The miners: which of the columns that the masks left are worth learning from."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.types import Logits, Part, bad_input


@tf.keras.utils.register_keras_serializable(package="tfrs_negatives")
class Hardest(Part):
    """Keeps the k columns of each row with the largest corrected logits.

    Args:
        k: how many; all of them where the pool has fewer.

    Raises:
        InputError: if k is below 1.

    Example:
        >>> logits = Logits(tf.zeros([1]), tf.constant([[1.0, 3.0, 2.0]]), tf.ones([1, 3], tf.bool))
        >>> Hardest(2).mine(logits).negatives.numpy().tolist()
        [[3.0, 2.0]]

    Source: `num_hard_negatives` of `tfrs.tasks.Retrieval`.
    """

    def __init__(self, k: int) -> None:
        if k < 1:
            raise bad_input("k", "at least 1", k)
        self.k = k

    def mine(self, logits: Logits) -> Logits:
        """Returns negatives [B, min(k, C)], masked ones where a row has fewer that are kept."""
        k = tf.minimum(self.k, tf.shape(logits.negatives)[1])
        ranked = tf.where(logits.keep, logits.negatives, logits.negatives.dtype.min)
        columns = tf.math.top_k(tf.stop_gradient(ranked), k).indices
        explicit = tf.broadcast_to(logits.explicit, tf.shape(logits.keep))
        negatives, keep, explicit = (
            tf.gather(x, columns, batch_dims=1) for x in (logits.negatives, logits.keep, explicit)
        )
        return logits._replace(negatives=negatives, keep=keep, explicit=explicit)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"k": self.k}
