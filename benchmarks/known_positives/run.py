"""What the mask of known positives costs: time of a step, memory, size of the saved config.

The baselines are the other ways to the same [B, C] booleans; each is checked for equality with the
mask before it is timed. All times of a table are taken in turn, in one run.

Run it from the root of the repository; it writes results.json and README.md beside itself, about
five minutes on two cores::

    python -m benchmarks.known_positives.run --data lightgcn:../shared/data/gowalla
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import tfrs_negatives as tfn  # isort: skip  (chooses legacy Keras before TensorFlow is imported)
import numpy as np
import tensorflow as tf

from tfrs_negatives.core.files import write_text
from tfrs_negatives.step.masks import known_positives

BATCH, DIM, OWN_COLUMNS, REPEATS = 2048, 64, 64, 9
WIDTHS = (2048, 4096, 36_864)
# A search for each pair takes a temporary of 600 MB and ten seconds at the widest pool.
SEARCH_UP_TO = 4096

TEXT = """# The mask of known positives

What `KnownPositives` costs, written by `python -m benchmarks.known_positives.run` from
[results.json](results.json): {batch} rows of the log, half of the columns drawn as the positives
are and half uniform. Median milliseconds of {repeats} calls, taken in turn, with the quartiles;
seed {seed}.
Python {python}, TensorFlow {tensorflow}, two cores that other jobs kept busy: read the ratios.

- `mask`: the columns grouped by item, only the cells to drop are written: the default for many
  cells.
- `mask, static`, `mask, static, XLA`: `static_shapes=True`, in a graph and compiled.
- `mask, table`: the default where queries times items are few: all cells are held.
- `mask, {own} own columns`: a search in the table of pairs, for columns [B, {own}].
- `representative`: marks one column per item, transposed, and copies it to the item's others.
- `membership`: marks [B, N] and gathers the columns.
- `search of each pair`: B x C codes in the whole table.
- `step`: `Retrieval` of the batch (and uniform columns) with id towers of width {dim}, forward,
  backward and `SparseAdam`; `step with the mask` adds the mask.
"""


def synthetic_log(num_events: int, num_queries: int, num_items: int, seed: int) -> tfn.Interactions:
    """Draws a log: lognormal history lengths, items by a power of their rank."""
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(2.95, 0.85, num_queries)
    lengths = np.clip(lengths * num_events / lengths.sum(), 1, 800).astype(np.int64)
    shares = np.arange(1, num_items + 1) ** -0.75
    places = np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(lengths.sum()))
    users = np.repeat(np.arange(num_queries), lengths)
    return tfn.Interactions({"user_id": users}, places.clip(0, num_items - 1), query_key="user_id")


def transposed_representative(mask: tfn.KnownPositives, queries: tf.Tensor, ids: tf.Tensor):
    """Marks [C, B], where copying a column is copying a row, and turns it."""
    rows, columns, width, number, item = _pairs(mask, queries, ids)
    standing = tf.fill([len(mask.items) + 1], width)
    standing = tf.tensor_scatter_nd_min(standing, columns[:, None], tf.range(width))
    at = tf.stack([tf.gather(standing, item), number], axis=1)
    nothing = tf.zeros([width + 1, tf.shape(rows)[0]], tf.bool)
    marks = tf.tensor_scatter_nd_update(nothing, at, tf.ones_like(number, tf.bool))
    return tf.transpose(tf.gather(marks, tf.gather(standing, columns)))


def membership(mask: tfn.KnownPositives, queries: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Marks the items of every row, and gathers the columns."""
    rows, columns, _, number, item = _pairs(mask, queries, ids)
    at = tf.stack([number, tf.cast(item, tf.int32)], axis=1)
    nothing = tf.zeros([tf.shape(rows)[0], len(mask.items) + 1], tf.bool)
    marks = tf.tensor_scatter_nd_update(nothing, at, tf.ones_like(number, tf.bool))
    return tf.gather(marks, columns, axis=1)


