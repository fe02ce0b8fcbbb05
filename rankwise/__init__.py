"""How much LoRA rank is enough for a task, and what does the model forget?

Names that need torch are resolved on first use (PEP 562), so that reading and reporting a
finished study stay quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rankwise.errors import RankwiseError
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config

if TYPE_CHECKING:
    from rankwise.findings.recommendation import recommend
    from rankwise.integrations.retention_callback import RetentionCallback
    from rankwise.report.page import write_report
    from rankwise.study.planning.plan import StudyPlan, plan_study
    from rankwise.study.run import run_study

__all__ = [
    "RankwiseError",
    "RetentionCallback",
    "StudyConfig",
    "StudyFolder",
    "StudyPlan",
    "load_config",
    "plan_study",
    "recommend",
    "run_study",
    "write_report",
]

_LAZY = {
    "RetentionCallback": "rankwise.integrations.retention_callback",
    "StudyPlan": "rankwise.study.planning.plan",
    "plan_study": "rankwise.study.planning.plan",
    "recommend": "rankwise.findings.recommendation",
    "run_study": "rankwise.study.run",
    "write_report": "rankwise.report.page",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'rankwise' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
