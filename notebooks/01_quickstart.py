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
# # Quickstart
#
# Train a two-tower model with in-batch negatives, see what the logQ correction does to popularity,
# add uniform negatives, and ask an index. The log is synthetic, so that the truth is known.

# %%
import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import matplotlib.pyplot as plt
import numpy as np

import tfrs_negatives as tfn  # before TensorFlow: it chooses legacy Keras

# isort: split
import tensorflow as tf

tf.get_logger().setLevel("ERROR")

# %% [markdown]
# ## The log
#
# 2,000 users, 2,000 items. The logging policy shows popular items more; some items have no event.

# %%
data = tfn.data.synthetic(num_users=2000, num_items=2000, num_events=80_000)
counts = data.train.item_counts(data.items)
print(f"{len(data.train):,} training events, {(counts == 0).sum()} items never seen")

fig, axis = plt.subplots(figsize=(5, 3))
axis.loglog(np.sort(counts)[::-1] + 1)
axis.set(xlabel="item, by popularity", ylabel="training events + 1")
fig.tight_layout()

# %% [markdown]
# ## Two towers, three tasks
#
# A task says where the negatives come from and how they are corrected. All else stays the same. A
# fifth of the ids is read as unknown in training, so that the towers learn what features tell.


# %%
seen = {name: column[counts > 0] for name, column in data.items.features.items()}
queries = tfn.infer_features(data.train.query_features, id_dropout={"user_id": 0.2})
items = tfn.infer_features(seen, id_dropout={data.items.item_key: 0.2})


def train(task: tfn.Retrieval) -> tfn.TwoTower:
    tf.keras.utils.set_random_seed(1)
    query_tower = tfn.build_tower(queries, name="query_tower")
    item_tower = tfn.build_tower(items, name="item_tower")
    model = tfn.TwoTower(query_tower, item_tower, data.items, task)
    model.compile(tfn.SparseAdam(0.003))
    model.fit(data.train.dataset(1024, item_key=model.item_key), epochs=6, verbose=0)
    return model


models = {
    "in-batch, no correction": train(tfn.recipes.in_batch(data.items, correct=None)),
    "in-batch + logQ": train(tfn.recipes.in_batch(data.items)),
    "mixed (MNS)": train(tfn.recipes.mixed_negative_sampling(data.items, num_uniform=512)),
}

# %% [markdown]
# ## What each finds
#
# The whole catalogue is ranked for every test user, without what the user has seen. Without the
# correction popular items are pushed down; with it the head comes back. On items never seen in
# training logQ alone is generous; mixed negatives learn from their uniform draws that such items
# are never chosen, which is true of the log.

# %%
popular = tfn.MostPopular(data.items, counts)
names = ["recall_at_100", "tail_recall_at_100", "unseen_recall_at_100", "coverage_at_100"]
print(" " * 24, *[name.removesuffix("_at_100").rjust(14) for name in names])
for label, model in {"most popular": popular, **models}.items():
    result = tfn.evaluate(model, data.test, ks=(100,), exclude=data.train, train=data.train)
    print(label.ljust(24), *[f"{result.metrics[name]:14.3f}" for name in names])

# %% [markdown]
# ## What the estimator learned
#
# The streaming estimate of each item's probability against the truth that the generator knows.

# %%
frequency = models["in-batch + logQ"].task.frequency
estimate = frequency.log_probability(tf.constant(data.items.keys)).numpy()
truth = np.log(data.truth.item_probability + 1e-12)

fig, axis = plt.subplots(figsize=(4, 4))
axis.plot(truth[counts > 0], estimate[counts > 0], ".", markersize=3)
axis.plot([-11, -3], [-11, -3], color="black", linewidth=1)
axis.set(xlabel="true log q", ylabel="estimated log q", xlim=(-11, -3), ylim=(-12, -3))
fig.tight_layout()

# %% [markdown]
# ## An index
#
# ScaNN where the corpus is large, exact where it is small. The export is loaded in another process
# and compared before it appears.

# %%
index = tfn.build_index(models["mixed (MNS)"])
path = tfn.export_index(index, "quickstart_index", ks=(10,), overwrite=True)
served = tfn.load_index(path)
query = {name: column[:1] for name, column in data.test.query_features.items()}
scores, ids = served.top_k(query, k=5)
print(served.manifest["kind"], ids[0].tolist())
