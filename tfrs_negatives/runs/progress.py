"""What a person sees on the terminal: progress on standard error, results on standard output."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tfrs_negatives.runs.checkpoints import steps_done


class EpochProgress(tf.keras.callbacks.Callback):
    """A bar over all training steps with the loss and the time that remains.

    It begins at the step that the optimizer counts.

    Args:
        label: what is trained.
    """

    def __init__(self, *, label: str = "train") -> None:
        super().__init__()
        self.label = label

    def on_train_begin(self, logs: Any = None) -> None:
        """Shows the bar."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._bar.start()
        # An interrupted run has no end of training, and must not leave the cursor hidden.
        atexit.register(self._bar.stop)
        steps = (self.params.get("steps") or 0) * self.params["epochs"]
        done = steps_done(self.model)
        self._task = self._bar.add_task(self.label, total=steps or None, completed=done)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar."""
        self._bar.advance(self._task)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Shows the loss of the epoch."""
        loss = (logs or {}).get("loss", float("nan"))
        text = f"{self.label}  epoch {epoch + 1}/{self.params['epochs']}  loss {loss:.4f}"
        self._bar.update(self._task, description=text)

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the bar as it stands."""
        self._bar.stop()


def print_records(records: Sequence[Mapping[str, Any]], *, title: str) -> None:
    """Prints records of equal keys as a table, numbers to the right."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name, value in records[-1].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right", no_wrap=True)
    for record in records:
        table.add_row(*(_format(value) for value in record.values()))
    # Rather lines that the terminal wraps than columns cut to nothing.
    Console(width=max(Console().width, 120)).print(table)


def print_tree(record: Mapping[str, Any], *, indent: str = "") -> None:
    """Prints nested records, a line per value."""
    for name, value in record.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}:")
            print_tree(value, indent=indent + "  ")
        else:
            print(f"{indent}{name}: {_format(value)}")


def _format(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
