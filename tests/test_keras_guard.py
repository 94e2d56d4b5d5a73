"""Legacy Keras is chosen before TensorFlow is imported, or one sentence says it is too late."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Legacy Keras does not tell its version as `tf.keras.__version__`; its modules do.
VERSION = "import tensorflow as tf; print(tf.keras.Model.__module__)"


def python(code, **environment):
    kept = {n: v for n, v in os.environ.items() if n != "TF_USE_LEGACY_KERAS"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "environment", [{}, pytest.param({"TF_USE_LEGACY_KERAS": "0"}, marks=pytest.mark.slow)]
)
def test_the_package_first_chooses_legacy_keras(environment):
    done = python(f"import tfrs_negatives; {VERSION}", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tf_keras.")


@pytest.mark.slow
def test_keras_3_first_is_one_clear_sentence():
    done = python("import tensorflow; import tfrs_negatives")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tfrs_negatives needs legacy Keras")
    assert "Keras 3." in last
    assert "TF_USE_LEGACY_KERAS=1" in last


@pytest.mark.slow
def test_legacy_keras_first_is_fine():
    code = f"{VERSION}; import tfrs_negatives; from tfrs_negatives.step.task import Retrieval"
    done = python(code, TF_USE_LEGACY_KERAS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("tf_keras.")


def test_importing_the_package_does_not_import_tensorflow():
    done = python("import sys, tfrs_negatives; print('tensorflow' in sys.modules)")
    assert done.stdout.strip() == "False"
