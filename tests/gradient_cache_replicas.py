"""Two replicas in chunks against one device at once; `test_gradient_cache` runs it on its own.

Devices are divided before TensorFlow starts, so this has a process of its own.
"""

import conftest  # noqa: F401  (chooses legacy Keras)
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

import test_gradient_cache as cases  # noqa: E402


def main():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    ids = cases.rows(10)["id"]
    plain, _ = cases.dropout_tower(0.0)
    cases.minimize(plain, tf.keras.optimizers.SGD(0.1), cases.at_once, {"id": ids})
    with strategy.scope():
        tower, dropout = cases.dropout_tower(0.0)
        optimizer = tf.keras.optimizers.SGD(0.1)
        optimizer.build(tower.trainable_variables)
    # Seven rows and three: the replicas do not run the same number of chunks.
    shares = strategy.experimental_distribute_values_from_function(
        lambda replica: {"id": ids[:7] if replica.replica_id_in_sync_group == 0 else ids[7:]}
    )
    arguments = (tower, optimizer, cases.encode_in_chunks, shares)
    tf.function(lambda: strategy.run(cases.minimize, arguments))()
    cases.assert_same(*([v.numpy() for v in t.trainable_variables] for t in (tower, plain)))
    # One call on each, whatever its number of chunks: the state is the same everywhere.
    counts = [int(copy) for copy in strategy.experimental_local_results(dropout.calls)]
    assert counts == [1, 1], counts


if __name__ == "__main__":
    main()
