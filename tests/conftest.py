"""Shared set-up: quiet TensorFlow, legacy Keras, four logical processors for strategies."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives  # noqa: F401  (chooses legacy Keras before TensorFlow is imported)

# isort: split
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)
