"""Chooses legacy Keras, which TensorFlow Recommenders runs on, before TensorFlow is imported."""

import os
import sys


def use_legacy_keras() -> None:
    """Sets `TF_USE_LEGACY_KERAS=1`, or explains why it is too late.

    Raises:
        ImportError: if TensorFlow was imported before with Keras 3 as `tf.keras`.
    """
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
        return
    # Legacy Keras behind `tf.keras` does not tell its version there; Keras 3 does.
    version = getattr(tensorflow.keras, "__version__", "2")
    if version.startswith("3."):
        raise ImportError(
            "tfrs_negatives needs legacy Keras, but TensorFlow was imported before it with Keras "
            f"{version}: import tfrs_negatives first, or set "
            "TF_USE_LEGACY_KERAS=1 in the environment."
        )
