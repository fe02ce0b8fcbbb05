"""What the tests of bad input share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tokenizer(tiny_model_folder: Path) -> Any:
    from rankwise.engine.models.base import load_tokenizer

    return load_tokenizer(tiny_model_folder)
