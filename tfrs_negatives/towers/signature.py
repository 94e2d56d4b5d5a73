"""What a tower reads: the name, type and shape of each feature, and which may be missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import tensorflow as tf


class FeatureSignature(dict[str, tf.TypeSpec]):
    """Name -> `tf.TypeSpec` ([None, ...]) of every feature that a tower reads.

    Args:
        specs: name -> spec.
        may_miss: the features of which a query or an item may have no value.

    Example:
        >>> signature = FeatureSignature({"age": tf.TensorSpec([None])}, may_miss=["age"])
        >>> list(signature), sorted(signature.may_miss)
        (['age'], ['age'])
    """

    def __init__(self, specs: Mapping[str, tf.TypeSpec], *, may_miss: Iterable[str] = ()) -> None:
        super().__init__(specs)
        self.may_miss = frozenset(may_miss)


def may_miss(signature: Mapping[str, tf.TypeSpec]) -> frozenset[str]:
    """Returns the features of a signature that may be missing; none where it does not say so."""
    return signature.may_miss if isinstance(signature, FeatureSignature) else frozenset()
