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
# # Hard negatives
#
# Where hard negatives come from: batches of similar queries, the columns of a step that a miner
# chooses, losses that ask for the hardest, and a mining with the model itself. And what each of
# them finds on one log, beside in-batch negatives with the correction.

# %%
import logging
import os
import sys
import tempfile
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import matplotlib.pyplot as plt
import numpy as np
import pyarrow.parquet as pq

import tfrs_negatives as tfn  # before TensorFlow: it chooses legacy Keras

# isort: split
import tensorflow as tf

tf.get_logger().setLevel("ERROR")
logging.basicConfig(stream=sys.stdout, format="%(message)s", force=True)

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
profiles, user_of_event = data.train.queries()
item_of_event = data.train.item_rows(data.items)
known = np.zeros((user_of_event.max() + 1, len(data.items)), bool)
known[user_of_event, item_of_event] = True
print(f"{data.name}: {len(data.train):,} training events of {len(known)} users,")
print(f"{len(data.items):,} items; a user has chosen {np.median(known.sum(axis=1)):.0f} of them")

# %%
B = 512
seen = {name: column[counts > 0] for name, column in data.items.features.items()}
queries, items = tfn.infer_features(data.train.query_features), tfn.infer_features(seen)


def train(task, clustered=False, callbacks=(), epochs=4):
    """Returns the model and, for each epoch, the training logs."""
    tf.keras.utils.set_random_seed(1)
    sizes = {"hidden": [64], "output_dim": 32}
    query_tower = tfn.build_tower(queries, name="query_tower", **sizes)
    item_tower = tfn.build_tower(items, name="item_tower", **sizes)
    model = tfn.TwoTower(query_tower, item_tower, data.items, task)
    model.compile(tfn.SparseAdam(0.003))
    if clustered:
        batches = tfn.ClusteredBatches(
            data.train,
            B,
            item_key=model.item_key,
            cluster_size=tfn.doubling(2, every=1),
            refresh_every=1,
        )
        callbacks = [tfn.RefreshClusters(batches), *callbacks]
        steps = {"steps_per_epoch": batches.steps_per_epoch}
        log = batches.dataset()
    else:
        log, steps = data.train.dataset(B, item_key=model.item_key), {}
    history = model.fit(log, epochs=epochs, verbose=0, callbacks=[*callbacks], **steps)
    return model, history.history


names = ["recall_at_10", "recall_at_100", "tail_recall_at_100", "coverage_at_100"]


def show(label, model):
    result = tfn.evaluate(model, data.test, ks=(10, 100), exclude=data.train, train=data.train)
    print(label.ljust(26), *[f"{result.metrics[name]:18.3f}" for name in names])


baseline, _ = train(tfn.recipes.in_batch(data.items))
print(" " * 26, *[name.rjust(18) for name in names])
show("most popular", tfn.MostPopular(data.items, counts))
show("in-batch + logQ", baseline)

# %% [markdown]
# ## Batches of similar queries
#
# `ClusteredBatches` puts events of similar users side by side, so that the items of the other rows
# are near misses. Clusters of one user are the usual random order. `doubling` is the curriculum:
# the size by epoch. `fit` needs the callback `RefreshClusters`, which embeds and clusters all
# queries where that is due; here the trained model does it once, by hand. Each event comes once in
# an epoch, whatever the size.

# %%
size = tfn.doubling(1, every=2)
print("users per cluster, by epoch:", [size(epoch) for epoch in range(10)])


def clustered_rows(cluster_size, batch_size=64):
    """The batches of one epoch as row numbers of the log, clustered with the trained model."""
    batches = tfn.ClusteredBatches(
        data.train, batch_size, item_key=baseline.item_key, cluster_size=cluster_size
    )
    batches.refresh(baseline, epoch=0)
    return list(batches.rows().as_numpy_iterator())


epochs_of = {cluster_size: clustered_rows(cluster_size) for cluster_size in (1, 4, 16, 32, 64)}
for cluster_size, batches in epochs_of.items():
    rows = np.concatenate(batches)
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(data.train)))
    print(f"clusters of {cluster_size:2}: {len(rows):,} events, each of them once")

# %% [markdown]
# How hard are the negatives that a row meets in its batch? Below is the cosine of the highest one,
# and the share of them that score no lower than the row's positive, which is *within its radius*.
# What the user has chosen in training is no negative and left out. A batch of 64 is one
# cluster of 64, or with clusters of 1 a sample of everything.

# %%
item_vectors = baseline.item_vectors(data.items.features).numpy()
cosine = baseline.query_vectors(profiles).numpy() @ item_vectors.T


