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
# # Many devices
#
# The same global batch gives the same loss on 1, 2 and 4 replicas, because every replica sees the
# items of all. The devices here are logical CPUs, so the notebook runs anywhere; with GPUs only
# the names of the devices change.

# %%
import os
import shutil

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np

import tfrs_negatives as tfn  # before TensorFlow: it chooses legacy Keras

# isort: split
import tensorflow as tf
import tensorflow_recommenders as tfrs

tf.get_logger().setLevel("ERROR")
cpu = tf.config.list_physical_devices("CPU")[0]
four = [tf.config.LogicalDeviceConfiguration() for _ in range(4)]
tf.config.set_logical_device_configuration(cpu, four)  # before TensorFlow is used


def replicas(number):
    """A strategy of so many replicas.

    Strategies of several sizes in one process must not use collectives, so one device adds up. A
    program with one strategy leaves `cross_device_ops` out.
    """
    if number == 1:
        return tf.distribute.get_strategy()
    devices = [f"CPU:{n}" for n in range(number)]
    one = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(devices, cross_device_ops=one)


# %% [markdown]
# ## What goes wrong without the gather
#
# 32 rows, and embeddings that are all the same: each row picks its positive among 32 with
# probability 1/32, and the sum of the losses is 32 ln 32 = 110.9. On two replicas
# `tfrs.tasks.Retrieval` sees 16 rows at a time, half of the negatives, and logs 2 * 16 ln 16 =
# 88.7: another problem, an easier one. With `tfn.Retrieval` the number of devices is not part of
# the result.


# %%
def total_loss(task, number):
    strategy = replicas(number)
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: tf.zeros([32 // number, 8])
    )
    losses = strategy.run(lambda part: task(part, part), args=(parts,))
    return float(strategy.reduce("SUM", losses, axis=None))


for label, task in {
    "tfrs.tasks.Retrieval()": tfrs.tasks.Retrieval(),
    "tfn.Retrieval()": tfn.Retrieval(),
}.items():
    losses = [f"{total_loss(task, number):6.1f}" for number in (1, 2, 4)]
    print(label.ljust(32), "on 1, 2, 4 replicas:", *losses)

# %% [markdown]
# ## A training on 1 and on 2 replicas
#
# Mixed and cross-batch negatives with the streaming correction. `fit` splits each batch among the
# replicas.

# %%
data = tfn.data.synthetic(num_users=500, num_items=400, num_events=8000)
queries = tfn.infer_features(data.train.query_features)
items = tfn.infer_features(data.items.features)
B, EPOCHS = 400, 2  # a whole number of batches
STEPS = data.train.steps_per_epoch(B)


def make_model():
    tf.keras.utils.set_random_seed(1)
    sizes = {"hidden": [64], "output_dim": 32}
    query_tower = tfn.build_tower(queries, name="query_tower", **sizes)
    item_tower = tfn.build_tower(items, name="item_tower", **sizes)
    task = tfn.recipes.mixed_cross_batch_negative_sampling(
        data.items, num_uniform=128, capacity=1024
    )
    model = tfn.TwoTower(query_tower, item_tower, data.items, task)
    model.compile(tfn.SparseAdam(0.003))
    return model


first = make_model()
no_sharding = tf.data.Options()  # of files among workers; here is one, and no file
no_sharding.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF


def train(number, checkpoints=None, callbacks=()):
    with replicas(number).scope():
        model = make_model()
    # A strategy draws other initial weights, so all begin with those of one model.
    model.query_tower.set_weights(first.query_tower.get_weights())
    model.item_tower.set_weights(first.item_tower.get_weights())
    start = 0
    if checkpoints is not None:
        start, callbacks = checkpoints.restore(model), [checkpoints, *callbacks]
    batches = data.train.stream(B, item_key=model.item_key, start_step=start)
    history = model.fit(
        batches.with_options(no_sharding),
        epochs=EPOCHS,
        steps_per_epoch=STEPS,
        verbose=0,
        callbacks=callbacks,
    )
    return model, history.history["loss"]


models = {}
for number in (1, 2):
    model, losses = train(number)
    result = tfn.evaluate(model, data.test, ks=(100,), exclude=data.train)
    recall = result.metrics["recall_at_100"]
    models[number] = model
    print(f"{number} replicas: loss {[round(x, 4) for x in losses]}, recall at 100: {recall:.3f}")

# %% [markdown]
# The losses of the two agree to the digits shown: only the order of sums differs.
#
# ## What is gathered, what stays local
#
# | | what |
# |---|---|
# | gathered | ids and embeddings of the batch's items; what `Uniform` encodes, each its share |
# | the same everywhere | draws, frequency table, memory bank, step, temperature |
# | local | queries, scores [B / R, C], masks, columns of `Explicit`, sample weights |
#
# Gradients flow back through the gather: that of an item is the sum of what all replicas made of
# it. A step sends about (B + B') D numbers beside the weights, and no logits. Every replica has
# the whole pool, so the memory for the logits is that of its own rows. A bank of capacity M stands
# on each replica and must hold at least the *global* batch.

# %%
bank = models[2].task.negatives[2].bank
copies = [bank.vectors.values[n].numpy() for n in range(2)]
single = models[1].task.negatives[2].bank.vectors.numpy()
print("bank of both replicas identical:", np.array_equal(*copies))
print(f"largest difference from the bank on one device: {np.abs(copies[0] - single).max():.1e}")

# %% [markdown]
# ## Several workers
#
# One process per machine, the same script in each. `TF_CONFIG` says who they are:
#
# ```python
# os.environ["TF_CONFIG"] = json.dumps({
#     "cluster": {"worker": ["host0:2222", "host1:2222"]},
#     "task": {"type": "worker", "index": 0},          # 1 on the other
# })
# import tfrs_negatives as tfn
# strategy = tf.distribute.MultiWorkerMirroredStrategy()   # before TensorFlow does anything else
# with strategy.scope():
#     model = make_model()
# model.fit(...)
# ```
#
# Nothing else changes. `tests/worker.py` is such a script, and `tests/test_replicas.py` compares
# two workers with one process.
#
# ## Save and resume
#
# Batch t of `Interactions.stream` depends on t and the seed alone, and `tfn.Checkpoints` keeps
# weights, optimizer, frequencies, bank and the number of steps. `restore` says how many steps are
# done, and a training that was stopped goes on with the batch that was next. Give `fit` the same
# `epochs` and `steps_per_epoch` again. It is shown on one device.


# %%
class Stop(tf.keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.steps_done.numpy()) == STEPS + 3:
            raise KeyboardInterrupt


shutil.rmtree("many_devices", ignore_errors=True)


def checkpoints():
    return tfn.Checkpoints("many_devices", every_steps=2)


try:
    train(1, checkpoints(), [Stop()])
except KeyboardInterrupt:
    print(f"stopped in step {STEPS + 3} of {EPOCHS * STEPS}")
resumed, losses = train(1, checkpoints())
print("steps after resuming:", int(resumed.steps_done.numpy()))
pairs = zip(resumed.trainable_variables, models[1].trainable_variables, strict=True)
difference = max(float(tf.reduce_max(tf.abs(a - b))) for a, b in pairs)
print(f"largest difference from the training without a stop: {difference:.1e}")
