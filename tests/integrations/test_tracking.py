"""Trackers are told what the records say, and nothing that happens to them changes a record."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rankwise.integrations.tracking import Tracking
from rankwise.records.fingerprints import study_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.conclusion import conclude
from rankwise.study.observer import Planned, StageFinished, StageOutline, Stepped, TrainingStep
from tests.planted.folders import write_study as write_planted
from tests.planted.results import planted_study
from tests.support.command_line import rankwise, words
from tests.support.small_studies import write_study
from tests.support.study_contents import comparable

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}, full: null}
evaluation: {out_of_domain: [sums], num_train_items: 0}
analysis: {spectra: false, heads: false, gauges: false}
"""


class FakeRun:
    """trackio's run; one that fails at a call raises at every later one too."""

    def __init__(self, fails_at: int | None = None, error: BaseException | None = None) -> None:
        self.logged: list[tuple[dict[str, Any], int | None]] = []
        self.is_finished = False
        self.num_calls = 0
        self._fails_at, self._error = fails_at, error or RuntimeError("the server\nis gone")

    def log(self, values: Mapping[str, Any], step: int | None = None) -> None:
        self.num_calls += 1
        if self._fails_at is not None and self.num_calls >= self._fails_at:
            raise self._error
        print("a tracker talks")
        self.logged.append((dict(values), step))

    def finish(self) -> None:
        self.is_finished = True


def fake_trackio(patch: pytest.MonkeyPatch, run: FakeRun) -> list[dict[str, Any]]:
    """A package of trackio's name, whose one run this is; returns how it was begun."""
    begun: list[dict[str, Any]] = []
    package = types.ModuleType("trackio")
    package.__spec__ = importlib.machinery.ModuleSpec("trackio", None, origin="here")

    def init(**settings: Any) -> FakeRun:
        begun.append(settings)
        return run

    vars(package).update(init=init, finish=run.finish)
    patch.setitem(sys.modules, "trackio", package)
    return begun


def tracked(folder: StudyFolder, notes: list[str]) -> Tracking:
    config = folder.read_study().config.model_copy(update={"tracking": ("trackio",)})
    return Tracking(folder, config, notes.append)


def a_step(number: int) -> TrainingStep:
    gauges = {"reward": 0.25, "rewards/json_valid": 0.5, "completion_length": 31.0}
    return TrainingStep("r16", number, 9, 100, 1.5, 2e-4, gauges)


def scoring(*records: str) -> StageOutline:
    return StageOutline("s", "scoring", "kinship", "pass 1", 1.0, 1, 1.0, records=records)


@pytest.fixture
def planted(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "planted")
    write_planted(folder, planted_study())
    return folder


