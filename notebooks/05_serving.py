# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a trained model to a served index
#
# A run is trained, its index tuned and exported; the answers are filtered; items that the training
# has never seen come in, others go; and a service answers over HTTP while a new export takes over.

# %%
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import matplotlib.pyplot as plt
import numpy as np

import tfrs_negatives as tfn  # before TensorFlow: it chooses legacy Keras

# isort: split
import tensorflow as tf

from tfrs_negatives.index.build.plots import plot_sweep
from tfrs_negatives.runs.train import load_run, read_columns

tf.get_logger().setLevel("ERROR")
logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
work = Path(tempfile.mkdtemp())
run = work / "run"


# %% [markdown]
# ## A run
#
# As on the command line: `tfrs-negatives train --out run ...`. The log is the synthetic one, whose
# items have a group and a text, so that a new item has features to be embedded from.


# %%
def command(*arguments: str) -> None:
    names = [sys.executable, "-m", "tfrs_negatives", *map(str, arguments)]
    done = subprocess.run(names, capture_output=True, text=True, check=True)
    print(done.stdout.strip()[-600:])


command("train", "--out", run, "train.epochs=2", "model.id_dropout=0.2", "index.group_by=cluster")
config, model = load_run(run)
print("the item tower reads", model.item_tower.input_names)

# %% [markdown]
# ## Tuned
#
# `build_index` is exact below 20,000 items. Here ScaNN is asked for, to see what it does: trees of
# three sizes, several numbers of leaves to search and of candidates to score exactly are tried on
# the probe queries; the fastest that finds 95 % of the exact ten best is kept, and how deep to look
# for the 100 and the 1,000 best is measured apart. Give it queries of your own log.

# %%
queries = read_columns(run / "queries.parquet")
probes = {name: queries[name] for name in model.query_signature}
index = tfn.build_index(model, kind="scann", group_by="cluster", probe_queries=probes)
print(f"recall at 10: {index.recall['recall']:.3f}, of {len(index.sweep)} settings tried")
for depth in index.backend.settings.depths:
    print(depth)
plot_sweep(index.sweep, work / "sweep.png", target=0.95)
plt.figure(figsize=(12, 4))
plt.imshow(plt.imread(work / "sweep.png"))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Filtered
#
# Always exactly k columns. What a list takes away is fetched in addition; a query that still comes
# up short is answered by an exact pass; and a column for which nothing is left says so: the id is
# empty (-1 where ids are integers) and the score -inf.

# %%
user = {name: column[:1] for name, column in probes.items()}
scores, ids = index.top_k(user, k=5)
print("the best      ", ids[0])
print("without two   ", index.top_k(user, k=5, exclude=ids[0, :2])[1][0])
print("of three      ", index.top_k(user, k=5, allow=["item_1", "item_2", "item_3"])[1][0])
print("of one cluster", index.top_k(user, k=5, allow_groups=["cluster_0"])[1][0])

# %% [markdown]
# ## Items that the training has never seen
#
# An index that is in service is frozen; a small exact one in front of it takes the changes. The new
# item below has an unknown id and the features of one that the user likes.

# %%
delta = tfn.DeltaIndex(index)
rows = model.items.rows(ids[0, :1]).numpy()
liked = {name: model.items.features[name][rows] for name in index.item_signature}
new = {**liked, "item_id": np.array(["brand new"])}
delta.upsert(["brand new"], delta.embed_item(new), groups=liked["cluster"])
delta.delete(ids[0, 1:2])
print("now           ", delta.top_k(user, k=5)[1][0])
print("still frozen  ", index.top_k(user, k=5)[1][0])

# %% [markdown]
# `tfn.LiveIndex` changes in place instead, by ScaNN's own updates: for a process that owns its
# index and lives long. `rebalance` cuts its leaves anew, `refresh` takes a new model, `snapshot` is
# an index that can be exported. It has no groups.

# %%
settings = index.backend.settings
live = tfn.LiveIndex.of(tfn.build_index(model, kind="scann", settings=settings))
live.upsert(["brand new"], live.embed_item(new))
print("in place      ", live.top_k(user, k=5)[1][0])

# %% [markdown]
# ## Exported
#
# A SavedModel with a manifest, checked in another process before it gets its name. Its signatures
# answer in any server of SavedModels; those of an exact index in a stock TensorFlow Serving, as
# they have no operation but TensorFlow's own.

# %%
path = tfn.export_index(tfn.build_index(model, kind="exact"), work / "exact", ks=(10, 100))
manifest = json.loads((path / "manifest.json").read_text())
print("signatures:", ", ".join(manifest["signatures"]))
print("operations that are not TensorFlow's own:", manifest["custom_ops"])
served = tf.saved_model.load(str(path)).signatures["with_exclusions"]
tensors = {n: tf.constant(column, model.query_signature[n].dtype) for n, column in user.items()}
answer = served(**tensors, exclude=tf.constant(ids[:, :2]))
print("excluded there", answer["ids"].numpy()[0, :3].astype(str))

# %% [markdown]
# ## Served
#
# `tfrs-negatives serve run` answers over HTTP, on this machine only unless it is told otherwise.
# Its page at `/` shows what a user chose and gets, for one run or two side by side.

# %%
command("index", run)
log = (work / "server.log").open("w+")
server = subprocess.Popen(
    [sys.executable, "-u", "-m", "tfrs_negatives", "serve", str(run), "--port", "0"],
    stdout=log,
    stderr=subprocess.STDOUT,
)
address = None
while address is None and server.poll() is None:
    time.sleep(0.2)
    address = re.search(r"http://\S+", (work / "server.log").read_text())
print("the service runs:", server.poll() is None)


def ask(method: str, place: str, body: dict | None = None) -> dict:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        address.group() + place, content, {"Content-Type": "application/json"}, method=method
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)


user_id = str(user["user_id"][0])
found = ask("POST", "/recommend", {"query_id": user_id, "k": 3, "exclude_seen": True})
for item in found["items"]:
    print(item)

# %% [markdown]
# The new item again, now over HTTP. `tfrs-negatives index run --overwrite` would take over within a
# second or two, without a failed request, and with this item encoded by its own item tower.

# %%
features = {name: column[0].tolist() for name, column in liked.items() if name != "item_id"}
print(ask("PUT", "/items", {"items": [{"id": "brand new", "features": features}]}))
print([item["id"] for item in ask("POST", "/recommend", {"query_id": user_id, "k": 3})["items"]])
server.terminate()
print("ended with", server.wait())