def hardness(rows):
    users, chosen = user_of_event[rows], item_of_event[rows]
    scores, positive = cosine[np.ix_(users, chosen)], cosine[users, chosen]
    negative = ~known[np.ix_(users, chosen)]
    highest = np.where(negative, scores, -1).max(axis=1)
    within = (scores >= positive[:, None])[negative]
    return highest.mean(), within.mean()


print("users per cluster    highest negative    share within the radius")
found = {n: np.mean([hardness(rows) for rows in epochs_of[n]], axis=0) for n in epochs_of}
for cluster_size, (highest, within) in found.items():
    print(f"{cluster_size:17} {highest:19.3f} {within:26.3f}")

fig, axes = plt.subplots(1, 2, figsize=(8, 3))
for axis, values, label in zip(
    axes, np.transpose(list(found.values())), ("highest negative", "share within"), strict=True
):
    axis.semilogx(list(found), values, "o-", base=2)
    axis.axhline(values[0], color="black", linewidth=1)
    axis.set(xlabel="users per cluster", ylabel=label)
fig.tight_layout()

# %% [markdown]
# The larger the clusters, the harder, if not by much: 64 users are a good part of all.
#
# ## NGAME
#
# The recipe is in-batch negatives without what the user has chosen, of which only those within the
# positive's radius count. The thesis's radius ends at the positive (`slack=0`); with `slack=3`, the
# default, a column may score 3 nats lower, 0.3 of the cosine at temperature 0.1. Clusters begin
# with 2 users and double every epoch.

# %%
ngame = {
    "ngame": {},
    "ngame, random batches": {},
    "ngame, slack 0": {"slack": 0.0},
    "ngame, uncorrected": {"correct": None},
    "ngame, 0, uncorrected": {"slack": 0.0, "correct": None},
}
trained = {"in-batch + logQ": (baseline, {})}
trained["in-batch, uncorrected"] = train(tfn.recipes.in_batch(data.items, correct=None))
for label, options in ngame.items():
    task = tfn.recipes.ngame(data.items, history=data.train, **options)
    trained[label] = train(task, clustered="random" not in label)

print("empty_row_share by epoch")
for label in ngame:
    print(label.ljust(26), *[f"{share:7.4f}" for share in trained[label][1]["empty_row_share"]])
print("users per cluster".ljust(26), *[f"{n:7.1f}" for n in trained["ngame"][1]["cluster_size"]])

# %%
print(" " * 26, *[name.rjust(18) for name in names])
for label, (model, _) in trained.items():
    show(label, model)

# %% [markdown]
# A row whose positive beats every other column has no negative with `slack=0`, and loss 0;
# `empty_row_share` says how many there are.
#
# One seed and a few epochs, so small differences say nothing. The large ones are those of the full
# runs, [NGAME](../benchmarks/ngame/README.md) and [quality](../benchmarks/quality/README.md):
#
# - The correction matters most. NGAME as published has none, and popular items, which are in every
#   batch, are pushed down whatever the users like.
# - The radius without slack loses much of the recall. False negatives are not the reason: where an
#   oracle masks the held-out positives too, it loses as much beside no radius. The loss is cut
#   off: a positive that is just above the rest has nothing left to learn from.
# - The clusters change little here. There are only three times as many items as a batch has rows,
#   so random batches hold the near misses as well. Clusters are for catalogues of which a batch
#   sees a small part.
#
# ## NGAME with past batches
#
# `cross_batch_ngame` tests the items of past batches against the same radius and the same history.
# The bank of 1,024 is filled after two steps, and its near misses leave fewer rows empty.

# %%
task = tfn.recipes.cross_batch_ngame(data.items, history=data.train, slack=0.0, capacity=1024)
trained["cross-batch ngame, 0"] = train(task, clustered=True)
print("epoch    bank_fill   empty_row_share   of ngame, slack 0")
logs, other = (trained[label][1] for label in ("cross-batch ngame, 0", "ngame, slack 0"))
for epoch, (fill, empty) in enumerate(zip(logs["bank_fill"], logs["empty_row_share"], strict=True)):
    print(f"{epoch + 1:5} {fill:12.3f} {empty:17.4f} {other['empty_row_share'][epoch]:19.4f}")
print(" " * 26, *[name.rjust(18) for name in names])
for label in ("ngame, slack 0", "cross-batch ngame, 0"):
    show(label, trained[label][0])

# %% [markdown]
# ## Miners, one by one
#
# A miner gets the scored candidates of a step and says which of them count. To look at some, the
# one below keeps what it is given. The model is the baseline, the batch a random one.


# %%
class Recorder(tfn.Miner):
    def mine(self, scored, batch):
        self.scored, self.batch = scored, batch
        return scored


