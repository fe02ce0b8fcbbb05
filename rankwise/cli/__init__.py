"""The command line: the only place that prints and exits."""

from rankwise.cli import audit_verbs, head_verbs, study_verbs, tool_verbs
from rankwise.cli.application import app

__all__ = ["app", "audit_verbs", "entry_point", "head_verbs", "study_verbs", "tool_verbs"]


def entry_point() -> None:
    """What the ``rankwise`` command calls."""
    app(prog_name="rankwise")
