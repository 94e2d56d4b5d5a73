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
# # Mixed and cross-batch negatives
#
# Five compositions on one log: the batch, the batch and uniform draws, the batch and past batches
# in two ways, and all three. Then what stands behind them: the corrected counts, the memory bank
# and its gates, hard negatives beside easy ones, and masks.

# %%
import dataclasses
import logging
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import matplotlib.pyplot as plt
import numpy as np

import tfrs_negatives as tfn  # before TensorFlow: it chooses legacy Keras

# isort: split
import tensorflow as tf

tf.get_logger().setLevel("ERROR")
logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)
logging.getLogger("tfrs_negatives").setLevel("INFO")

# %% [markdown]
# ## The log
#
# MovieLens-100K, ratings of 3 and more, a random fifth for the test. The folder is the one in the
# environment variable `ML_100K`, or `shared/data/ml-100k` beside the repository or above it. Where
# there is none, a synthetic log of the same size takes its place.


# %%
def movielens() -> Path | None:
    if "ML_100K" in os.environ:
        return Path(os.environ["ML_100K"])
    above = Path(tfn.__file__).resolve().parents
    return next((p for up in above if (p := up / "shared/data/ml-100k").is_dir()), None)


folder = movielens()
if folder is None:
    print("MovieLens-100K is not there: this is the synthetic log")
    data = tfn.data.synthetic(num_users=1000, num_items=1700, num_events=80_000)
else:
    data = tfn.data.load(f"ml-100k:{folder}", min_rating=3)
counts = data.train.item_counts(data.items)
print(f"{data.name}: {len(data.train):,} training events, {len(data.items):,} items,")
print(f"{(counts == 0).sum()} of them without an event, the most popular with {counts.max()}")

# %% [markdown]
# ## Five compositions
#
# A task is a list of sources. Each step asks all of them for columns, joins these to one pool, and
# corrects each column with the log of how often the *mixture* holds that item. The library logs
# the composition of the first step.

# %%
B, UNIFORM, BANK = 1024, 512, 2048
seen = {name: column[counts > 0] for name, column in data.items.features.items()}
queries, items = tfn.infer_features(data.train.query_features), tfn.infer_features(seen)
STEPS = data.train.steps_per_epoch(B)


def train(task, log=data.train, epochs=3):
    """Returns the model and, for each step, the training logs."""
    tf.keras.utils.set_random_seed(1)
    sizes = {"hidden": [64], "output_dim": 32}
    query_tower = tfn.build_tower(queries, name="query_tower", **sizes)
    item_tower = tfn.build_tower(items, name="item_tower", **sizes)
    model = tfn.TwoTower(query_tower, item_tower, data.items, task)
    model.compile(tfn.SparseAdam(0.003))
    steps = []
    note = tf.keras.callbacks.LambdaCallback(on_batch_end=lambda _, logs: steps.append(dict(logs)))
    batches = log.dataset(B, item_key=model.item_key)
    model.fit(batches, epochs=epochs, verbose=0, callbacks=[note])
    return model, steps


tasks = {
    "in-batch + logQ": tfn.recipes.in_batch(data.items),
    "mixed": tfn.recipes.mixed_negative_sampling(data.items, num_uniform=UNIFORM),
    "cross-batch": tfn.recipes.cross_batch_negative_sampling(data.items, capacity=BANK),
    "cross-batch, published": tfn.recipes.cross_batch_negative_sampling(
        data.items, capacity=BANK, compensate=False
    ),
    "all three, gated": tfn.recipes.mixed_cross_batch_negative_sampling(
        data.items,
        negatives=[
            tfn.InBatch(),
            tfn.Uniform(data.items, UNIFORM),
            tfn.CrossBatch(BANK, max_drift=0.002, probes=data.items),
        ],
    ),
}
trained = {label: train(task) for label, task in tasks.items()}

# %% [markdown]
# The bank is empty in the first step, so `cross_batch` counts 0 columns there. A column that holds
# nothing counts neither in the loss nor in the correction.
#
# ## What each finds
#
# A few epochs and one seed: all rows but one differ by less than two seeds do. [The
# benchmarks](../benchmarks/quality/README.md) train longer and give the spread.

# %%
names = ["recall_at_10", "recall_at_100", "tail_recall_at_100", "coverage_at_100"]


def show(label, model):
    result = tfn.evaluate(model, data.test, ks=(10, 100), exclude=data.train, train=data.train)
    print(label.ljust(22), *[f"{result.metrics[name]:18.3f}" for name in names])


print(" " * 22, *[name.rjust(18) for name in names])
show("most popular", tfn.MostPopular(data.items, counts))
for label, (model, _) in trained.items():
    show(label, model)

