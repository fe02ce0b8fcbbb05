"""The engines that can score a study: which of them are here."""

from __future__ import annotations

import importlib.util

from rankwise.records.config import StudyConfig


def engine_problem(config: StudyConfig) -> str | None:
    """Why the configured engine cannot score a study here, or None."""
    if config.evaluation.engine == "resident":
        return None
    if importlib.util.find_spec("vllm") is None:
        return (
            "vllm is not installed; install rankwise[vllm] (it needs a GPU), or choose "
            "evaluation.engine=resident"
        )
    if config.train.base_precision != "auto":
        return (
            f"vllm would score the unquantised base, and the adapters are trained on one in "
            f"{config.train.base_precision}; choose evaluation.engine=resident, or "
            "train.base_precision=auto"
        )
    return None
