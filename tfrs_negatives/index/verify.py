"""The other process of an export's check: `python -m tfrs_negatives.index.verify FOLDER IN OUT`.

It loads the export in FOLDER, asks it the query features of the archive IN, and writes its answers
to the archive OUT: `vectors`, and `scores_K` and `ids_K` for each exported K.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tfrs_negatives.index.load import load_index


def main(folder: str, queries: str, answers: str) -> None:
    """Writes the answers of an export to some queries."""
    index = load_index(folder)
    with np.load(queries, allow_pickle=False) as archive:
        features = {name.removeprefix("feature_"): archive[name] for name in archive.files}
    results: dict[str, Any] = {"vectors": index.embed_query(features)}
    for k in index.manifest["ks"]:
        results[f"scores_{k}"], results[f"ids_{k}"] = index.top_k(features, k)
    np.savez(answers, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
