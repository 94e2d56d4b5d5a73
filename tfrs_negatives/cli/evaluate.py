"""`tfrs-negatives evaluate`: a run to its metrics on the test part."""

from __future__ import annotations

from tfrs_negatives.cli.common import AsJson, RunFolder, report
from tfrs_negatives.runs import files


def evaluate(run: RunFolder, as_json: AsJson = False) -> None:
    """Evaluate the model of a run on the test part of its log, over the full corpus."""
    from tfrs_negatives.runs.train import evaluate_run

    result = evaluate_run(run, progress=not as_json)
    report({"test": result.metrics}, as_json, wrote=run / files.METRICS)