def test_steps_scores_and_the_verdict_are_told(
    planted: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun()
    begun = fake_trackio(monkeypatch, run)
    name = next(each.name for each in planted.read_study().runs if each.rank == 16)
    with tracked(planted, []) as observer:
        observer(Planned((scoring("base", name, "never-trained"),)))
        observer(Stepped("t", a_step(3)))
        observer(StageFinished("s"))
        observer.concluded(conclude(planted))
    assert [(each["project"], each["name"]) for each in begun] == [("rankwise", "planted")]
    (steps, at), (scores, _), (rank, _), (verdict, _) = run.logged
    assert at == 3
    assert steps == {
        "loss_nats/r16": 1.5,
        "learning_rate/r16": 2e-4,
        "reward/r16": 0.25,
        "rewards/json_valid/r16": 0.5,
        "completion_length/r16": 31.0,
    }
    # planted: 240 of 300 right after 150; the bounds are Wilson's, by hand
    assert scores[f"score/kinship/{name}"] == pytest.approx(80.0)
    assert scores[f"score_lower/kinship/{name}"] == pytest.approx(75.1, abs=0.05)
    assert scores[f"score_upper/kinship/{name}"] == pytest.approx(84.1, abs=0.05)
    assert scores["score/kinship/base"] == pytest.approx(50.0)
    assert len(scores) == 6
    assert rank == {"recommended_rank/kinship": 16}
    assert verdict["verdict/kinship"].startswith("Use rank 16 (")
    assert run.is_finished


def test_a_tracker_that_fails_is_one_warning_and_left_alone(
    planted: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, notes = FakeRun(fails_at=2), list[str]()
    fake_trackio(monkeypatch, run)
    with tracked(planted, notes) as observer:
        observer(Planned(()))
        for number in range(1, 6):
            observer(Stepped("t", a_step(number)))
        observer.concluded(conclude(planted))
    assert notes == [
        "warning: tracking by trackio is off from here on: RuntimeError: the server is gone"
    ]
    assert (run.num_calls, len(run.logged), run.is_finished) == (2, 1, True)


def test_stopping_a_study_is_no_failure_of_a_tracker(
    planted: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = FakeRun(fails_at=1, error=KeyboardInterrupt())
    fake_trackio(monkeypatch, run)
    observer = tracked(planted, [])
    observer(Planned(()))
    with pytest.raises(KeyboardInterrupt):
        observer(Stepped("t", a_step(1)))


class Ran(NamedTuple):
    """The same study without trackers, and with one that fails on the way."""

    file: Path
    plain: StudyFolder
    tracked: StudyFolder
    events: list[dict[str, Any]]
    run: FakeRun


@pytest.fixture(scope="module")
def ran(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    root = tmp_path_factory.mktemp("tracking")
    file = write_study(root, tiny_model_folder, SETTINGS)
    assert rankwise("run", file, "--study-dir", root / "plain", "--quiet").exit_code == 0
    run = FakeRun(fails_at=5)
    with pytest.MonkeyPatch.context() as patch:
        fake_trackio(patch, run)
        options = ("tracking=trackio", "--study-dir", root / "tracked", "--json")
        done = rankwise("run", file, *options)
    assert done.exit_code == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    folders = StudyFolder(root / "plain"), StudyFolder(root / "tracked")
    return Ran(file, *folders, events, run)


def test_a_whole_study_is_tracked_until_the_tracker_fails(ran: Ran) -> None:
    notes = [each["text"] for each in ran.events if each["event"] == "noted"]
    assert notes == [
        "warning: tracking by trackio is off from here on: RuntimeError: the server is gone"
    ]
    assert ran.events[-1]["event"] == "ended"
    assert ran.run.num_calls == 5
    assert any(name.startswith("score/") for values, _ in ran.run.logged for name in values)


def test_no_record_depends_on_tracking(ran: Ran) -> None:
    plain, told = ran.plain.read_study(), ran.tracked.read_study()
    assert (plain.config.tracking, told.config.tracking) == ((), ("trackio",))
    assert plain.fingerprint == told.fingerprint
    assert [run.name for run in plain.runs] == [run.name for run in told.runs]
    before, after = (comparable(each.root, exact=True) for each in (ran.plain, ran.tracked))
    assert (
        before.pop("study.json")["config"] | {"tracking": ["trackio"]}
        == (after.pop("study.json")["config"])
    )
    assert before == after
    again = rankwise("run", ran.file, "--study-dir", ran.tracked.root)
    assert "everything is done; nothing is trained or scored again" in again.stderr


def test_trackers_are_in_no_fingerprint_of_a_study(ran: Ran) -> None:
    config = load_config(ran.file, ["tracking=[wandb, mlflow]"])
    assert study_fingerprint(config) == study_fingerprint(load_config(ran.file))


def test_a_package_that_is_not_there_is_told_at_planning(
    ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = types.ModuleType("wandb")  # a folder of this name in the current one
    package.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    done = rankwise("plan", ran.file, "tracking=[wandb]")
    assert done.exit_code == 2
    assert "tracking[0]: wandb is not installed; pip install wandb, or leave it out" in words(
        done.stderr
    )


# Launchers of several processes leave such variables behind, and accelerate would wait for the
# others.
LAUNCHED = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2", "PMI_SIZE": "2"}

ALONE = """
import os, sys
from pathlib import Path
import torch
from rankwise.integrations.tracking import _tracker
from rankwise.records.folder import StudyFolder
before = dict(os.environ)
_tracker("tensorboard", "study", StudyFolder(Path(sys.argv[1])))
assert not torch.distributed.is_initialized() and not torch.cuda.is_initialized()
assert {name: os.environ.get(name) for name in before} == before
"""


def test_a_tracker_joins_no_other_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path)],
        env={**os.environ, **LAUNCHED},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


REAL = ("trackio", "mlflow", "tensorboard", "wandb")


@pytest.fixture(scope="module")
def real(ran: Ran, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, told to all trackers that are installed, in a process of its own."""
    there = [name for name in REAL if _is_installed(name)]
    if not there:
        pytest.skip(f"none of {', '.join(REAL)} is installed")
    root = tmp_path_factory.mktemp("trackers")
    environment = {
        **os.environ,
        "TRACKIO_DIR": str(root / "trackio"),
        "MLFLOW_TRACKING_URI": (root / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(root),
    }
    command = ["run", ran.file, f"tracking={there}".replace("'", ""), "--study-dir", root / "study"]
    for _ in range(2):  # the second goes on in the same runs of the trackers
        done = subprocess.run(
            [sys.executable, "-m", "rankwise", *map(str, command), "--quiet"],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "is off from here on" not in done.stderr
        assert done.stdout.endswith(f"report: {root / 'study' / 'report.html'}\n")
    return root


def _is_installed(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.origin is not None


def losses_of(root: Path) -> dict[str, list[tuple[int, float]]]:
    """What a tracker must have: "loss_nats/RUN" -> step and loss."""
    folder = StudyFolder(root / "study")
    names = [run.name for run in folder.read_study().runs]
    return {f"loss_nats/{name}": folder.read_losses(name) for name in names}


def test_trackio_has_it(real: Path) -> None:
    pytest.importorskip("trackio")
    code = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage as Storage\n"
        "runs = Storage.get_runs('rankwise')\n"
        "print(json.dumps([runs, Storage.get_logs('rankwise', 'tiny')]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRACKIO_DIR": str(real / "trackio")},
        capture_output=True,
        text=True,
        check=True,
    )
    runs, logs = json.loads(done.stdout.splitlines()[-1])
    assert runs == ["tiny"]
    for name, losses in losses_of(real).items():
        assert [(line["step"], line[name]) for line in logs if name in line] == losses
    verdicts = [line["verdict/colours"] for line in logs if "verdict/colours" in line]
    assert len(verdicts) == 2


def test_mlflow_has_it(real: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient((real / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("rankwise")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert "verdict/colours" in run.data.tags
    for name, losses in losses_of(real).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(each.step, each.value) for each in history] == losses


def test_tensorboard_has_it(real: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(real / "study" / "tensorboard" / "tiny"))
    events.Reload()
    for name, losses in losses_of(real).items():
        found = [(each.step, each.value) for each in events.Scalars(name)]
        assert found == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses]


def test_wandb_has_a_run_of_the_same_name_each_time(real: Path) -> None:
    pytest.importorskip("wandb")
    names = {path.name.rpartition("-run-")[2][16:] for path in (real / "wandb").glob("*-run-*")}
    (name,) = names
    assert name.startswith("tiny-")
