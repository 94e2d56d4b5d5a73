"""Runs that are interrupted, killed or crash, and what the command line says and does then."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from test_cli import SMALL

from tfrs_negatives.runs import folder as run_folder
from tfrs_negatives.runs import train as experiments
from tfrs_negatives.runs.config import load_config
from tfrs_negatives.runs.folder import unfinished_of
from tfrs_negatives.runs.progress import EpochProgress

# 320 training events: epochs of 5 steps, checkpoints after 2, 4, 5, 7, 9 and 10.
OPTIONS = [*SMALL, "train.checkpoint_every_steps=2", "evaluation.every_epochs=2"]


@pytest.fixture(scope="module")
def source(log_file):
    return f"data.source=csv:{log_file}"


class CopyAfter(tf.keras.callbacks.Callback):
    """Copies a folder after a step: what a process leaves that is killed there."""

    def __init__(self, step, folder, target):
        super().__init__()
        self.step, self.folder, self.target = step, folder, target

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == self.step:
            shutil.copytree(self.folder, self.target)


@pytest.fixture(scope="module")
def complete(source, tmp_path_factory):
    """A run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("complete") / "first"
    (folder.parent / "later").mkdir()
    copy = CopyAfter(8, unfinished_of(folder), unfinished_of(folder.parent / "later" / "first"))
    config = load_config(overrides=[source, *OPTIONS])
    experiments.train_run(config, folder, callbacks=[copy])
    (folder.parent / "later").rename(tmp_path_factory.getbasetemp() / "interrupted")
    return folder


def stop_with(error, after):
    """A progress bar in whose place something goes wrong after a step."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == after:
            self._bar.stop()
            raise error

    return on_train_batch_end


@pytest.fixture
def run(complete, tmp_path_factory, tmp_path):
    """The name of a run that was killed after step 8; its last checkpoint is of step 7."""
    shutil.copytree(tmp_path_factory.getbasetemp() / "interrupted", tmp_path / "runs")
    return tmp_path / "runs" / "first"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def last_line(err):
    return err.splitlines()[-1]


def assert_same_run(run, complete):
    metrics, wanted = (json.loads((f / "metrics.json").read_text()) for f in (run, complete))
    assert metrics | {"seconds_per_epoch": 0} == wanted | {"seconds_per_epoch": 0}
    assert (run / "history.csv").read_bytes() == (complete / "history.csv").read_bytes()
    assert (run / "config.yaml").read_bytes() == (complete / "config.yaml").read_bytes()
    assert names(run) == names(complete)
    assert names(run.parent) == ["first"]


@pytest.mark.slow
def test_ctrl_c_leaves_an_unfinished_folder_and_says_how_to_go_on(
    call, source, complete, run, monkeypatch, caplog
):
    caplog.set_level("INFO", "tfrs_negatives")
    work = run.parent / ".first.unfinished"
    before = names(work)
    code, _, err = call("train", "--out", run, source, *OPTIONS)
    assert code == 2
    assert "--resume" in last_line(err)
    assert "--overwrite" in last_line(err)
    begun = [".lock", "checkpoints", "config.yaml", "history.csv", "schema.json"]
    assert names(work) == before == begun

    # Anew, and interrupted once more.
    (work / "mark").write_text("of the first attempt")
    with monkeypatch.context() as patch:
        patch.setattr(EpochProgress, "on_train_batch_end", stop_with(KeyboardInterrupt(), 8))
        code, _, err = call("train", "--out", run, "--overwrite", source, *OPTIONS)
    assert code not in (0, 2)
    assert "first step" in caplog.text
    assert f"`tfrs-negatives train --resume {run}` goes on from here." in caplog.text
    assert names(run.parent) == [".first.unfinished"]
    assert names(work) == before

    begun = []
    advance = EpochProgress.on_train_batch_end

    def note(self, batch, logs=None):
        begun.append(self._bar.tasks[0].completed)
        advance(self, batch, logs)

    monkeypatch.setattr(EpochProgress, "on_train_batch_end", note)
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    assert begun == [7, 8, 9]
    assert_same_run(run, complete)

    code, _, err = call("train", "--resume", run)
    assert code == 2
    assert "complete" in last_line(err)


PROGRAM = """
import os, signal, sys
from tensorflow.python.checkpoint import checkpoint_management
from tfrs_negatives.cli.main import main

