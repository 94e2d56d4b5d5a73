"""The manifest of an exported index: what it says, and whether the files are still what it says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tfrs_negatives.core.errors import bad_input

MANIFEST_NAME = "manifest.json"
FORMAT = "tfrs_negatives.index"
FORMAT_VERSION = 3

_KEYS = {
    "custom_ops",
    "files",
    "group_by",
    "item_features",
    "kind",
    "ks",
    "num_items",
    "padding",
    "query_features",
    "signatures",
    "width",
}


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder, with the size and the SHA-256 of every file that is in it.

    Args:
        folder: the export; its manifest is written last, as nothing may change after it.
        content: everything that the manifest says besides the format and the files.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "saved_model.pb").write_bytes(b"abc")
        >>> write_manifest(folder, {"ks": [10]})
        >>> json.loads((folder / "manifest.json").read_text())["files"]["saved_model.pb"]["bytes"]
        3
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    records = {path.relative_to(folder).as_posix(): _file_record(path) for path in files}
    manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **content, "files": records}
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks every file that it lists.

    The check finds damage. It is no protection against someone who also rewrites the manifest.

    Raises:
        InputError: if the manifest is missing, unreadable or of another format, or if a file is
            missing, has another size or another content; the message names the file.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise bad_input("path", f"an exported index, a folder with {MANIFEST_NAME}", folder)
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise bad_input(str(path), "a manifest in JSON", error) from error
    wanted = (FORMAT, FORMAT_VERSION)
    if not isinstance(manifest, dict):
        raise bad_input(str(path), "a manifest in JSON", f"a {type(manifest).__name__}")
    found = (manifest.get("format"), manifest.get("format_version"))
    if found != wanted:
        raise bad_input(str(path), f"format and version {wanted}", found)
    missing = sorted(_KEYS - manifest.keys())
    if missing:
        raise bad_input(str(path), f"the entries {sorted(_KEYS)}", f"none of {missing}")
    for name, record in manifest["files"].items():
        _check_file(folder / name, record)
    return manifest


def is_export(folder: Path) -> bool:
    """Returns whether a folder has a manifest of this format, of whatever version."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _check_file(path: Path, record: dict[str, Any]) -> None:
    if not path.is_file():
        raise bad_input(str(path), "the file that the manifest lists", "no such file")
    # The size is compared first: it is free, and says more about a truncated file than a checksum.
    if path.stat().st_size != record["bytes"]:
        raise bad_input(str(path), f"{record['bytes']} bytes", f"{path.stat().st_size} bytes")
    checksum = _file_record(path)["sha256"]
    if checksum != record["sha256"]:
        raise bad_input(str(path), f"SHA-256 {record['sha256']}", checksum)


def _file_record(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
