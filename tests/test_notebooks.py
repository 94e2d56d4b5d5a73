"""Each notebook equals its text form and runs from top to bottom."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TEXTS = sorted(NOTEBOOKS.glob("*.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_every_notebook_has_a_text_form():
    assert {p.stem for p in NOTEBOOKS.glob("*.ipynb")} == {p.stem for p in TEXTS}
    assert TEXTS


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_notebook_equals_its_text_form(text):
    assert cells(jupytext.read(text)) == cells(nbformat.read(text.with_suffix(".ipynb"), 4))


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
@pytest.mark.slow
def test_notebook_runs(text, tmp_path):
    # The outputs in the file are of a full training; here each model has a short one.
    notebook = jupytext.reads(re.sub(r"\bepochs=\d+", "epochs=1", text.read_text()), "py:percent")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any(output.output_type == "stream" and "recall" in output.text for output in outputs)
