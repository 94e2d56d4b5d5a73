"""`tfrs-negatives index`: a run to its retrieval index."""

from __future__ import annotations

from tfrs_negatives.cli.common import AsJson, Overwrite, RunFolder, report
from tfrs_negatives.runs import files


def index(run: RunFolder, as_json: AsJson = False, overwrite: Overwrite = False) -> None:
    """Build the retrieval index of a run, check it in another process, and export it."""
    from tfrs_negatives.runs.train import index_run

    manifest = index_run(run, overwrite=overwrite)
    names = ("kind", "num_items", "similarity", "ks", "recall")
    shown = manifest if as_json else {name: manifest[name] for name in names if name in manifest}
    report(shown, as_json, wrote=run / files.INDEX)