def record(batch, **options):
    recorder = Recorder()
    task = tfn.recipes.in_batch(
        data.items,
        frequency=tfn.ExactFrequency(data.items.ids, counts),
        masks=[tfn.KnownPositives(data.train, data.items)],
        miners=[recorder],
        **options,
    )
    ids = batch[baseline.item_key]
    vectors = baseline.item_vectors(data.items.gather(data.items.rows(ids)))
    task(baseline.query_vectors(batch), vectors, candidate_ids=ids, features=batch, training=False)
    return recorder


batch = next(iter(data.train.dataset(B, item_key=baseline.item_key)))
step = record(batch)
miners = {
    "Hardest(10)": tfn.Hardest(10),
    'Hardest(10, by="score")': tfn.Hardest(10, by="score"),
    "RandomOfTop(10, 100)": tfn.RandomOfTop(10, 100),
    "SemiHard(1.0)": tfn.SemiHard(1.0),
    "WithinPositiveRadius()": tfn.WithinPositiveRadius(),
    "... (slack=3.0)": tfn.WithinPositiveRadius(slack=3.0),
}
mined = {"all that the mask left": step.scored}
mined |= {label: miner.mine(step.scored, step.batch) for label, miner in miners.items()}
print(" " * 26, "columns per row   rows without   mean score - positive")
for label, scored in mined.items():
    keep = scored.keep.numpy()
    lead = (scored.score - scored.positive_score[:, None]).numpy()[keep].mean()
    print(
        label.ljust(26),
        f"{keep.sum(axis=1).mean():15.1f} {(~keep.any(axis=1)).mean():14.1%}",
        end="",
    )
    print(f"{lead:24.2f}")

# %% [markdown]
# One row of them. Each mark is a candidate at its score, the line is the positive.

# %%
scores, positive = step.scored.score.numpy(), step.scored.positive_score.numpy()
above = ((scores >= positive[:, None]) & step.scored.keep.numpy()).sum(axis=1)
row = np.abs(above - 8).argmin()
fig, axis = plt.subplots(figsize=(8, 3))
for place, scored in enumerate(mined.values()):
    kept = scored.score[row].numpy()[scored.keep[row].numpy()]
    axis.plot(kept, np.full(len(kept), -place), "|", markersize=14)
axis.axvline(positive[row], color="black", linewidth=1)
axis.set_yticks(-np.arange(len(mined)), mined)
axis.set(xlabel="score, similarity / temperature")
fig.tight_layout()

# %% [markdown]
# `Hardest` and `RandomOfTop` choose by the logit, after the correction: there a rare item counts
# more than its score says. With `by="score"` the ten are simply the ten to the right. The others
# compare scores, and how many they keep differs from row to row.
#
# ## Losses on pairs
#
# A softmax weighs its columns by itself; a loss on pairs does not, so there the miner matters more.
# `dynamic_negative_sampling` is BPR on the M hardest of N uniform items. The smaller M / N, the
# more the loss is about the top of the list, and the harder it is to begin with.

# %%
N = 200
pairs = {}
for num_hardest in (N, 2):
    task = tfn.recipes.dynamic_negative_sampling(
        data.items, num_hardest=num_hardest, num_uniform=N, history=data.train
    )
    pairs[f"BPR, {num_hardest} of {N}"] = train(task)
print(f"training loss by epoch; a pair that is not told apart costs ln 2 = {np.log(2):.3f}")
for label, (_, history) in pairs.items():
    print(label.ljust(26), *[f"{loss:7.3f}" for loss in history["loss"]])
print(" " * 26, *[name.rjust(18) for name in names])
for label, (model, _) in pairs.items():
    show(label, model)

# %% [markdown]
# Too hard from the start does not take off: the two hardest of 200 are above the positive of a
# model that knows nothing, the cheapest answer is to score all items alike, and the loss stays at
# ln 2. Begin with a large M / N.
#
# Two more losses, on the batch of above. The margin of `TripletHinge` is in the unit of the logits,
# similarity / temperature: 3.0 at temperature 0.1 is the 0.3 of the papers. `PointwiseBCE(n)` takes
# each column alone, the negatives n times as much as the positive. A softmax does not care what
# is added to all logits of a row, so those of the baseline are no log odds, and cost more than
# logits that are all 0.

# %%
scored = record(batch, correct=None).scored
lead = (scored.logit - scored.positive_logit[:, None]).numpy()[scored.keep.numpy()]
for margin in (0.3, 3.0):
    print(f"margin {margin}: {margin / 10:.2f} of the cosine; ", end="")
    print(f"{(lead > -margin).mean():.1%} of the pairs of the batch are inside")
