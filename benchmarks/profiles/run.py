"""What describes a user in an index: the latest event, or the first?

MovieLens-100K, each user's last event held out. The query tower reads the last 20 movies before
the event, and nothing else, so the profile is all that tells users apart. One trained model is
asked for ten movies with the profile of each user's latest training event (what `queries` gives)
and with that of the first one, whose history is empty. What was rated before is left out.

Run it from the root of the repository; it writes results.json and README.md beside itself, about
three minutes on two cores::

    .venv/bin/python -m benchmarks.profiles.run --data ml-100k:../shared/data/ml-100k --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import tfrs_negatives as tfn

# isort: split
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.data import Interactions, RetrievalData, load

HERE = Path(__file__).parent
LENGTH, EPOCHS, BATCH, K = 20, 10, 1024, 10
PACKAGES = ("tensorflow", "tf_keras", "numpy", "tfrs-negatives")
MOMENTS = ("last", "first")


def main() -> None:
    """Trains with every seed, writes the numbers and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--data", required=True, help="ml-100k:PATH, the folder of GroupLens")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    data = with_histories(load(arguments.data, split="leave_last_out"))
    found = [hit_rates(data, seed) for seed in arguments.seeds]
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "seeds": arguments.seeds,
        "hit_rate_at_10": {moment: [rates[moment] for rates in found] for moment in MOMENTS},
        "empty_profiles": {moment: empty_profiles(data, moment) for moment in MOMENTS},
        "users": len(data.train.queries()[0]["user_id"]),
    }
    write_text(HERE / "results.json", json.dumps(result, indent=2) + "\n")
    write_text(HERE / "README.md", render(result))


def with_histories(data: RetrievalData) -> RetrievalData:
    """Gives each event the movies of its user before it, none at the same time, the latest last."""
    log = data.train
    users, times = log.query_features["user_id"], log.timestamps
    past = np.full((len(log), LENGTH), "", log.item_ids.dtype)
    seen: dict[str, list[tuple[int, str]]] = {}
    for row in np.argsort(times, kind="stable"):
        before = [item for time, item in seen.get(users[row], []) if time < times[row]][-LENGTH:]
        past[row, : len(before)] = before
        seen.setdefault(users[row], []).append((times[row], log.item_ids[row]))
    train = Interactions(
        {"user_id": users, "past": past},
        log.item_ids,
        query_key="user_id",
        timestamps=times,
        columns={"past": "history"},
    )
    return replace(data, train=train)


def left_out(role: str) -> tfn.Column:
    """Returns what says that a tower does not read a column."""
    return tfn.Column(role, encoding="left_out")


def hit_rates(data: RetrievalData, seed: int) -> dict[str, float]:
    """Returns the hit rate at 10 of one model with the profiles of either moment."""
    tf.keras.utils.set_random_seed(seed)
    queries = tfn.infer_features(data.train, declared={"user_id": left_out("query_id")})
    model = tfn.TwoTower(
        tfn.build_tower(queries, hidden=[64], output_dim=32, name="query_tower"),
        tfn.build_tower(
            tfn.infer_features(
                data.items, declared={"year": left_out("item"), "genres": left_out("item")}
            ),
            hidden=[64],
            output_dim=32,
            name="item_tower",
        ),
        data.items,
        tfn.recipes.in_batch(data.items, temperature=0.1),
    )
    model.compile(tfn.SparseAdam(0.003))
    dataset = data.train.dataset(BATCH, item_key=model.item_key, seed=seed)
    model.fit(dataset, epochs=EPOCHS, verbose=0)
    index = tfn.build_index(model, kind="exact")
    return {moment: _hit_rate(data, index, moment) for moment in MOMENTS}


def _hit_rate(data: RetrievalData, index: Any, moment: Any) -> float:
    profiles, query_of_event = data.train.queries(moment=moment)
    order = np.argsort(query_of_event, kind="stable")
    counts = np.bincount(query_of_event)
    seen = np.split(data.train.item_ids[order], np.cumsum(counts)[:-1])
    _, ids = index.top_k({"past": profiles["past"]}, K, exclude=[list(items) for items in seen])
    wanted = dict(zip(data.test.query_features["user_id"], data.test.item_ids, strict=True))
    hits = [wanted.get(u) in row for u, row in zip(profiles["user_id"], ids, strict=True)]
    return sum(hits) / len(wanted)


def empty_profiles(data: RetrievalData, moment: Any) -> int:
    """Returns how many users are described by an empty history."""
    return int((data.train.queries(moment=moment)[0]["past"] == "").all(axis=1).sum())


def render(result: dict[str, Any]) -> str:
    """Returns the page."""
    lines = [
        "# One profile for each user",
        "",
        *(__doc__ or "").split("\n\n")[1].splitlines(),
        "",
        "| profile of | users without a history | hit rate at 10 |",
        "|---|---|---|",
    ]
    for moment, rates in result["hit_rate_at_10"].items():
        spread = statistics.stdev(rates) if len(rates) > 1 else 0.0
        empty = f"{result['empty_profiles'][moment]} of {result['users']}"
        lines.append(
            f"| the {moment} event | {empty} | {statistics.mean(rates):.3f} ± {spread:.3f} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    seeds = f"seeds {result['seeds']}, mean and standard deviation"
    lines += ["", f"{result['date']}, {result['machine']}, {versions}; {seeds}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
