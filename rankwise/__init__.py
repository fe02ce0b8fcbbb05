"""How much LoRA rank is enough for a task, and what does the model forget?

``import rankwise as rw``: ``rw.new`` and ``rw.open`` make a ``Study``, which plans, runs and shows
itself. Names are resolved on first use (PEP 562), so that reading and reporting a finished study
need no torch and stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config

if TYPE_CHECKING:
    from rankwise.api import Study, audit, new, verdict
    from rankwise.api import open as open  # noqa: A004
    from rankwise.findings.recommendation import recommend
    from rankwise.integrations.retention_callback import RetentionCallback
    from rankwise.report.page import write_report
    from rankwise.study.planning.plan import StudyPlan, plan_study
    from rankwise.study.run import run_study

__all__ = [
    "RankwiseError",
    "RetentionCallback",
    "Study",
    "StudyConfig",
    "StudyFolder",
    "StudyPlan",
    "audit",
    "load_config",
    "new",
    "plan_study",
    "recommend",
    "run_study",
    "verdict",
    "write_report",
]

# Not ``open``: after a star import it would stand in the place of Python's own.

_LAZY = {
    "RetentionCallback": "rankwise.integrations.retention_callback",
    "Study": "rankwise.api",
    "StudyPlan": "rankwise.study.planning.plan",
    "audit": "rankwise.api",
    "new": "rankwise.api",
    "open": "rankwise.api",
    "plan_study": "rankwise.study.planning.plan",
    "recommend": "rankwise.findings.recommendation",
    "run_study": "rankwise.study.run",
    "verdict": "rankwise.api",
    "write_report": "rankwise.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
