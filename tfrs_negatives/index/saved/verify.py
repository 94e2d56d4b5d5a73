"""The other process of an export's check.

    python -m tfrs_negatives.index.saved.verify FOLDER IN OUT

It loads the export in FOLDER, asks its signatures the features of the archive IN as a server
would, and writes the answers to the archive OUT: `vectors`, `item_vectors`, `scores_K` and `ids_K`
for each exported K, and `scores_rest` and `ids_rest`, where every other id of the largest K is
excluded.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tfrs_negatives.index.saved.load import load_index


def main(folder: str, queries: str, answers: str) -> None:
    """Writes the answers of an export to some queries."""
    index = load_index(folder)
    with np.load(queries, allow_pickle=False) as archive:
        features, items = (
            {n.removeprefix(kind): archive[n] for n in archive.files if n.startswith(kind)}
            for kind in ("feature_", "item_")
        )
    results: dict[str, Any] = {
        "vectors": index.embed_query(features),
        "item_vectors": index.embed_item(items),
    }
    for k in index.manifest["ks"]:
        results[f"scores_{k}"], results[f"ids_{k}"] = index.call(f"top_{k}", features)
    seen = results[f"ids_{max(index.manifest['ks'])}"][:, ::2]
    rest = index.call("with_exclusions", features, exclude=seen)
    results["scores_rest"], results["ids_rest"] = rest
    np.savez(answers, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
