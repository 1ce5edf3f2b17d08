"""The notebooks run from beginning to end, and show what they promise."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.timeout(900)  # on a busy machine
@pytest.mark.parametrize("name", ["images", "text"])
def test_a_notebook_runs_and_shows_its_table_picture_and_answer(name, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("size of the ONNX file" in data.get("text/plain", "") for data in shown)
    assert any("image/png" in data for data in shown)
    assert "True" in shown[-1]["text/plain"]  # what was saved answers alike
    assert not list(tmp_path.iterdir())  # nothing is tracked