# %% [markdown]
# ## What the bank does to the items
#
# The items of the bank carry no gradient. As published, an item is pulled to its own queries in
# full, and pushed away from other queries only by the share of the denominator that is fresh: here
# a third. So items and queries gather in one direction, and the loss rises. With `compensate`,
# the default, the gradient of a fresh column is multiplied by (B + M) / B, so that the mean push
# is that of the softmax over all columns again. All vectors have length 1: their mean is as long
# as they agree.

# %%
print(" " * 22, "length of the mean item, of the mean query")
profiles, user_of_event = data.train.queries()
for label, (model, _) in trained.items():
    vectors = (model.item_vectors(data.items.features), model.query_vectors(profiles))
    print(label.ljust(22), *[f"{np.linalg.norm(np.mean(v, axis=0)):20.2f}" for v in vectors])

# %% [markdown]
# The catalogue is small and the batch is nearly as large, so there is little for a bank to win
# here. Use one where encoding items is what costs, and compare with in-batch on your own log.
#
# ## The bank along the training
#
# `bank_fill` is the share of slots in use, `bank_age` their mean age in steps, `bank_drift` how
# far the item tower moved in the time in which the bank goes round once:
#
#     mean ||g_now(y) - g_then(y)||^2 / mean ||g_now(y)||^2    over the probe items y
#
# The bank of the third and fourth model is read from the first step on, that of the last one only
# while the drift is at most 0.002 (the line in the plot). The drift is measured once around the
# bank, so its curve has steps.

# %%
print("epoch    fill   age   drift      (all three)")
for epoch, logs in enumerate(trained["all three, gated"][1][STEPS - 1 :: STEPS], start=1):
    fill, age, drift = (logs[f"bank_{name}"] for name in ("fill", "age", "drift"))
    print(f"{epoch:5} {fill:7.2f} {age:5.2f} {drift:7.4f}")

fig, (upper, lower) = plt.subplots(2, figsize=(6, 4), sharex=True)
for label in ("cross-batch", "cross-batch, published", "all three, gated"):
    upper.semilogy([logs["bank_drift"] for logs in trained[label][1]], label=label)
    lower.plot([logs["bank_fill"] for logs in trained[label][1]], label=label)
upper.axhline(0.002, color="black", linewidth=1)
upper.set(ylabel="drift")
upper.legend()
lower.set(xlabel="step", ylabel="share of slots in use")
fig.tight_layout()

# %% [markdown]
# ## What the gates do
#
# | argument | the bank is read | when to use it |
# |---|---|---|
# | `warmup_steps=n` | from step n + 1 on | the number is known from a run before |
# | `max_drift=x` | while the drift is at most x; never before the second measurement | otherwise |
# | `max_age=n` | only slots of the last n steps | a large bank, a tower that moves |
# | `storage="float16"` | always, rounded | memory |
#
# It is filled from the first step in any case. Below no tower is trained: a task takes embeddings,
# and all of them are 1 here. Two batches of 256 fit into `max_age=2`, four into the bank.


# %%
def feed(task, batches, size=256):
    """Runs a task on item ids alone."""
    for batch in data.train.dataset(size, item_key="item", shuffle=True).take(batches):
        ones = tf.ones([len(batch["item"]), 8])
        encode = lambda features: tf.ones([len(features[data.items.item_key]), 8])  # noqa: E731
        task(ones, ones, candidate_ids=batch["item"], encode_items=encode, training=True)
        yield


for gates in ({}, {"warmup_steps": 3}, {"max_age": 2}):
    bank = tfn.CrossBatch(1024, **gates)
    task = tfn.Retrieval(
        negatives=[tfn.InBatch(), bank], frequency=tfn.recipes.frequency_table(data.items)
    )
    fill = [float(bank.gauges[0].result()) for _ in feed(task, 7)]
    print(str(gates).ljust(22), "share in use:", fill)

for storage, size in {"float32": 4, "float16": 2}.items():
    print(f"65,536 items of 128 numbers in {storage}: {65_536 * (128 * size + 16) / 2**20:.0f} MiB")

# %% [markdown]
# ## The corrected counts
#
# An item of probability q is in `(B + M) q + B' / N` columns on average: B rows of the batch, M
# slots in use, B' uniform draws from N items. Here q is exact. A mask sees the pool of each step,
# so a mask that keeps everything can count what was drawn, and ask the sources what they expected.


