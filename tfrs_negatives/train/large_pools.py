"""The log-sum-exp of a softmax over more columns than there is memory for logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import tensorflow as tf

from tfrs_negatives.types import Margin, bad_input

KeepBlock: TypeAlias = "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]"

LOWEST = tf.float32.min
NO_SECOND = "chunked_log_sum_exp has no second derivative."


def columns_within(byte_budget: int, num_rows: int) -> int:
    """The widest block of columns whose logits fit, and whose product is not slow.

        w = byte_budget / (4 num_rows), and 8 fewer where that is a multiple of 512

    The gradient of the columns is the product of a transposed block. In a block whose rows are a
    multiple of 2 KiB apart, a column falls on few lines of the cache, and the product takes 1.4 to
    9 times as long. Powers of two give exactly such widths.

    Args:
        byte_budget: bytes of a block of logits, [num_rows, w] float32; a step holds a few at once.
        num_rows: B.

    Returns:
        The number of columns; 0 where the budget does not hold one.

    Example:
        >>> columns_within(2**24, 4096), columns_within(2**24, 4000), columns_within(100, 4096)
        (1016, 1048, 0)
    """
    width = byte_budget // (4 * num_rows)
    return width - 8 if width and width % 512 == 0 else width


def chunked_log_sum_exp(
    queries: tf.Tensor,
    columns: tf.Tensor,
    shift: tf.Tensor,
    *,
    keep: KeepBlock | None,
    origin: tf.Tensor,
    block_width: int,
    stale_from: tf.Tensor | int | None = None,
) -> tuple[Margin, tf.Tensor]:
    """`masked_log_sum_exp` of logits that are never there all at once.

        value_i = log sum_{j kept} exp(<queries_i, columns_j> + shift_j) - origin_i

    Blocks of columns pass one after the other. The forward pass carries along, for each row, the
    largest logit, the sum, and the weighted sum of the columns, which is the gradient of the
    query. The backward pass computes each block once more, for the gradients of its columns. The
    memory is O(B block_width + C D), the work four matrix products instead of three. There is no
    second derivative.

    Args:
        queries: [B, D] float32, already divided by the temperature. D is static.
        columns: [C, D] float32.
        shift: [C] float32 in nats, added to each column's logits.
        keep: (start, logits [B, w]) -> [B, w] bool, False for a column that does not count in
            this row; w is the width of this block, whose first column is number `start`, an int32
            scalar. It is asked once in each pass and must answer the same: let it close over
            tensors, not over variables. No gradient flows through it. None keeps all.
        origin: [B] float32, subtracted.
        block_width: columns of a block, see `columns_within`. The last one has the rest, which
            may be none.
        stale_from: from this column on neither the columns nor their shift get a gradient, and the
            backward pass leaves them out. None gives one to all.

    Returns:
        Whether each row has any kept column, and the value; and how many columns were kept over all
        rows, scalar float32. The gradient of a row without any is 0. A column whose shift is minus
        infinity counts as not kept.

    Raises:
        InputError: if a block has no columns.
        LookupError: if a second derivative is asked for.

    Example:
        >>> margin, num_kept = chunked_log_sum_exp(
        ...     tf.zeros([2, 3]), tf.zeros([5, 3]), tf.zeros([5]), block_width=2,
        ...     origin=tf.zeros([2]), keep=lambda start, logits: logits >= [[0.0], [1.0]])
        >>> margin.some.numpy().tolist(), round(float(margin.value[0]), 4)     # log 5
        ([True, False], 1.6094)
        >>> float(num_kept)
        5.0

    Source: the online softmax of Milakov and Gimelshein, 2018; Dao et al., NeurIPS 2022
        (FlashAttention), for the passes; ALG 13.1.
    """
    if block_width < 1:
        raise bad_input("block_width", "at least 1 column", block_width)

    @tf.custom_gradient
    def reduce(queries: tf.Tensor, columns: tf.Tensor, shift: tf.Tensor) -> tuple[Any, Any]:
        blocks = _Blocks(queries, columns, shift, keep, block_width)
        peak, total, weighted, num_kept = blocks.reduce()
        some = _any_kept(peak, total)
        total = tf.where(some, total, 1.0)

        def gradient(_peak: tf.Tensor, upstream: tf.Tensor, _kept: tf.Tensor) -> list[tf.Tensor]:
            # Divided by the total here, where it is [B], and not in each block.
            scale = tf.where(some, upstream / total, 0.0)[:, None]
            by_column = blocks.column_gradients(peak, scale, stale_from)
            gradients = scale * weighted, by_column[:, :-1], by_column[:, -1]
            # A second derivative would take the sums above for constants.
            return [tf.raw_ops.PreventGradient(input=g, message=NO_SECOND) for g in gradients]

        return (peak, tf.math.log(total), num_kept), gradient

    peak, log_total, num_kept = reduce(queries, columns, shift)
    some = _any_kept(peak, log_total)
    # As in `masked_log_sum_exp`: the difference is small where both are large.
    value = tf.where(some, tf.stop_gradient(peak) - origin, 0.0) + log_total
    return Margin(some, value), tf.stop_gradient(num_kept)


def _any_kept(peak: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    # A maximum may pass over what is not a number; that must not end as a loss of 0.
    return (peak > LOWEST) | tf.math.is_nan(total)


class _Blocks:
    """The two passes over the blocks. Full blocks have a static width; the rest is one more."""

    def __init__(
        self,
        queries: tf.Tensor,
        columns: tf.Tensor,
        shift: tf.Tensor,
        keep: KeepBlock | None,
        width: int,
    ) -> None:
        self.columns, self.shift, self.keep = columns, shift, keep
        # XLA compiles the loop for full blocks also where it never runs.
        self.width = min(width, max(columns.shape[0] or width, 1))
        # One more dimension carries the shift, and its gradient, through the products.
        self.queries = tf.concat([queries, tf.ones_like(queries[:, :1])], axis=1)

    def reduce(self) -> tuple[tf.Tensor, ...]:
        """Returns peak [B], sum of exp(logit - peak) [B], that sum weighted by column [B, D], and
        the number of kept columns.

        The sums of a row of which nothing is kept are without meaning.
        """
        empty = tf.zeros_like(self.queries[:, 0])
        state = empty + LOWEST, empty, tf.zeros_like(self.queries[:, :-1]), tf.zeros([])
        full, rest = self._split(_length(self.columns))
        _, *state = tf.while_loop(
            lambda number, *_: number < full,
            lambda number, *state: (
                number + 1,
                *self._add(number * self.width, self.width, *state),
            ),
            (0, *state),
            parallel_iterations=1,
        )
        return self._add(full * self.width, rest, *state)

    def _add(
        self,
        start: tf.Tensor,
        width: tf.Tensor | int,
        peak: tf.Tensor,
        total: tf.Tensor,
        weighted: tf.Tensor,
        num_kept: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        columns, logits, kept = self._block(start, width)
        if kept is not None:
            logits = tf.where(kept, logits, LOWEST)
        counted = tf.ones_like(logits) if kept is None else tf.cast(kept, tf.float32)
        exists = tf.cast(tf.slice(self.shift, [start], [width]) > -math.inf, tf.float32)
        num_kept += tf.reduce_sum(tf.linalg.matvec(counted, exists))
        # While nothing was kept the weights are exp(0); they fade to 0 at the first kept logit.
        higher = tf.maximum(peak, tf.reduce_max(logits, axis=1))
        fade = tf.exp(peak - higher)
        weights = tf.exp(logits - higher[:, None])
        total = total * fade + tf.reduce_sum(weights, axis=1)
        weighted = weighted * fade[:, None] + tf.matmul(weights, columns)
        return higher, total, weighted, num_kept

    def column_gradients(
        self, peak: tf.Tensor, scale: tf.Tensor, stale_from: tf.Tensor | int | None
    ) -> tf.Tensor:
        """Returns [C, D + 1]: sum over the rows of scale_i exp(logit_ij - peak_i) (query_i, 1)."""
        queries = self.queries * scale
        num_columns = _length(self.columns)
        fresh = num_columns if stale_from is None else stale_from
        full, rest = self._split(fresh)

        def of_block(start: tf.Tensor, width: tf.Tensor | int) -> tf.Tensor:
            _, logits, kept = self._block(start, width)
            weights = tf.exp(logits - peak[:, None])
            if kept is not None:
                weights = tf.where(kept, weights, 0.0)
            return tf.matmul(weights, queries, transpose_a=True)

        size = queries.shape[1]
        blocks = tf.TensorArray(tf.float32, full, element_shape=[self.width, size])
        _, blocks = tf.while_loop(
            lambda number, _: number < full,
            lambda number, done: (
                number + 1,
                done.write(number, of_block(number * self.width, self.width)),
            ),
            (0, blocks),
            parallel_iterations=1,
        )
        first = tf.reshape(blocks.stack(), [-1, size])
        stale = tf.zeros([num_columns - fresh, size])
        return tf.concat([first, of_block(full * self.width, rest), stale], axis=0)

    def _block(
        self, start: tf.Tensor, width: tf.Tensor | int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns columns [w, D], logits [B, w], and which of them are kept, [B, w] or None."""
        start = tf.convert_to_tensor(start)
        columns = tf.slice(self.columns, [start, 0], [width, self.columns.shape[1]])
        shift = tf.slice(self.shift, [start], [width])
        logits = tf.matmul(
            self.queries, tf.concat([columns, shift[:, None]], axis=1), transpose_b=True
        )
        return columns, logits, None if self.keep is None else self.keep(start, logits)

    def _split(self, num_columns: tf.Tensor | int) -> tuple[tf.Tensor | int, tf.Tensor | int]:
        """Returns the number of full blocks and the width of the rest, static where it can be."""
        full = num_columns // self.width
        return full, num_columns - full * self.width


def _length(tensor: tf.Tensor) -> tf.Tensor | int:
    static = tensor.shape[0]
    return tf.shape(tensor)[0] if static is None else static
