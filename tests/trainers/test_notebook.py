"""The notebook of the examples: it runs from the first cell to the last, on the real model."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from pact_plugin.audit.result import AuditResult
from pact_plugin.run.verify import verify_run

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
FEW = 20
"""Prompts of each kind that the model answers: all 720 take minutes."""
FEWER_PROMPTS = f"""
from pact_plugin import assemble
from pact_plugin.data import prompts
from pact_plugin.terms import anchor_prompts

whole = prompts.for_pool()
assemble.for_pool = anchor_prompts.for_pool = prompts.for_pool = lambda: whole.limited({FEW})
"""
COMMAND = f"{FEWER_PROMPTS}\nfrom pact_plugin.cli.main import main\n\nmain()\n"


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_committed_without_outputs(notebook):
    """Numbers of this project come from result files; a reader's run makes the reader's own."""
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) >= 8
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    assert notebook.metadata.keys() <= {"kernelspec", "language_info"}


def replaced(notebook: Any, old: str, new: str) -> None:
    """Replace what stands in one cell."""
    (cell,) = (cell for cell in notebook.cells if old in cell.source)
    cell.source = cell.source.replace(old, new)


@pytest.mark.real_model
@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    replaced(notebook, '"quickstart-output"', repr(str(tmp_path / "out")))
    (tmp_path / "command.py").write_text(COMMAND)
    replaced(notebook, "!pact-plugin tokens", f"!{sys.executable} {tmp_path / 'command.py'} tokens")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEWER_PROMPTS))
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.execute()  # raises where a cell does
    texts = [
        output.get("text", "") + output.get("data", {}).get("text/html", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
    ]
    assert any("constrained: 6 steps" in text for text in texts)
    (table,) = (text for text in texts if "benign prompts refused" in text)
    aligned, plain, held = map(int, re.findall(r">(\d+)%<", table)[::2])
    assert aligned >= held > plain
    assert any("image/png" in output.get("data", {}) for output in notebook.cells[-1].outputs)
    asked = [path for path in (tmp_path / "cache").iterdir() if ".tokens." not in path.name]
    assert len(asked) == 1  # training has not asked again
    assert verify_run(tmp_path / "out" / "pact").startswith("constrained: 6 steps")
    audit = AuditResult.model_validate_json((tmp_path / "out" / "audit" / "audit.json").read_bytes())
    assert audit.harmful is not None
    assert round(100 * audit.harmful.candidate.rate) == held
