"""``rankwise status`` of a study that a process runs, once and with ``--watch``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rankwise.records.folder import StudyFolder
from rankwise.records.locking import StageProgress, StudyProgress
from rankwise.records.study import StageInputs
from rankwise.study.stages.graph import stages
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise
from tests.support.sentences import Sentences


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A finished study with planted scores, of whose heads and weights nothing is analysed."""
    folder = StudyFolder(tmp_path / "study")
    results = planted_study()
    prompts = {"heads": {task: StageInputs(num_tokens=100) for task in results.study.tasks}}
    study = results.study.model_copy(update={"inputs": prompts})
    write_study(folder, results.model_copy(update={"study": study}))
    return folder


@contextlib.contextmanager
def working(
    folder: StudyFolder, seconds: dict[str, float], *at: tuple[str, float | None]
) -> Generator[None]:
    """This process leads the study, and is a quarter through some stages, at some speeds."""
    with folder.lock():
        told = StudyProgress(
            told_at=datetime.now(UTC).isoformat(),
            stages=tuple(
                StageProgress(
                    stage=stage,
                    share_done=0.25,
                    tokens_per_second=speed,
                    peak_memory_bytes=3 * 1024**3,
                )
                for stage, speed in at
            ),
            seconds_left=seconds,
        )
        folder.write(folder.progress_file, told)
        yield


def test_all_that_is_being_done_is_shown(folder: StudyFolder, sentence: Sentences) -> None:
    heads, weights = (s.id for s in stages(folder.read_study()) if not s.is_finished(folder))
    seconds = {heads: 600.0, weights: 1200.0}
    with working(folder, seconds, (heads, 1234.4), (weights, None)):
        shown = rankwise("status", folder.root).stdout
        told = json.loads(rankwise("status", folder.root, "--json").stdout)["running"]
    sentence(shown, "heads", names=("heads: ", "25 %", "1,234"), part=True)
    sentence(shown, "weights", names=("weights: ", "25 %", "3.0 GiB"), part=True)
    assert "15.0 min" in shown  # two at once: half of the sum
    assert str(os.getpid()) in told["process"]
    assert [stage["stage"] for stage in told["progress"]["stages"]] == [heads, weights]
    assert json.loads(rankwise("status", folder.root, "--json").stdout)["running"] is None


def test_the_newest_texts_of_a_run_that_is_trained_are_shown(folder: StudyFolder) -> None:
    run, other, *_ = folder.read_study().runs
    assert "newest texts" not in rankwise("status", folder.root).stdout
    folder.run_file(run.name).unlink()
    texts = {"num_texts": 4, "num_tokens": 90, "reward": 0.4}
    lines = [{"step": step, "texts": {**texts, "reward": step / 4}} for step in (1, 2)]
    written = "".join(json.dumps(line) + "\n" for line in lines)
    folder.metrics_file(run.name).write_text(written + '{"step": 3, "te')
    shown = rankwise("status", folder.root).stdout
    assert "reward 0.5, 22 tokens" in shown
    models = json.loads(rankwise("status", folder.root, "--json").stdout)["models"]
    told = {line["model"]: (line["reward"], line["tokens_per_text"]) for line in models}
    assert (told[run.name], told[other.name]) == ((0.5, 22.5), (None, None))
    folder.metrics_file(run.name).write_text('{"step": 1, "texts": null}\n')
    assert "newest texts" not in rankwise("status", folder.root).stdout


def test_a_damaged_progress_counts_for_none(folder: StudyFolder) -> None:
    with working(folder, {}):
        folder.progress_file.write_text("{")
        assert f"process {os.getpid()}" in rankwise("status", folder.root).stdout


@pytest.mark.parametrize("as_json", [False, True])
def test_a_study_is_watched_until_no_process_runs_it(
    folder: StudyFolder, *, as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    with contextlib.ExitStack() as leading:
        leading.enter_context(working(folder, {}))

        def slept(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                leading.close()

        monkeypatch.setattr("rankwise.cli.study_verbs.sleep", slept)
        arguments = ("status", folder.root, "--watch", "--every", 3)
        done = rankwise(*arguments, *(["--json"] if as_json else []))
    assert (done.exit_code, waits) == (0, [3, 3])
    if as_json:
        documents = json.loads("[" + done.stdout.replace("\n}\n{", "},{") + "]")
        assert [each["running"] is None for each in documents] == [False, False, True]
        assert all(len(each["models"]) > 1 for each in documents)
    else:
        assert done.stdout.count("scored on") == 3
        assert "Next: rankwise run" in done.stdout.rstrip().splitlines()[-1]


def test_ctrl_c_ends_the_watching_cleanly(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.cli.study_verbs.sleep", interrupted)
    with working(folder, {}):
        done = rankwise("status", folder.root, "--watch")
    assert (done.exit_code, done.stderr) == (0, "")


def test_watching_writes_nothing(folder: StudyFolder) -> None:
    def files() -> dict[Path, bytes]:
        # what was found undamaged is remembered, as by every verb that reads
        written = (path for path in folder.root.rglob("*") if path.name != ".checked.json")
        return {path: path.read_bytes() for path in written if path.is_file()}

    before = files()
    rankwise("status", folder.root, "--watch")
    assert files() == before