cosines = scored._replace(positive_logit=scored.positive_logit / 10, logit=scored.logit / 10)
ten_times = 10 * tfn.losses.TripletHinge(0.3)(cosines)
np.testing.assert_allclose(tfn.losses.TripletHinge(3.0)(scored), ten_times, atol=1e-4)
for n in (1, 3):
    loss = tfn.losses.PointwiseBCE(n)(scored).numpy().mean()
    print(f"PointwiseBCE({n}): {loss:.2f}, all logits 0: {(1 + n) * np.log(2):.2f}")

# %% [markdown]
# ## Several positives
#
# `KnownPositives` drops what the user has chosen. `DecoupledSoftmax` learns from it: each such
# column is one more positive of the row, and does not compete with the others.

# %%
mask = tfn.KnownPositives(data.train, data.items)
task = tfn.recipes.in_batch(data.items, masks=[mask], loss=tfn.losses.DecoupledSoftmax())
decoupled, _ = train(task)
print(f"other positives among the columns of a row: {known[:, item_of_event].mean() * B:.0f}")
print(" " * 26, *[name.rjust(18) for name in names])
show("in-batch + logQ", baseline)
show("the same, decoupled", decoupled)

# %% [markdown]
# The other positives are those that the batch happens to hold, and a popular item is among the
# columns of every batch. So it is pulled by all who like it in each step: recall of the tail and
# coverage fall. The mask alone does little ([quality](../benchmarks/quality/README.md), row
# `masked`). The loss is for data that give all positives of a row, as labels do.
#
# ## Mined offline
#
# `mine_hard_negatives` asks the model for the best items of each user, takes out what the user has
# chosen in training, and keeps a window of ranks. No mined item is a training positive. Some are in
# the test part, and the more the higher the ranks: they are what the user chooses next.

# %%
mined_files = Path(tempfile.mkdtemp())
row_of_user = {user: row for row, user in enumerate(profiles[data.train.query_key].tolist())}
tested = np.zeros_like(known)
for user, item in zip(
    data.test.query_features[data.test.query_key].tolist(),
    data.test.item_rows(data.items),
    strict=True,
):
    if user in row_of_user:
        tested[row_of_user[user], item] = True


def pairs_of(file):
    """The rows of users and items of all pairs in a file."""
    table = pq.read_table(file)
    users = [row_of_user[user] for user in table[data.train.query_key].to_pylist()]
    lists = table["ids"].to_pylist()
    rows = data.items.rows(np.concatenate(lists)).numpy()
    return np.repeat(users, [len(ids) for ids in lists]), rows


for first, last in ((1, 20), (50, 100), (200, 400)):
    file = mined_files / f"ranks_{first}.parquet"
    summary = tfn.mine_hard_negatives(
        baseline, data.train, out=file, num=4, rank_range=(first, last), choose="random"
    )
    pair = pairs_of(file)
    np.testing.assert_equal(known[pair].sum(), 0)
    print(
        f"ranks {first} to {last}: {len(pair[0])} pairs, {known[pair].sum()} chosen in training, ",
        end="",
    )
    print(f"{tested[pair].mean():.1%} in the test part, mean cosine {cosine[pair].mean():.2f}")
print("the last one:", summary)

# %% [markdown]
# `NegativeTable` holds the lists of a file as weights, and `Explicit` looks up those of each row.
# `MineHardNegatives` mines anew after epochs. Until it has, the table is empty, and the loss is
# that of the easy negatives; then `EasyHardMixture` gives the hard ones a fixed share: a tenth.

# %%
table = tfn.NegativeTable(data.train, num=4)
table.load(mined_files / "ranks_50.parquet")
first_two = {data.train.query_key: profiles[data.train.query_key][:2]}
table_rows = data.items.rows_of_keys(table.ids_of_rows(first_two, 2)).numpy()
print("mined for the first two users:", data.items.ids[table_rows].tolist())

logging.getLogger("tfrs_negatives").setLevel("INFO")
fresh = tfn.NegativeTable(data.train, num=4)
task = tfn.recipes.in_batch(
    data.items,
    negatives=[tfn.InBatch(), tfn.Explicit(fresh, data.items)],
    loss=tfn.losses.EasyHardMixture(0.1),
)
refresh = tfn.MineHardNegatives(
    fresh, data.train, folder=mined_files, first_epoch=2, rank_range=(50, 100), choose="random"
)
model, logs = train(task, callbacks=[refresh])
print("mined for a user, by epoch:", logs.get("mined_negatives", "nothing yet"))
print(" " * 26, *[name.rjust(18) for name in names])
show("in-batch + logQ", baseline)
show("in-batch + logQ, mined", model)

# %% [markdown]
# Mining wins nothing here: a batch holds hundreds of the 1,700 items, near misses among them. It is
# for catalogues where no batch meets the best hundred of a query. [Choosing](../docs/choosing.md)
# says when, which ranks, and how often; [the benchmark](../benchmarks/mining/README.md) what it
# costs.
