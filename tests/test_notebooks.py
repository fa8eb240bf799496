"""The notebooks run from start to end, and hold no trace of the machine that ran them last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    import nbformat  # late: in the extra "notebooks"

    return nbformat.read(path, as_version=4)


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["01_look_inside.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The kernel's client, not ours: it warns of its own event loop and sockets on some platforms.
@pytest.mark.filterwarnings("ignore::DeprecationWarning:zmq", "ignore::DeprecationWarning:jupyter_client")
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient  # late: in the extra "notebooks"

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # other tests keep the other cores busy
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    notebook = read(path)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_executed_and_without_paths(path: Path) -> None:
    notebook = read(path)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert not any("execution" in cell.metadata for cell in notebook.cells)  # timings
    text = "\n".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
    )
    assert not re.search(r"(?:^|[\s'\"])/(?:home|root|work|tmp|Users|usr)/|[A-Z]:\\", text)
    assert "site-packages" not in text
