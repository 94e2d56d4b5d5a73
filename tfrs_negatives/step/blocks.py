"""The log-sum-exp of a softmax over more columns than there is memory for logits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import tensorflow as tf

from tfrs_negatives.core.errors import bad_input
from tfrs_negatives.step.records import Excess

KeepBlock: TypeAlias = "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]"

LOWEST = tf.float32.min


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
    positive: tf.Tensor,
    block_width: int,
    own_rows: tf.Tensor | None = None,
    stale_from: tf.Tensor | int | None = None,
    learns_shift: bool = True,
    byte_budget: int = 0,
) -> tuple[Excess, tf.Tensor]:
    """`masked_log_sum_exp` of logits that are never there all at once.

        value_i = log sum_{j kept} exp(<queries_i, columns_j> + shift_j) - positive_i

    Blocks of columns pass one after the other. The forward pass carries along, for each row, the
    largest logit, the sum, and the weighted sum of the columns, which is the gradient of the
    query. The backward pass needs the weights of each block for the gradients of its columns. Those
    of all blocks are remembered where they fit the budget; else it computes each block once more:
    the memory is O(B block_width + C D), the work four matrix products instead of three. There is
    no second derivative.

    Args:
        queries: [B, D] float32, already divided by the temperature. D is static.
        columns: [C, D] float32.
        shift: [C] float32 in nats, added to each column's logits.
        keep: (start, logits [B, w]) -> [B, w] bool, False for a column that does not count in
            this row; w is the width of this block, whose first column is number `start`, an int32
            scalar. It is asked once in each pass and must answer the same: let it close over
            tensors, not over variables. No gradient flows through it. None keeps all.
        positive: [B] float32, subtracted.
        block_width: columns of a block, see `columns_within`. The last one has the rest, which
            may be none.
        own_rows: [C] int32, the row whose positive each column is, which does not count there; -1
            for nobody's. None: there is none.
        stale_from: from this column on neither the columns nor their shift get a gradient, and the
            backward pass leaves them out, and computes the others once more. None gives one to all.
        learns_shift: whether the shift gets a gradient; without, the products are faster.
        byte_budget: bytes that the logits of all columns may take, 4 each, for the weights to be
            remembered.

    Returns:
        Whether each row has any kept column, and the value; and how many columns were kept over all
        rows, scalar float32. The gradient of a row without any is 0. A column whose shift is minus
        infinity counts as not kept.

    Raises:
        InputError: if a block has no columns.
        LookupError: if a second derivative is asked for.

    Example:
        >>> excess, num_kept = chunked_log_sum_exp(
        ...     tf.zeros([2, 3]), tf.zeros([5, 3]), tf.zeros([5]), block_width=2,
        ...     positive=tf.zeros([2]), keep=lambda start, logits: logits >= [[0.0], [1.0]])
        >>> excess.some.numpy().tolist(), round(float(excess.value[0]), 4)     # log 5
        ([True, False], 1.6094)
        >>> float(num_kept)
        5.0

    Source: the online softmax of Milakov and Gimelshein, 2018; Dao et al., NeurIPS 2022
        (FlashAttention), for the passes.
    """
    if block_width < 1:
        raise bad_input("block_width", "at least 1 column", block_width)

    @tf.custom_gradient
    def reduce(queries: tf.Tensor, columns: tf.Tensor, shift: tf.Tensor) -> tuple[Any, Any]:
        fits = _fits(queries, columns, byte_budget) if stale_from is None else False
        blocks = _Blocks(
            queries,
            columns,
            shift,
            keep,
            own_rows,
            width=block_width,
            remembers=fits,
            learns_shift=learns_shift,
        )
        (peak, total, weighted, num_kept), remembered = blocks.reduce()
        some = _any_kept(peak, total)
        total = tf.where(some, total, 1.0)

        def gradient(_peak: tf.Tensor, upstream: tf.Tensor, _kept: tf.Tensor) -> list[tf.Tensor]:
            # Divided by the total here, where it is [B], and not in each block.
            scale = tf.where(some, upstream / total, 0.0)[:, None]
            by_column = blocks.column_gradients(peak, scale, stale_from, remembered)
            of_shift = by_column[:, -1] if learns_shift else None
            gradients = scale * weighted, by_column[:, : queries.shape[1]], of_shift
            # A second derivative would take the sums above for constants.
            return [g if g is None else _prevent_second(g) for g in gradients]

        return (peak, tf.math.log(total), num_kept), gradient

    peak, log_total, num_kept = reduce(queries, columns, shift)
    some = _any_kept(peak, log_total)
    # As in `masked_log_sum_exp`: the difference is small where both are large.
    value = tf.where(some, tf.stop_gradient(peak) - positive, 0.0) + log_total
    return Excess(some, value), tf.stop_gradient(num_kept)


def _prevent_second(gradient: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.PreventGradient(input=gradient, message="It has no second derivative.")


def _fits(queries: tf.Tensor, columns: tf.Tensor, byte_budget: int) -> tf.Tensor | bool:
    num_rows, num_columns = _length(queries), _length(columns)
    if isinstance(num_rows, int) and isinstance(num_columns, int):
        return 4 * num_rows * num_columns <= byte_budget
    return 4 * tf.cast(num_rows, tf.int64) * tf.cast(num_columns, tf.int64) <= byte_budget


def _any_kept(peak: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    # A maximum may pass over what is not a number; that must not end as a loss of 0.
    return (peak > LOWEST) | tf.math.is_nan(total)


class _Sums(NamedTuple):
    """Of each row: the largest logit [B], the sum of exp(logit - peak) [B], that sum weighted by
    column [B, D]; and the number of kept columns over all rows.
    """

    peak: tf.Tensor
    total: tf.Tensor
    weighted: tf.Tensor
    num_kept: tf.Tensor


class _Remembered(NamedTuple):
    """What the backward pass finds of the forward pass. Where it does not fit, it has no rows.

    The first two are arrays with an entry for each block but the last one; None without any.
    """

    weights: Any
    peaks: Any
    weights_of_last: tf.Tensor


class _Blocks:
    """The two passes over the blocks. All have a static width but for the last one, the rest.

    Args:
        queries: [B, D].
        columns: [C, D].
        shift: [C].
        keep: see `chunked_log_sum_exp`.
        own_rows: [C] or None.
        width: of a full block.
        remembers: whether the weights of all blocks fit, a bool or a scalar.
        learns_shift: whether the shift has a gradient.
    """

    def __init__(
        self,
        queries: tf.Tensor,
        columns: tf.Tensor,
        shift: tf.Tensor,
        keep: KeepBlock | None,
        own_rows: tf.Tensor | None,
        *,
        width: int,
        remembers: tf.Tensor | bool,
        learns_shift: bool,
    ) -> None:
        self.columns, self.shift, self.keep, self.own_rows = columns, shift, keep, own_rows
        # XLA compiles the loop for full blocks also where it never runs.
        self.width = min(width, max(columns.shape[0] or width, 1))
        # One more dimension carries the shift, and its gradient, through the products.
        self.bare_queries = queries
        self.queries = tf.concat([queries, tf.ones_like(queries[:, :1])], axis=1)
        self.remembers, self.learns_shift = remembers, learns_shift

    def reduce(self) -> tuple[_Sums, _Remembered]:
        """Returns the sums over all columns, and what is remembered.

        The sums of a row of which nothing is kept are without meaning.
        """
        full, rest = self._split(_length(self.columns))
        if _is_zero(full):
            sums, of_last = self._add(0, rest, None)
            return sums, _Remembered(None, None, of_last)
        empty = tf.zeros_like(self.queries[:, 0])
        nothing = _Sums(empty + LOWEST, empty, tf.zeros_like(self.bare_queries), tf.zeros([]))
        rows = self.queries.shape[0] if self.remembers is True else None
        weights = _array(full, [rows, self.width])
        peaks = _array(full, [self.queries.shape[0]])

        def add(number: tf.Tensor, sums: _Sums, weights: Any, peaks: Any) -> tuple[Any, ...]:
            sums, of_block = self._add(number * self.width, self.width, sums)
            return sums, weights.write(number, of_block), peaks.write(number, sums.peak)

        sums, weights, peaks = _repeat(full, add, (nothing, weights, peaks))
        # Where no gradient is asked for nobody reads them, which TensorFlow reports as an error.
        weights, peaks = weights.identity(), peaks.identity()
        sums, of_last = self._add(full * self.width, rest, sums)
        return sums, _Remembered(weights, peaks, of_last)

    def _add(
        self, start: tf.Tensor | int, width: tf.Tensor | int, before: _Sums | None
    ) -> tuple[_Sums, tf.Tensor]:
        """Returns the sums with one more block, and the weights in it."""
        columns, logits, kept = self._block(start, width)
        if kept is not None:
            logits = tf.where(kept, logits, LOWEST)
        # While nothing was kept the weights are exp(0); they fade to 0 at the first kept logit.
        lowest = LOWEST if before is None else before.peak
        peak = tf.maximum(tf.reduce_max(logits, axis=1), lowest)
        weights = tf.exp(logits - peak[:, None])
        total, weighted = tf.reduce_sum(weights, axis=1), tf.matmul(weights, columns)
        num_kept = self._count(start, width, kept)
        if before is not None:
            fade = tf.exp(before.peak - peak)
            total += before.total * fade
            weighted += before.weighted * fade[:, None]
            num_kept += before.num_kept
        sums = _Sums(peak, total, weighted, num_kept)
        return sums, _either(self.remembers, lambda: weights, lambda: weights[:0])

    def _count(self, start: tf.Tensor, width: tf.Tensor | int, kept: tf.Tensor | None) -> tf.Tensor:
        exists = tf.cast(tf.slice(self.shift, [start], [width]) > -math.inf, tf.float32)
        if kept is None:
            num_rows = tf.cast(tf.shape(self.queries)[0], tf.float32)
            return num_rows * tf.reduce_sum(exists) - tf.reduce_sum(
                exists * tf.cast(self._own(start, width) >= 0, tf.float32)
            )
        return tf.reduce_sum(tf.linalg.matvec(tf.cast(kept, tf.float32), exists))

    def column_gradients(
        self,
        peak: tf.Tensor,
        scale: tf.Tensor,
        stale_from: tf.Tensor | int | None,
        remembered: _Remembered,
    ) -> tf.Tensor:
        """Returns [C, D + 1]: sum over the rows of scale_i exp(logit_ij - peak_i) (query_i, 1).

        [C, D] where the shift does not learn.
        """
        queries = (self.queries if self.learns_shift else self.bare_queries) * scale
        num_columns = _length(self.columns)
        fresh = num_columns if stale_from is None else stale_from
        full, rest = self._split(fresh)

        def again(start: tf.Tensor, width: tf.Tensor | int) -> tf.Tensor:
            return _by_column(self._weights(start, width, peak), queries)

        def of_block(number: tf.Tensor | int) -> tf.Tensor:
            def from_memory() -> tf.Tensor:
                fade = tf.exp(remembered.peaks.read(number) - peak)[:, None]
                return _by_column(remembered.weights.read(number), queries * fade)

            start = number * self.width
            return _either(self.remembers, from_memory, lambda: again(start, self.width))

        shape = [self.width, queries.shape[1]]
        blocks = [] if _is_zero(full) else [_stacked(full, of_block, shape)]
        of_last = _either(
            self.remembers,
            lambda: _by_column(remembered.weights_of_last, queries),
            lambda: again(full * self.width, rest),
        )
        stale = [] if stale_from is None else [tf.zeros([num_columns - fresh, queries.shape[1]])]
        return tf.concat([*blocks, of_last, *stale], axis=0)

    def _weights(self, start: tf.Tensor, width: tf.Tensor | int, peak: tf.Tensor) -> tf.Tensor:
        """Returns exp(logit - peak) of a block once more, [B, w], 0 where it is not kept."""
        _, logits, kept = self._block(start, width)
        weights = tf.exp(logits - peak[:, None])
        return weights if kept is None else tf.where(kept, weights, 0.0)

    def _block(
        self, start: tf.Tensor, width: tf.Tensor | int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Returns columns [w, D], logits [B, w], and which of them are kept, [B, w] or None."""
        columns = tf.slice(self.columns, [start, 0], [width, self.columns.shape[1]])
        shift = tf.slice(self.shift, [start], [width])
        logits = tf.matmul(
            self.queries, tf.concat([columns, shift[:, None]], axis=1), transpose_b=True
        )
        own = self._own(start, width)
        if logits.shape[0] in (None, 0):
            # A replica without rows has no cell to write.
            own = own[: tf.minimum(tf.shape(logits)[0], 1) * tf.shape(own)[0]]
        cells = tf.stack([tf.maximum(own, 0), tf.range(tf.shape(own)[0])], axis=1)
        kept = None if self.keep is None else self.keep(start, logits)
        # Writes w cells where a comparison with all rows would pass over [B, w].
        if kept is not None:
            others = tf.tensor_scatter_nd_update(kept, cells, tf.gather_nd(kept, cells) & (own < 0))
            return columns, logits, others
        bound = tf.where(own >= 0, LOWEST, math.inf)
        return columns, tf.tensor_scatter_nd_min(logits, cells, bound), None

    def _own(self, start: tf.Tensor, width: tf.Tensor | int) -> tf.Tensor:
        if self.own_rows is None:
            return tf.fill([width], -1)
        return tf.slice(self.own_rows, [start], [width])

    def _split(self, num_columns: tf.Tensor | int) -> tuple[tf.Tensor | int, tf.Tensor | int]:
        """Returns the number of full blocks and the width of the last, static where it can be."""
        # Only without any column the last one is empty.
        full = (num_columns + self.width - 1) // self.width - 1
        full = max(full, 0) if isinstance(full, int) else tf.maximum(full, 0)
        return full, num_columns - full * self.width