# %%
class Count(tfn.Mask):
    steps, drawn, expected = 0, np.zeros(len(data.items)), np.zeros(len(data.items))

    def keep(self, scored, batch):
        rows = data.items.rows_of_keys(scored.ids).numpy()
        rows = rows[rows >= 0]
        self.steps += 1
        self.drawn += np.bincount(rows, minlength=len(data.items))
        for source in task.negatives:
            self.expected += np.exp(source.log_count(data.items.keys, batch))
        return tf.ones_like(scored.score, tf.bool)


count = Count()
task = tfn.recipes.mixed_cross_batch_negative_sampling(
    data.items,
    num_uniform=128,
    capacity=1024,
    frequency=tfn.ExactFrequency(data.items.ids, counts),
    masks=[count],
)
for _ in feed(task, 40):
    pass
drawn, expected = count.drawn / count.steps, count.expected / count.steps

order = np.argsort(-counts, kind="stable")
print("items by popularity    drawn per step    expected")
for first, last in ((0, 10), (10, 100), (100, 1000), (1000, len(order))):
    part = order[first:last]
    print(f"{first + 1:8} to {last:<8} {drawn[part].mean():17.3f} {expected[part].mean():11.3f}")

fig, axis = plt.subplots(figsize=(4, 4))
axis.loglog(expected, np.maximum(drawn, 1e-2), ".", markersize=3)
axis.plot([0.05, 10], [0.05, 10], color="black", linewidth=1)
axis.set(xlabel="expected columns per step", ylabel="drawn columns per step")
fig.tight_layout()

# %% [markdown]
# ## Hard negatives beside easy ones
#
# `Explicit` takes columns that the data names for each row. Here they are mined: items at ranks 50
# to 100 of the trained model that the user has not chosen in training. Some of them are in the
# test part, as with every mining. `Weighted` keeps them out in the first two epochs,
# `EasyHardMixture` then gives them a fixed tenth of the loss, however many easy columns there are.

# %%
model = trained["mixed"][0]
vectors = model.item_vectors(data.items.features).numpy()
scores = model.query_vectors(profiles).numpy() @ vectors.T
scores[user_of_event, data.train.item_rows(data.items)] = -np.inf
window = np.argsort(-scores, axis=1)[:, 50:100]
mined = data.items.ids[np.random.default_rng(0).permuted(window, axis=1)[:, :4]]

features = {**data.train.query_features, "mined": mined[user_of_event]}
log = dataclasses.replace(data.train, query_features=features)
begin = tf.keras.optimizers.schedules.PiecewiseConstantDecay([2 * STEPS], [0.0, 1.0])
hard = tfn.Weighted(tfn.Explicit("mined", data.items), begin)
task = tfn.recipes.mixed_negative_sampling(
    data.items,
    negatives=[tfn.InBatch(), tfn.Uniform(data.items, UNIFORM), hard],
    loss=tfn.losses.EasyHardMixture(0.1),
)
model, _ = train(task, log)
print(" " * 22, *[name.rjust(18) for name in names])
show("mixed", trained["mixed"][0])
show("mixed, mined", model)

# %% [markdown]
# ## What the masks drop
#
# `masked_share` in the training logs is the share of columns that a row does not count, its own
# aside. Below it is measured with the towers as trained. A mask of more than a few percent takes
# real negatives away: `ScoreMargin(0.0)` drops whatever scores above the positive, and much of
# that is what the model has yet to learn. -4 lets a column score 4 nats above, 0.4 of the cosine.
# `KnownPositives` drops much here because users have rated many of the popular movies.

# %%
model = trained["mixed"][0]
masks = {
    "AccidentalHits": tfn.AccidentalHits(),
    "KnownPositives": tfn.KnownPositives(data.train, data.items),
    "ScoreMargin(0.0)": tfn.ScoreMargin(0.0),
    "ScoreMargin(-4.0)": tfn.ScoreMargin(-4.0),
}
print(" " * 18, "masked share")
for label, mask in masks.items():
    task = tfn.recipes.mixed_negative_sampling(
        data.items, num_uniform=UNIFORM, correct="negatives", masks=[mask]
    )
    for batch in data.train.dataset(B, item_key=model.item_key).take(3):
        chosen = data.items.gather(data.items.rows(batch[model.item_key]))
        encode = lambda features: model.item_vectors(features)  # noqa: E731
        task(
            model.query_vectors(batch),
            encode(chosen),
            candidate_ids=batch[model.item_key],
            features=batch,
            encode_items=encode,
            training=True,
        )
    print(label.ljust(18), f"{float(task.report.masked_share.result()):12.2%}")

# %% [markdown]
# `AccidentalHits` and `KnownPositives` also drop the copies of the row's own positive. With
# `correct="both"` the copies belong to the estimate, so use these masks with `correct="negatives"`
# or None. [Choosing](../docs/choosing.md) says which source, correction and mask suits which log.
