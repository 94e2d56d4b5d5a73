"""Shared set-up: quiet TensorFlow, legacy Keras, four logical processors, the command line."""

import gc
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest

import tfrs_negatives  # noqa: F401  (chooses legacy Keras before TensorFlow is imported)
from tfrs_negatives.cli.main import main

# isort: split
import tensorflow as tf

# For strategies; it must be said before TensorFlow looks for devices.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 4
)


def pytest_collection_finish():
    # What is imported stays: the collector need not look through it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def log_file(tmp_path_factory):
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 400), rng.integers(0, 30, 400)
    lines = ["user,item,age,time"]
    lines += [f"u{u},i{i},{20 + u},{t}" for t, (u, i) in enumerate(zip(users, items, strict=True))]
    path = tmp_path_factory.mktemp("log") / "events.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tfrs-negatives", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
