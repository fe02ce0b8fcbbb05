"""The notebook runs from top to bottom, on a model and a study that take seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "rank_study.ipynb"


def _html(cell: Any) -> str:
    return "".join(output.get("data", {}).get("text/html", "") for output in cell["outputs"])


def _printed(cell: Any) -> str:
    return "".join(each["text"] for each in cell["outputs"] if each["output_type"] == "stream")


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in code)


def test_the_notebook_runs_and_shows_the_verdict(
    tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "running the notebook needs nbclient and ipykernel; `pip install rankwise[dev]`"
    pytest.importorskip("ipykernel", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell["id"]: cell for cell in notebook.cells}
    assert cells["settings"]["metadata"]["tags"] == ["parameters"]
    cells["settings"]["source"] = (
        f"base = {str(tiny_model_folder)!r}\nranks = [2, 4]\nrows = 8\nitems = 12\nfolder = 'study'"
    )
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    statement = json.loads((tmp_path / "study" / "recommendation.json").read_text())[
        "by_train_task"
    ][0]["statement"]
    assert "<iframe" in _html(cells["run"])
    assert "num_steps" in _html(cells["study"])
    assert "lora-r002" in _html(cells["numbers"])
    assert "forgotten" in cells["forgotten"]["source"]
    path, verdict = _printed(cells["report"]).splitlines()[:2]
    assert (tmp_path / path).exists()
    assert verdict[:40] == statement[:40]