update = checkpoint_management.update_checkpoint_state_internal

def kill_in_the_middle(*arguments, **options):
    # The files of the checkpoint are there, the list of checkpoints does not name it yet.
    if options["model_checkpoint_path"].endswith("ckpt-5"):
        os.kill(os.getpid(), signal.SIGKILL)
    return update(*arguments, **options)

checkpoint_management.update_checkpoint_state_internal = kill_in_the_middle
main()
"""


@pytest.mark.slow
def test_a_kill_while_the_end_of_an_epoch_is_saved(call, source, complete, tmp_path, caplog):
    caplog.set_level("INFO", "tfrs_negatives")
    run = tmp_path / "runs" / "first"
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, "train", "--out", str(run), source, *OPTIONS],
        capture_output=True,
        text=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoints = run.parent / ".first.unfinished" / "checkpoints"
    assert (checkpoints / "ckpt-5.index").exists()
    assert "ckpt-5" not in (checkpoints / "checkpoint").read_text()
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    assert "goes on after step 4" in caplog.text
    assert_same_run(run, complete)


@pytest.mark.slow
def test_crashes_after_the_last_step_of_a_run_that_replaces_another(
    call, run, complete, monkeypatch, caplog
):
    def crash(*_, **__):
        raise KeyboardInterrupt

    def resume_with(module, name):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash)
            code, _, _ = call("train", "--resume", run)
        assert code not in (0, 2)
        assert f"--resume {run}" in caplog.text
        caplog.clear()
        assert (run / "mark").exists()
        return names(run.parent / ".first.unfinished")

    shutil.copytree(complete, run)
    (run / "mark").write_text("of the old run, which stays until the new one is complete")
    assert "metrics.json" not in resume_with(experiments, "evaluate")
    # Training is done, so no step is taken again,
    monkeypatch.setattr(EpochProgress, "on_train_batch_end", crash)
    assert "metrics.json" in resume_with(run_folder, "put_in_place")
    # and then all is done, so not even the log is read.
    monkeypatch.setattr(experiments, "load_data", crash)
    code, out, err = call("train", "--resume", run, "--json")
    assert code == 0, err
    assert json.loads(out)["seconds_per_epoch"] is None
    assert_same_run(run, complete)


def test_interrupted_before_the_first_checkpoint_leaves_nothing(
    call, source, tmp_path, monkeypatch, caplog
):
    run = tmp_path / "runs" / "first"

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(EpochProgress, "on_train_begin", interrupt)
    code, _, _ = call("train", "--out", run, source, *OPTIONS)
    assert code not in (0, 2)
    assert "--resume" not in caplog.text
    assert not list(tmp_path.iterdir())


def test_killed_before_the_first_checkpoint_begins_anew(call, run, complete):
    shutil.rmtree(run.parent / ".first.unfinished" / "checkpoints")
    (run.parent / ".first.unfinished" / "history.csv").unlink()
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    assert_same_run(run, complete)


@pytest.mark.parametrize(
    "arguments",
    [["train.epochs=3"], ["--out", "x"], ["--config", "x.yaml"], ["--overwrite"], ["--dry-run"]],
)
def test_resume_stands_alone(call, run, arguments):
    code, printed, err = call("train", "--resume", run, *arguments)
    assert (code, printed) == (2, "")
    assert last_line(err).startswith("error: `resume`")


def test_two_processes_cannot_train_one_run(call, run, source):
    with run_folder.reopen_run(run) as (work, _):
        for arguments in (["--resume", run], ["--out", run, "--overwrite", source, *OPTIONS]):
            code, _, err = call("train", *arguments)
            assert code == 2
            assert "no other process" in last_line(err)
        begun = ["checkpoints", "config.yaml", "history.csv", "schema.json"]
        assert names(work) == [".lock", *begun]
    assert names(run) == ["config.yaml", "history.csv", "schema.json"]


def write(name, text):
    return lambda work: (work / name).write_text(text)


def change_log(work):
    config = work / "config.yaml"
    text = config.read_text()
    path = Path(text.split("source: csv:")[1].split("\n")[0])
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace(",i", ",i1")
    (work.parent / "other.csv").write_text("\n".join(lines) + "\n")
    config.write_text(text.replace(str(path), str(work.parent / "other.csv")))


def damage_checkpoints(work):
    for path in work.glob("checkpoints/*.index"):
        path.write_text("junk")


DAMAGES = {
    "no configuration": (lambda work: (work / "config.yaml").unlink(), "`run`"),
    "no YAML": (write("config.yaml", "a: [b"), "`config`"),
    "no history": (lambda work: (work / "history.csv").unlink(), "`run`"),
    "no history of the first epoch": (write("history.csv", "epoch,loss\n2,0.5\n"), "`run`"),
    "checkpoints": (damage_checkpoints, "`checkpoints`"),
    "list of checkpoints": (write("checkpoints/checkpoint", ""), "`checkpoints`"),
    "what the log was": (write("checkpoints/log.json", "{"), "`run`"),
    "the log": (change_log, "`data`"),
    "another model": (
        lambda work: write(
            "config.yaml", (work / "config.yaml").read_text().replace("dim: 4", "dim: 5")
        )(work),
        "`checkpoints`",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_unfinished_run_is_one_sentence_and_stays(call, run, case):
    damage, says = DAMAGES[case]
    work = run.parent / ".first.unfinished"
    damage(work)
    before = names(work)
    code, printed, err = call("train", "--resume", run)
    assert (code, printed) == (2, ""), err
    assert last_line(err).startswith(f"error: {says}")
    assert names(work) == before
    assert not run.exists()


def test_nothing_to_resume(call, tmp_path, complete):
    for folder in (tmp_path / "nothing", complete):
        code, _, err = call("train", "--resume", folder)
        assert code == 2
        assert last_line(err).startswith("error: `run`: expected an unfinished run")
    (tmp_path / ".taken.unfinished").mkdir()
    (tmp_path / ".taken.unfinished" / "config.yaml").write_text("{}")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "precious.txt").write_text("keep me")
    assert call("train", "--resume", tmp_path / "taken")[0] == 2
    assert os.listdir(tmp_path / "taken") == ["precious.txt"]


@pytest.mark.slow
def test_batches_of_similar_queries_go_on_too(call, source, tmp_path, monkeypatch):
    options = [
        *(option for option in OPTIONS if "num_uniform" not in option),
        "task.recipe=cross_batch_ngame",
        "task.recipe.capacity=100",
        "batches.cluster_size=2",
        "batches.double_every=1",
        "batches.min_clusters=4",
        "batches.random_share=0.2",
        "train.epochs=3",
    ]
    complete, run = tmp_path / "complete" / "first", tmp_path / "killed" / "first"
    for folder in (complete, run):
        folder.parent.mkdir()
    assert call("train", "--out", complete, source, *options)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(EpochProgress, "on_train_batch_end", stop_with(KeyboardInterrupt(), 8))
        assert call("train", "--out", run, source, *options)[0] not in (0, 2)
    code, _, err = call("train", "--resume", run)
    assert code == 0, err
    assert_same_run(run, complete)
    header, *rows = (complete / "history.csv").read_text().splitlines()
    columns = header.split(",")
    sizes = [float(row.split(",")[columns.index("cluster_size")]) for row in rows]
    assert sizes == [2, 4, 5]
    assert {"empty_row_share", "masked_share", "bank_fill"} <= set(columns)
