"""Shared set-up: quiet TensorFlow, legacy Keras, the doctest namespace."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tfrs_negatives  # noqa: F401  (chooses legacy Keras before TensorFlow is imported)
