"""The ``rankwise`` command: the application with all its verbs."""

# The help lists the verbs in the order of these imports.
# isort: off
from rankwise.cli import run_verbs, try_verb, verdict_verb, ask_verb, study_verbs
from rankwise.cli import adapter_verbs, repair_verb, tool_verbs
from rankwise.cli.application import app
from rankwise.engine.models.libraries import before_torch
from rankwise.study.printer import guard_streams
# isort: on

__all__ = [
    "adapter_verbs",
    "app",
    "ask_verb",
    "entry_point",
    "repair_verb",
    "run_verbs",
    "study_verbs",
    "tool_verbs",
    "try_verb",
    "verdict_verb",
]


def entry_point() -> None:
    """Run the ``rankwise`` command."""
    before_torch()
    guard_streams()
    app(prog_name="rankwise")