def _by_column(weights: tf.Tensor, queries: tf.Tensor) -> tf.Tensor:
    # [B, w], [B, D] -> [w, D]. Transposing the narrow factor is faster: a tenth, a sixth for odd D.
    return tf.transpose(tf.matmul(queries, weights, transpose_a=True))


def _length(tensor: tf.Tensor) -> tf.Tensor | int:
    static = tensor.shape[0]
    return tf.shape(tensor)[0] if static is None else static


def _array(size: tf.Tensor | int, shape: Sequence[int | None]) -> tf.TensorArray:
    # Known where it can be, which XLA and an array without elements need.
    return tf.TensorArray(
        tf.float32, size, element_shape=shape, infer_shape=False, clear_after_read=False
    )


def _repeat(times: tf.Tensor | int, body: Callable[..., Any], state: tuple[Any, ...]) -> Any:
    """Does `state = body(number, *state)` for each number below `times`."""
    if isinstance(times, int) and times == 1:
        return body(0, *state)
    _, *state = tf.while_loop(
        lambda number, *_: number < times,
        lambda number, *state: (number + 1, *body(number, *state)),
        (0, *state),
        parallel_iterations=1,
    )
    return state


def _stacked(
    times: tf.Tensor | int, part: Callable[[Any], tf.Tensor], shape: list[int]
) -> tf.Tensor:
    """Returns the parts [w, D] of each number below `times`, one below the other."""
    if isinstance(times, int) and times == 1:
        return part(0)
    parts = _array(times, shape)
    (parts,) = _repeat(times, lambda number, done: (done.write(number, part(number)),), (parts,))
    return tf.reshape(parts.stack(), [-1, shape[1]])


def _is_zero(size: tf.Tensor | int) -> bool:
    return isinstance(size, int) and size == 0


def _either(
    condition: tf.Tensor | bool, yes: Callable[[], tf.Tensor], no: Callable[[], tf.Tensor]
) -> tf.Tensor:
    if isinstance(condition, bool):
        return yes() if condition else no()
    return tf.cond(condition, yes, no)
