"""The ``rankwise`` command: the application with all its verbs."""

import io
import sys

# The help lists the verbs in the order of these imports.
# isort: off
from rankwise.cli import run_verbs
from rankwise.cli import try_verb
from rankwise.cli import verdict_verb
from rankwise.cli import study_verbs
from rankwise.cli import adapter_verbs
from rankwise.cli import repair_verb
from rankwise.cli import tool_verbs
from rankwise.cli.application import app
from rankwise.engine.models.libraries import before_torch
# isort: on

__all__ = [
    "adapter_verbs",
    "app",
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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what it cannot show is shown by its code
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="rankwise")
