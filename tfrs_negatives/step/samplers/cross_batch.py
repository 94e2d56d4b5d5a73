"""Items of past batches as they were encoded then."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.core.part import part
from tfrs_negatives.data.catalogue import ItemCatalogue
from tfrs_negatives.step.records import Batch, Candidates, Sampler, Scored
from tfrs_negatives.step.samplers.drift import DriftMeasure, FeatureDrift
from tfrs_negatives.step.samplers.memory_bank import BankContents, MemoryBank, Storage


@part("sampler")
class CrossBatch(Sampler, tf.keras.layers.Layer):
    """The items of past batches, from a memory bank and therefore without gradient.

    The bank is read before the batch is pushed, so no item is both fresh and stored. It holds
    candidates of the stream of positives, so the expected count of an item is m q for the m slots
    in use, with q as it is estimated now. In evaluation the bank is read and stays as it is.

    The bank is filled from the first step and used from the step on at which the item tower moves
    slowly enough: after `warmup_steps`, and while the drift of the probe items between two
    measurements is at most `max_drift`. Measurements are as far apart as the oldest item is old.

    The training logs have `bank_fill` (share of slots in use), `bank_age` (their mean age in steps)
    and, with probes, `bank_drift` (not a number before the second measurement).

    Args:
        capacity: how many items the bank holds, M; at least a batch, of all replicas.
        warmup_steps: steps before the bank is used.
        max_drift: the largest drift at which it is used; None does not ask. About 0.01 to 0.1 for
            the relative measure; the thesis used 1 for the sum over its catalogue.
        probes: the catalogue whose items measure the drift; needed for `max_drift`, and None
            measures nothing.
        num_probes: how many of them; None is a sixteenth of the capacity, and 64 at least. A
            measurement encodes them once around the bank.
        drift: "relative" or "sum", see `FeatureDrift`.
        probe_every: steps between measurements; None is once around the bank.
        max_age: the oldest items that are used, in steps; None uses all.
        storage: dtype of the bank.
        compensate: whether the fresh candidates take over the gradient that those of the bank
            cannot have. False is the method as published; see below.

    Raises:
        InputError: if a number is out of its range, a batch is larger than the bank, or `max_drift`
            comes without probes.

    Example:
        >>> CrossBatch(65536, warmup_steps=1000).name
        'cross_batch'

    Relations: a bank that holds just one batch, scored against the next, is in-batch with that
        batch's items; batch and bank together have the log count (B + M) q.

    Compensation: a positive pulls its item in full, but of the B + m candidates that push an item
        away only the B fresh ones reach the item tower. With m beyond B the vectors gather in one
        direction. So the gradient of fresh candidates (not of positives) is multiplied by
        c_fresh+bank(j) / c_fresh(j), which is (B + m) / B for `InBatch`: the mean push is that of
        the softmax again, and queries and positives have the gradient of the whole pool.

    Source: Wang et al., SIGIR 2021. We differ: ids are stored and log q is read when used (the
        paper stores log q), the drift is relative, every row's own item can be masked, and the
        gradient is compensated.
    """

    needs_frequency = True
    starts_empty = True

    def __init__(
        self,
        capacity: int,
        *,
        warmup_steps: int = 0,
        max_drift: float | None = None,
        probes: ItemCatalogue | None = None,
        num_probes: int | None = None,
        drift: DriftMeasure = "relative",
        probe_every: int | None = None,
        max_age: int | None = None,
        storage: Storage = "float32",
        compensate: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"name": "cross_batch", "dtype": "float32", **kwargs})
        self.warmup_steps, self.max_drift, self.max_age = warmup_steps, max_drift, max_age
        self.probe_every, self.compensate = probe_every, compensate
        self._check_arguments(probes)
        self.bank = MemoryBank(capacity, storage=storage)
        self.drift = None
        if probes is not None:
            number = max(64, capacity // 16) if num_probes is None else num_probes
            self.drift = FeatureDrift(probes, num_probes=number, measure=drift)
        names = ["bank_fill", "bank_age", *(["bank_drift"] if self.drift is not None else [])]
        self.gauges = [tf.keras.metrics.Mean(name) for name in names]

    def _check_arguments(self, probes: ItemCatalogue | None) -> None:
        if self.warmup_steps < 0:
            raise bad_input("warmup_steps", "at least 0", self.warmup_steps)
        if self.max_drift is not None and not self.max_drift > 0:
            raise bad_input("max_drift", "a positive number", self.max_drift)
        if self.max_drift is not None and probes is None:
            raise bad_input("probes", "a catalogue, because `max_drift` needs one", None)
        for name in ("max_age", "probe_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise bad_input(name, "at least 1", value)

    def build(self, input_shape: Any) -> None:
        """Makes the state for embeddings [..., D]; the task and a loaded file may both ask."""
        if self.built:
            return
        self.bank.build(input_shape)
        if self.drift is not None:
            self.drift.build(input_shape)
            zero: dict[str, Any] = {"initializer": "zeros", "trainable": False}
            self.since_probe = self.add_weight("since_probe", [], tf.int64, **zero)
        super().build(input_shape)

    def sample(self, batch: Batch) -> Candidates:
        """Returns M candidates, of which the slots in use are valid."""
        contents = self.bank.read()
        return Candidates(
            contents.ids,
            tf.stop_gradient(contents.vectors),
            self._in_use(contents),
            has_gradient=False,
            compensated=self.compensate,
        )

    def log_count(self, ids: tf.Tensor, batch: Batch) -> tf.Tensor:
        """Returns log(m q), float32, the shape of ids; -inf while the bank is not in use."""
        used = tf.reduce_sum(tf.cast(self._in_use(self.bank.read()), tf.float32))
        return tf.math.log(used) + batch.log_probability(ids)

    def _in_use(self, contents: BankContents) -> tf.Tensor:
        used = contents.valid & (self.bank.step >= self.warmup_steps)
        if self.drift is not None and self.max_drift is not None:
            used &= self.drift.value <= self.max_drift
        if self.max_age is not None:
            used &= contents.ages <= self.max_age
        return used

    def update(self, batch: Batch, scored: Scored) -> None:
        """Measures what this step used, and then pushes the batch."""
        contents = self.bank.read()
        used = tf.cast(self._in_use(contents), tf.float32)
        count = tf.reduce_sum(used)
        age = tf.reduce_sum(used * tf.cast(contents.ages, tf.float32))
        readings = [count / self.bank.capacity, tf.math.divide_no_nan(age, count)]
        if self.drift is not None:
            readings.append(self.drift.value)
        for gauge, reading in zip(self.gauges, readings, strict=True):
            # The latest reading, not a mean over the epoch: one unmeasured step would spoil it.
            gauge.total.assign(reading)
            gauge.count.assign(1.0)
        self.bank.push(batch.item_ids, tf.stop_gradient(batch.items))
        if self.drift is not None:
            self._probe(self.drift, batch)

    def _probe(self, drift: FeatureDrift, batch: Batch) -> None:
        interval = self.probe_every or self.bank.capacity
        passed = tf.shape(batch.item_ids, tf.int64)[0]
        if self.probe_every:
            passed = tf.ones_like(passed)
        # The first step is measured at once, so that the second measurement can compare.
        due = tf.equal(self.bank.step, 1) | (self.since_probe + passed >= interval)
        self.since_probe.assign(tf.where(due, tf.zeros_like(passed), self.since_probe + passed))

        def measure() -> int:
            drift.measure_now(batch.encode_probes)
            return 0

        tf.cond(due, measure, lambda: 0)
