"""`tfrs-negatives doctor`: whether this installation can train, export and serve."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import typer

from tfrs_negatives.cli.common import AsJson, print_json

# The versions that were built for each other: ScaNN's ops are compiled for one TensorFlow.
SUPPORTED = {
    "tensorflow": "2.20.",
    "tf_keras": "2.20.",
    "tensorflow-recommenders": "0.7.",
    "scann": "1.4.2",
    "tensorflow-datasets": "4.9.",
    "numpy": "2.",
}


def doctor(as_json: AsJson = False) -> None:
    """Check the installation: versions, legacy Keras, ScaNN. Exit code 1 where one fails."""
    checks = check_installation()
    if as_json:
        print_json(checks)
    else:
        for check in checks:
            typer.echo(f"{'ok  ' if check['ok'] else 'FAIL'}  {check['name']}: {check['found']}")
    if not all(check["ok"] for check in checks):
        raise typer.Exit(1)


def check_installation() -> list[dict[str, Any]]:
    """Runs every check.

    Returns:
        A record per check: `name`, `ok`, and what was `found`.
    """
    python = tuple(int(part) for part in platform.python_version_tuple()[:2])
    checks = [
        {"name": "python", "ok": (3, 10) <= python < (3, 14), "found": platform.python_version()}
    ]
    checks += [_version(name, prefix) for name, prefix in SUPPORTED.items()]
    for name, check in {"legacy keras": _keras, "scann ops": _scann, "cpu": _devices}.items():
        checks.append(_attempt(name, check))
    return checks


def _version(name: str, prefix: str) -> dict[str, Any]:
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return {"name": name, "ok": False, "found": f"not installed, expected {prefix}*"}
    ok = found.startswith(prefix)
    return {"name": name, "ok": ok, "found": found if ok else f"{found}, expected {prefix}*"}


def _attempt(name: str, check: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"name": name, "ok": True, "found": check()}
    except Exception as error:  # whatever breaks here is the finding
        return {"name": name, "ok": False, "found": f"{type(error).__name__}: {error}"}


def _keras() -> str:
    import tensorflow as tf

    from tfrs_negatives._keras import use_legacy_keras

    use_legacy_keras()
    return f"tf.keras is {tf.keras.layers.Layer.__module__.partition('.')[0]}"


def _scann() -> str:
    import numpy as np
    from scann import scann_ops

    vectors = np.eye(8, dtype=np.float32)
    searcher = scann_ops.builder(vectors, 1, "dot_product").score_brute_force().build()
    found = searcher.search_batched(vectors)[0].numpy().ravel().tolist()
    if found != list(range(8)):
        raise RuntimeError(f"wrong neighbours: {found}")
    return "loaded, and find what they should"


def _devices() -> str:
    import tensorflow as tf

    kinds = [device.device_type for device in tf.config.list_physical_devices()]
    return f"{platform.machine()}, devices {', '.join(kinds)}"
