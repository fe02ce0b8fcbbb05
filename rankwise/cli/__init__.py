"""The command line: the only place that prints and exits."""

from rankwise.cli import study_verbs, tool_verbs
from rankwise.cli.application import app

__all__ = ["app", "entry_point", "study_verbs", "tool_verbs"]


def entry_point() -> None:
    """What the ``rankwise`` command calls."""
    app(prog_name="rankwise")
