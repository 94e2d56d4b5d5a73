"""What mining the hard negatives of a whole log costs, with a ScaNN index and with exact search.

First train the model that is mined, about two minutes on two cores::

    tfrs-negatives train --config benchmarks/quality/configs/gowalla_in_batch_logq_bias.yaml \
        --out /tmp/gowalla train.epochs=4

Run it from the root of the repository; it writes results.json and README.md beside itself::

    python -m benchmarks.mining.run --run /tmp/gowalla
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.mining.rules import DROPS
from tfrs_negatives.runs.train import load_data, load_run

NUM, REPEATS = 8, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "ranks 1 to 100": {"rank_range": (1, 100)},
    "ranks 1 to 100, margin 0.05": {"rank_range": (1, 100), "relative_margin": 0.05},
    "ranks 20 to 120, random": {"rank_range": (20, 120), "choose": "random"},
}

TEXT = """# Mining hard negatives

What `mine_hard_negatives` costs for all {queries:,} users of {data} ({items:,} items, {events:,}
training events, width {width}), written by `python -m benchmarks.mining.run` on {date} from
[results.json](results.json). The model is that of the configuration `{config}`, {epochs} epochs.
{num} negatives a user, chunks of 2,048; seconds are the least of {repeats} minings. Other jobs kept
the machine busy: the load average was {load:.1f} at the beginning.
{machine}, Python {python}, TensorFlow {tensorflow}, ScaNN {scann}.

- `positives`: training positives among the mined negatives, counted with a Python set of the log's
  pairs. It must be 0.
- `found`: share of the exact answer (ids of each user) that the mining with this index also wrote.
  A random choice draws places in the list: where ScaNN misses an item, the later ones are others.

The ScaNN index is built and measured in {scann_build:.1f} s and has a recall of {recall:.3f} at
100 on users of the log; the exact one takes {exact_build:.1f} s. That is no part of the seconds
below.

| setting | index | seconds | positives | found | kept | users with fewer | with none |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""

RULES = """
What became of the items that the index found:

| setting | index | retrieved | {rules} | kept |
| --- | --- | --- | {lines} | --- |
"""


def read_pairs(path: Path, query_key: str) -> set[tuple[Any, Any]]:
    """Returns the mined (query, item) pairs of a file."""
    table = pq.read_table(path, columns=[query_key, "ids"]).to_pydict()
    return {(q, i) for q, ids in zip(table[query_key], table["ids"], strict=True) for i in ids}


def mine(
    model: tfn.TwoTower, log: tfn.Interactions, index: Any, options: dict[str, Any]
) -> tuple[dict[str, Any], set[tuple[Any, Any]]]:
    """Mines a few times; returns the summary with the least time, and the pairs."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "mined.parquet"
        summaries = [
            tfn.mine_hard_negatives(model, log, out=out, index=index, num=NUM, **options)
            for _ in range(REPEATS)
        ]
        pairs = read_pairs(out, str(log.query_key))
    summary = asdict(summaries[0])
    summary["seconds"] = min(s.seconds for s in summaries)
    return summary, pairs


def measure(model: tfn.TwoTower, log: tfn.Interactions) -> dict[str, Any]:
    """Returns per index the time to build it, and per setting what was mined."""
    users = log.query_features[str(log.query_key)].tolist()
    positives = set(zip(users, log.item_ids.tolist(), strict=True))
    features, _ = log.queries()
    probes = {name: features[name] for name in model.query_signature}
    exact_pairs: dict[str, set[tuple[Any, Any]]] = {}
    results: dict[str, Any] = {}
    for kind in ("exact", "scann"):
        began = time.perf_counter()
        index = tfn.build_index(model, kind=kind, recall_k=100, probe_queries=probes)
        results[kind] = {"build": time.perf_counter() - began, "recall": index.recall, "mined": {}}
        for name, options in SETTINGS.items():
            summary, pairs = mine(model, log, index, options)
            exact = exact_pairs.setdefault(name, pairs)
            summary["training_positives"] = len(pairs & positives)
            summary["found"] = len(pairs & exact) / len(exact)
            results[kind]["mined"][name] = summary
            print(kind, name, json.dumps(summary), flush=True)
    return results


def write_readme(folder: Path) -> None:
    """Writes README.md from results.json."""
    results = json.loads((folder / "results.json").read_text())
    indexes = results["indexes"]
    builds = {f"{kind}_build": index["build"] for kind, index in indexes.items()}
    recall = indexes["scann"]["recall"]["recall"]
    text = TEXT.format(**{**results, **results["versions"], **builds}, recall=recall)
    rules = RULES.format(
        rules=" | ".join(name.replace("_", " ") for name in DROPS),
        lines=" | ".join("---" for _ in DROPS),
    )
    for name in SETTINGS:
        for kind, index in indexes.items():
            row = index["mined"][name]
            text += (
                f"| {name} | {kind} | {row['seconds']:.1f} | {row['training_positives']} | "
                f"{row['found']:.3f} | {row['kept']:,} | {row['short']:,} | {row['empty']:,} |\n"
            )
            counts = [row["retrieved"], *(row["dropped"][rule] for rule in DROPS), row["kept"]]
            rules += f"| {name} | {kind} | {' | '.join(f'{count:,}' for count in counts)} |\n"
    write_text(folder / "README.md", text + rules)


def main() -> None:
    """Measures everything and writes it to the folder of this file, or to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="the run folder of the model")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    config, model = load_run(arguments.run)
    data = load_data(config)
    versions = {name: importlib.metadata.version(name) for name in ("scann", "pyarrow", "numpy")}
    results = {
        "date": datetime.date.today().isoformat(),
        "load": os.getloadavg()[0],
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            **versions,
        },
        "data": data.name,
        "queries": len(np.unique(data.train.query_features[data.train.query_key])),
        "items": len(data.items),
        "events": len(data.train),
        "width": config.model.embedding_dim,
        "config": "gowalla_in_batch_logq_bias",
        "epochs": config.train.epochs,
        "num": NUM,
        "repeats": REPEATS,
        "indexes": measure(model, data.train),
    }
    write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_readme(arguments.output)


if __name__ == "__main__":
    main()
