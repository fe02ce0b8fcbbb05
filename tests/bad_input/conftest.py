"""What the tests of bad input share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankwise.tasks import resolution


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder: Path) -> Any:
    from rankwise.engine.models.loading import load_tokenizer

    return load_tokenizer(tiny_model_folder)


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without lm-eval's own tasks, whose index takes seconds to build."""
    monkeypatch.setattr(resolution, "lm_evals_own", dict)
