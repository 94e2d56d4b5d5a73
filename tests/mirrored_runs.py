"""Two runs of one configuration, on one device and on two; `test_cli` runs it on its own.

Called as: mirrored_runs.py FOLDER OVERRIDE [OVERRIDE ...]. Devices are divided before TensorFlow
starts, and a process has room for one strategy with collectives.
"""

import logging
import sys
from pathlib import Path

import conftest  # noqa: F401  (chooses legacy Keras)
import tensorflow as tf

from tfrs_negatives.runs import train as experiments
from tfrs_negatives.runs.config import load_config

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def main(folder: str, *overrides: str) -> None:
    logging.basicConfig(level="INFO")
    for name in ("null", "mirrored"):
        config = load_config(overrides=[*overrides, f"train.strategy={name}"])
        experiments.train_run(config, Path(folder) / name)


if __name__ == "__main__":
    main(*sys.argv[1:])