def search_of_each_pair(mask: tfn.KnownPositives, queries: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
    """Searches all codes in the whole table."""
    columns = mask.items.rows(ids)
    wanted = (mask._places(mask._query_keys, queries) * len(mask.items))[:, None] + columns
    flat = tf.reshape(wanted, [-1])
    found = tf.gather(mask._codes, tf.searchsorted(mask._codes, flat, out_type=tf.int64)) == flat
    return tf.reshape(found, tf.shape(wanted)) & (columns >= 0)


def _pairs(mask: tfn.KnownPositives, queries: tf.Tensor, ids: tf.Tensor) -> tuple[tf.Tensor, ...]:
    rows, num_items = mask._places(mask._query_keys, queries), len(mask.items)
    start, length = mask._histories(rows)
    number = tf.repeat(tf.range(tf.shape(rows)[0]), length)
    shift = start - tf.cumsum(length, exclusive=True)
    places = tf.range(tf.shape(number, out_type=tf.int64)[0]) + tf.gather(shift, number)
    item = tf.gather(mask._codes, places) - tf.gather(rows * num_items, number)
    return rows, mask.items.rows(ids, unknown=num_items), tf.shape(ids)[0], number, item


def time_in_turn(calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Returns name -> quartiles in milliseconds; other jobs on the machine disturb all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(REPEATS):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    quartiles = {n: 1e3 * np.percentile(s, [25, 50, 75]) for n, s in seconds.items()}
    return {n: dict(zip(("low", "median", "high"), q, strict=True)) for n, q in quartiles.items()}


def time_masks(
    log: tfn.Interactions, items: tfn.ItemCatalogue, width: int, seed: int
) -> dict[str, Any]:
    """Times every way to the mask of one batch, after checking that they agree."""
    rng = np.random.default_rng(seed)
    events = rng.integers(0, len(log), BATCH)
    queries = tf.constant(log.query_features[log.query_key][events], tf.int64)
    popular = log.item_ids[rng.integers(0, len(log), width - width // 2)]
    ids = np.concatenate([popular, items.ids[rng.integers(0, len(items), width // 2)]])
    ids = tf.constant(rng.permutation(ids), tf.int64)
    own = tf.constant(items.ids[rng.integers(0, len(items), [BATCH, OWN_COLUMNS])], tf.int64)
    default = tfn.KnownPositives(log, items)
    with mock.patch.object(known_positives, "TABLE_CELLS", 0):
        mask = tfn.KnownPositives(log, items)
        static = tfn.KnownPositives(log, items, static_shapes=True)
    graph = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.int64)]
    ways = {
        "mask": tf.function(mask.dropped_cells, graph),
        "mask, static": tf.function(static.dropped_cells, graph),
        "mask, static, XLA": tf.function(static.dropped_cells, jit_compile=True),
        "representative": tf.function(lambda q, i: transposed_representative(mask, q, i), graph),
        "membership": tf.function(lambda q, i: membership(mask, q, i), graph),
        "search of each pair": tf.function(lambda q, i: search_of_each_pair(mask, q, i), graph),
    }
    if default._table is not None:
        ways["mask, table"] = tf.function(default.dropped_cells, graph)
    if width > SEARCH_UP_TO:
        del ways["search of each pair"]
    cells = ways["mask"](queries, ids).numpy()
    for name, way in ways.items():
        if not (way(queries, ids).numpy() == cells).all():
            raise AssertionError(name)
    calls = {name: (lambda way=way: way(queries, ids).numpy()) for name, way in ways.items()}
    search = tf.function(mask.dropped_cells)
    calls[f"mask, {OWN_COLUMNS} own columns"] = lambda: search(queries, own).numpy()
    return {"columns": width, "dropped": float(cells.mean()), "times": time_in_turn(calls)}


def time_steps(
    log: tfn.Interactions, items: tfn.ItemCatalogue, width: int, seed: int
) -> dict[str, Any]:
    """Times a training step with and without the mask."""
    events = np.random.default_rng(seed).integers(0, len(log), BATCH)
    users, user_rows = np.unique(log.query_features[log.query_key], return_inverse=True)
    batch = {
        log.query_key: tf.constant(log.query_features[log.query_key][events], tf.int64),
        "user_row": tf.constant(user_rows[events]),
        "item_id": tf.constant(log.item_ids[events], tf.int64),
    }
    masks = {"step": [], "step with the mask": [tfn.KnownPositives(log, items)]}
    calls = {n: _step(m, len(users), items, width, batch) for n, m in masks.items()}
    return {"columns": width, "times": time_in_turn(calls)}


def _step(
    masks: list[Any], num_users: int, items: tfn.ItemCatalogue, width: int, batch: dict
) -> Callable[[], Any]:
    sources = [tfn.InBatch()]
    if width > BATCH:
        sources.append(tfn.Uniform(items, width - BATCH))
    task = tfn.Retrieval(negatives=sources, masks=masks, correct=None, reduction="mean")
    tables = [tf.Variable(tf.random.normal([n, DIM]) * 0.1) for n in (num_users, len(items))]
    optimizer = tfn.SparseAdam()
    optimizer.build(tables)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = task(
                tf.gather(tables[0], batch["user_row"]),
                tf.gather(tables[1], items.rows(batch["item_id"])),
                candidate_ids=batch["item_id"],
                features=batch,
                encode_items=lambda f: tf.gather(tables[1], items.rows(f["item_id"])),
                training=True,
            )
        optimizer.apply_gradients(zip(tape.gradient(loss, tables), tables, strict=True))
        return loss

    return lambda: step().numpy()


def measure_size(log: tfn.Interactions, items: tfn.ItemCatalogue) -> dict[str, Any]:
    """Returns the seconds to build, save and restore the mask, and its bytes."""
    began = time.perf_counter()
    mask = tfn.KnownPositives(log, items)
    built = time.perf_counter()
    config = json.dumps(mask.get_config())
    saved = time.perf_counter()
    again = tfn.KnownPositives.from_config(json.loads(config))
    restored = time.perf_counter()
    if not np.array_equal(again._codes, mask._codes):
        raise AssertionError("the config does not give the pairs back")
    tensors = (mask._codes, mask._starts, mask._query_keys)
    return {
        "events": len(log),
        "pairs": len(mask._codes) - 1,
        "queries": mask.num_queries,
        "longest": mask.longest,
        "megabytes": sum(t.numpy().nbytes for t in tensors) / 1e6,
        "config_megabytes": len(mask.get_config()["codes"]) / 1e6,
        "seconds": {
            "build": built - began,
            "save": saved - built,
            "restore": restored - saved,
        },
    }


def write_readme(folder: Path) -> None:
    """Writes README.md from results.json."""
    results = json.loads((folder / "results.json").read_text())
    text = TEXT.format(**{**results, **results["versions"]})
    for name, log in results["logs"].items():
        size, seconds = log["size"], log["size"]["seconds"]
        text += (
            f"\n## {name}\n\n{log['date']}. {size['events']:,} events, {size['pairs']:,} different "
            f"pairs, {size['queries']:,} queries, longest history {size['longest']}. Table "
            f"{size['megabytes']:.1f} MB, pairs in the config {size['config_megabytes']:.1f} MB; "
            f"built in {seconds['build']:.1f} s, saved in {seconds['save']:.1f} s, restored in "
            f"{seconds['restore']:.1f} s.\n\n| columns | dropped | what | median | quartiles |\n"
            "| --- | --- | --- | --- | --- |\n"
        )
        for table in [*log["masks"], *log["steps"]]:
            dropped = f"{table['dropped']:.2%}" if "dropped" in table else ""
            for what, ms in table["times"].items():
                text += (
                    f"| {table['columns']} | {dropped} | {what} | {ms['median']:.1f} | "
                    f"{ms['low']:.1f} to {ms['high']:.1f} |\n"
                )
    write_text(folder / "README.md", text)


def main() -> None:
    """Runs everything and writes it to the folder of this file, or to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a log as `data.load` reads it")
    parser.add_argument("--small-only", action="store_true", help="keep the results of the others")
    parser.add_argument("--events", type=int, default=10_000_000, help="of the synthetic log")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    small = synthetic_log(66_000, 940, 1_680, arguments.seed)
    logs = {"synthetic, small": (small, tfn.ItemCatalogue(np.arange(1_680)))}
    if not arguments.small_only:
        data = tfn.data.load(arguments.data)
        drawn = synthetic_log(arguments.events, arguments.events // 27, 41_000, arguments.seed)
        logs[data.name] = (data.train, data.items)
        logs["synthetic"] = (drawn, tfn.ItemCatalogue(np.arange(41_000)))
    results: dict[str, Any] = {
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__},
        "seed": arguments.seed,
        "batch": BATCH,
        "dim": DIM,
        "own": OWN_COLUMNS,
        "repeats": REPEATS,
        "logs": {},
    }
    if arguments.small_only:
        before = json.loads((arguments.output / "results.json").read_text())
        results["logs"] = before["logs"]
    for name, (log, items) in logs.items():
        today = datetime.date.today().isoformat()
        row: dict[str, Any] = {"date": today, "size": measure_size(log, items)}
        row["masks"] = [time_masks(log, items, width, arguments.seed) for width in WIDTHS]
        row["steps"] = [time_steps(log, items, w, arguments.seed) for w in WIDTHS if w <= 4096]
        results["logs"][name] = row
        print(name, json.dumps(row), flush=True)
        write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    write_readme(arguments.output)


if __name__ == "__main__":
    main()
