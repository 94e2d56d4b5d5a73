"""One of several worker processes: trains its part of the batches of `test_replicas`.

Called as: worker.py NUMBER OUTPUT ADDRESS [ADDRESS ...], one address per worker.
"""

import json
import os
import sys


def main(number: str, output: str, *addresses: str) -> None:
    task = {"type": "worker", "index": int(number)}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": addresses}, "task": task})

    import tfrs_negatives  # noqa: F401  isort: skip  (before TensorFlow)
    import numpy as np
    import tensorflow as tf

    # Before anything else of TensorFlow runs, which the import of the tests does.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    from test_replicas import SGD, SIZES, batch, make_model, split, state_of

    with strategy.scope():
        model = make_model("mixed cross-batch", SGD)
    step = tf.function(lambda part: strategy.run(model.train_step, args=(part,)))
    losses = []
    for index in range(len(SIZES)):
        parts = split(batch(index), strategy.num_replicas_in_sync)
        value = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: parts[context.replica_id_in_sync_group]
        )
        model.reset_metrics()
        losses.append(float(step(value)["loss"]))
    states = [v.numpy() for v in state_of(model)]
    np.savez(output, losses=np.array(losses), **{f"{n:03}": x for n, x in enumerate(states)})


if __name__ == "__main__":
    main(*sys.argv[1:])
