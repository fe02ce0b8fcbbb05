"""``rankwise export --format`` for other trainers: what is said, where, and the exit codes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from rankwise.cli.tool_verbs import ExportFormat
from rankwise.integrations.formats import OF_RUN, OF_STUDY
from rankwise.integrations.sources import TOOLS
from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.sentences import Sentences


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study that recommends rank 16."""
    write_study(StudyFolder(tmp_path / "study"), planted_study())
    return tmp_path / "study"


def test_every_format_is_offered_and_every_tool_has_one() -> None:
    assert [*get_args(ExportFormat)] == [*OF_STUDY, *OF_RUN]
    assert set(OF_RUN) == {"model-card", *(tool.name for tool in TOOLS)}


def test_the_file_is_named_on_stdout_and_remarks_on_stderr(
    study: Path, tmp_path: Path, sentence: Sentences
) -> None:
    done = rankwise("export", study, "--format", "axolotl", "--output", tmp_path / "out")
    assert done.exit_code == 0
    assert done.stdout.startswith("kinship-lora-r016-a032-s0-")
    assert done.stdout.endswith(f": {tmp_path / 'out' / 'axolotl.yaml'}\n")
    sentence(done.stderr)
    assert "lora_r: 16\n" in (tmp_path / "out" / "axolotl.yaml").read_text()
    again = (tmp_path / "out" / "axolotl.yaml").read_bytes()
    rankwise("export", study, "--format", "axolotl", "--output", tmp_path / "out")
    assert (tmp_path / "out" / "axolotl.yaml").read_bytes() == again


def test_of_a_study_that_is_not_settled_the_best_bet_is_taken(
    tmp_path: Path, sentence: Sentences
) -> None:
    results = planted_study(dict.fromkeys((4, 16, 64), 0.52), num_in_domain=60)
    write_study(StudyFolder(tmp_path), results)
    done = rankwise("export", tmp_path, "--format", "trl")
    assert done.exit_code == 0
    sentence(words(done.stderr))


def test_where_it_is_best_not_to_fine_tune_nothing_is_exported(
    tmp_path: Path, sentence: Sentences
) -> None:
    write_study(StudyFolder(tmp_path), planted_study(dict.fromkeys((4, 16, 64), 0.30)))
    done = rankwise("export", tmp_path, "--format", "trl")
    assert (done.exit_code, done.stdout) == (2, "")
    sentence(words(done.stderr), names=("--run",))
    assert rankwise("export", tmp_path, "--format", "trl", "--run", "r4").exit_code == 0


def test_runs_are_for_trainers(study: Path, sentence: Sentences) -> None:
    done = rankwise("export", study, "--run", "kinship-lora-r016")
    assert done.exit_code == 2
    sentence(words(done.stderr), "lm-eval", names=("--run",))
    done = rankwise("export", study, "--format", "peft", "--run", "nothing")
    assert done.exit_code == 2
    sentence(done.stderr, "nothing", names=("--run", "nothing"))
