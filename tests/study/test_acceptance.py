"""What may be carried out in a folder: nothing finished is scored over, nothing is mixed unseen."""

from __future__ import annotations

import errno
import html
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.engine.training import loop
from rankwise.engine.training.trainees import Trainee
from rankwise.errors import (
    RecordError,
    StageFailedError,
    StorageError,
    StudyChangedError,
)
from rankwise.records import files
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study import acceptance, canary
from rankwise.study.growing import Extension, extended
from rankwise.study.planning.plan import plan_study
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.study.stopping import Stopped
from tests.support.command_line import rankwise, words
from tests.support.observers import Recorder
from tests.support.records import change, content_of, items_as_they_are
from tests.support.sentences import Sentences
from tests.support.small_studies import SMALL, Study
from tests.support.studies import run


def planned(study: Study, *overrides: str) -> Any:
    return plan_study(load_config(study.file, [*SMALL, *overrides]))


def contents(folder: Path) -> dict[Path, bytes]:
    paths = [*folder.rglob("*.json"), *folder.rglob("*.jsonl"), *folder.rglob("*.safetensors")]
    return {path: path.read_bytes() for path in paths if path.name != ".checked.json"}


# --- finished scores under other settings


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("evaluation.limit=10", "evaluation.limit: None"),
        ("evaluation.num_fewshot=2", "evaluation.num_fewshot: None"),
    ],
    ids=["limit", "num_fewshot"],
)
def test_finished_scores_are_not_scored_over(
    study: Study, override: str, named: str, sentence: Sentences
) -> None:
    before = contents(study.folder.root)
    with pytest.raises(StudyChangedError) as caught:
        run_study(planned(study, override), study.folder, Recorder())
    sentence(caught.value, names=(named, "--replace"))
    assert contents(study.folder.root) == before
    done = rankwise("run", study.file, *SMALL, override, "--study-dir", study.folder.root)
    assert (done.exit_code, "StudyChangedError" in done.stderr) == (2, True)
    recorder = Recorder()
    run_study(planned(study, override), study.folder, recorder, replace=True)
    assert {stage for _, stage in recorder.stages} >= {"colours", "sums"}
    old = study.folder.root / "quarantine" / "001" / BASE / "eval" / "colours.json"
    assert old.read_bytes() == before[study.folder.evaluation_file(BASE, "colours")]
    assert named in (study.folder.root / "quarantine" / "001" / "why.txt").read_text()


def test_more_is_free_and_the_same_is_free(study: Study) -> None:
    more = ("seeds=[0,1]", "methods.lora.ranks=[2,4,8]", "evaluation.retention=[small_prose]")
    for override in ("", *more[:2]):
        run_study(planned(study, *filter(None, [override])), study.folder, Recorder())


# --- an extension that fails


def out_of_memory(*_: Any, **__: Any) -> None:
    raise MemoryError


def test_an_extension_that_fails_leaves_the_study_as_it_was(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = study.folder.study_file.read_bytes()
    config = extended(study.folder.read_study().config, Extension(ranks=(8,)))
    monkeypatch.setattr(loop, "train_pass", out_of_memory)
    outcome = run_study(plan_study(config), study.folder, Recorder())
    assert [failure.kind for failure in outcome.failures] == ["training"]
    assert study.folder.study_file.read_bytes() == before
    monkeypatch.undo()
    assert rankwise("verdict", study.folder.root).exit_code == 0
    done = rankwise("extend", study.folder.root, "--ranks", "8")
    assert done.exit_code == 0
    assert [run.rank for run in study.folder.read_study().runs] == [2, 4, 8]


def test_a_stopped_extension_goes_on_with_the_folder(
    study: Study, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    config = extended(study.folder.read_study().config, Extension(num_seeds=1))
    plan = plan_study(config)
    score = "rankwise.study.stages.scoring.ScoreWorker.score"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(score, killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(plan, study.folder, Recorder())
    monkeypatch.undo()
    done = rankwise("verdict", study.folder.root)
    assert done.exit_code == 0
    new = [run.name for run in plan.record.runs if run.seed == 1]
    for name in new:
        assert [line for line in done.stderr.splitlines() if name in line]
    sentence(done.stderr, "left out", names=new[:1], part=True)
    assert rankwise("run", study.folder.root).exit_code == 0
    said = rankwise("verdict", study.folder.root).stderr
    assert not any(name in said for name in new)
    refused = rankwise("run", study.folder.root, "train.epochs=3")
    assert refused.exit_code == 2
    sentence(words(refused.stderr), "overrides")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--ranks 8,8", ("--ranks", "8")),
        ("--ranks 99999999999999999999", ("ranks",)),
        ("--seeds 100000", ("seeds",)),
        ("--seeds -1", ("seeds",)),
        ("--ranks x", ("--ranks", "'x'")),
        ("--ranks 2", ("rank 2",)),
        ("--items 5", ()),
        ("", ("--items", "--ranks")),
    ],
)
def test_what_cannot_be_added(
    study: Study, arguments: str, names: tuple[str, ...], sentence: Sentences
) -> None:
    before = contents(study.folder.root)
    done = rankwise("extend", study.folder.root, *arguments.split())
    assert done.exit_code == 2
    sentence(words(done.stderr), names=names)
    assert contents(study.folder.root) == before


# --- another stack


def other_stack(study: Study) -> None:
    """As if the study had been scored by another torch."""
    for path in study.folder.root.rglob("eval/*.json"):
        provenance = content_of(path)["provenance"]
        versions = provenance["package_versions"] | {"torch": "1.0.0"}
        change(path, provenance=provenance | {"package_versions": versions})


def moved(study: Study, by: float) -> None:
    """As if that torch had scored the base's items a little differently."""
    for task in study.folder.read_study().scored_tasks():
        path = study.folder.samples_file(BASE, task)
        lines = [json.loads(line) for line in path.read_text().split("\n") if line]
        for line in lines:
            line["resps"] = [
                [[r[0] + by, *r[1:]] if isinstance(r, list) else r for r in answers]
                for answers in line["resps"]
            ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        items_as_they_are(study.folder, BASE, task)


def test_the_same_scores_on_another_stack_go_on_and_are_noted(study: Study) -> None:
    other_stack(study)
    run_study(planned(study, "seeds=[0,1]"), study.folder, Recorder())
    (entry,) = study.folder.accepted_stacks().stacks
    assert entry.largest_shift_nats < 1e-5  # the same batches
    assert entry.num_changed == 0
    assert entry.num_items >= 3
    assert "torch 1.0.0" in entry.statement


def test_scores_that_moved_are_not_mixed_unasked(study: Study, sentence: Sentences) -> None:
    other_stack(study)
    moved(study, by=0.25)
    before = contents(study.folder.root)
    with pytest.raises(StudyChangedError) as caught:
        run_study(planned(study, "seeds=[0,1]"), study.folder, Recorder())
    names = ("torch 1.0.0", "0.25 nats", "--accept-new-stack")
    sentence(caught.value, names=names, VERSION=r"(?<=torch 1\.0\.0 -> )[\w.+]+")
    assert contents(study.folder.root) == before
    accepted = planned(study, "seeds=[0,1]")
    run_study(accepted, study.folder, Recorder(), accept_new_stack=True)
    (entry,) = study.folder.accepted_stacks().stacks
    assert entry.largest_shift_nats == pytest.approx(0.25, abs=1e-6)
    for path in study.folder.root.glob("runs/*s1-*/eval/colours.json"):
        path.unlink()  # and it is not asked for again
    run_study(accepted, study.folder, Recorder())
    page = study.folder.root / "report.html"
    assert rankwise("report", study.folder.root).exit_code == 0
    assert "torch 1.0.0" in words(page.read_text())


def of_card(study: Study, value: float | None = None) -> None:
    """As if it had been scored on a card; ``value``: of each of the base's items there."""
    for path in study.folder.root.rglob("eval/*.json"):
        provenance = content_of(path)["provenance"] | {"device": "NVIDIA L4"}
        change(path, provenance=provenance)
    for task in () if value is None else study.folder.read_study().scored_tasks():
        path = study.folder.samples_file(BASE, task)
        lines = [json.loads(line) for line in path.read_text().split("\n") if line]
        metric = content_of(study.folder.evaluation_file(BASE, task))["decision_metric"]
        lines = [line | {metric: value} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        items_as_they_are(study.folder, BASE, task)


def test_scores_that_moved_by_their_noise_go_on_on_another_kind_of_card(study: Study) -> None:
    of_card(study)
    moved(study, by=0.25)  # answers, and so scores, are the same
    run_study(planned(study, "seeds=[0,1]"), study.folder, Recorder())
    (entry,) = study.folder.accepted_stacks().stacks
    assert (entry.is_other_device, entry.moved_tasks, entry.num_changed) == (True, (), 0)
    assert entry.largest_shift_nats == pytest.approx(0.25, abs=1e-6)


def test_a_score_that_moved_is_refused_on_another_kind_of_card(
    study: Study, sentence: Sentences
) -> None:
    of_card(study, value=5.0)
    moved(study, by=0.25)  # else its log-likelihoods would be the same
    with pytest.raises(StudyChangedError) as caught:
        run_study(planned(study, "seeds=[0,1]"), study.folder, Recorder())
    sentence(
        caught.value,
        names=("NVIDIA L4", "noise"),
        part=True,
        DEVICE=r"(?<=L4 -> )[^:]+",
        NATS=r"[\d.e-]+(?= nats)",
    )


@pytest.mark.parametrize(
    ("before", "now", "is_moved"),
    [
        ([0, 1] * 20, [1, 0] * 20, False),  # as many to one side as to the other
        ([0] * 40, [0] * 38 + [1] * 2, False),
        ([0] * 40, [0] * 30 + [1] * 10, True),
        ([0.5] * 40, [0.50005] * 40, False),  # rounding
        ([0.5] * 40, [0.6] * 40, True),  # all by the same
        ([0.5], [0.6], True),  # no spread is known
    ],
)
def test_a_score_has_moved_where_its_items_moved_to_one_side(
    before: list[float], now: list[float], is_moved: bool
) -> None:
    found = canary._is_beyond_noise(dict(enumerate(before)), dict(enumerate(now)))
    assert found == is_moved


def test_a_finished_study_is_not_scored_again_on_another_stack(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_stack(study)
    monkeypatch.setattr(canary, "_measured", out_of_memory)
    run_study(planned(study), study.folder, Recorder())


# --- reading while it runs, and where nothing can be written


def test_a_study_that_runs_is_read_as_far_as_it_is(
    study: Study, tmp_path: Path, sentence: Sentences
) -> None:
    name = study.runs[1].name
    study.folder.run_file(name).unlink()
    with study.folder.lock():
        for arguments in (["verdict"], ["verdict", "--json"], ["report"]):
            done = rankwise(arguments[0], study.folder.root, *arguments[1:])
            assert done.exit_code == 0
            sentence(done.stderr, "left out", names=(name,), part=True)
    assert name in words((study.folder.root / "report.html").read_text())
    for path in study.folder.root.glob("runs/*/run.json"):
        path.unlink()
    with pytest.raises(RecordError) as caught:
        read_results(study.folder)
    sentence(caught.value, "none", names=(study.folder.root,))


def test_a_folder_that_cannot_be_written_is_read_all_the_same(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def refuse(path: Path, content: Any) -> None:
        if path.is_relative_to(study.folder.root):
            raise files.storage_error(path, OSError(30, os.strerror(30)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    for module in ("records.files", "records.folder", "records.outputs"):
        monkeypatch.setattr(f"rankwise.{module}.write_atomically", refuse)
    before = contents(study.folder.root)
    done = rankwise("verdict", study.folder.root, "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["by_train_task"]
    sentence(done.stderr, names=(study.folder.root,), part=True)
    assert rankwise("report", study.folder.root).exit_code == 1
    done = rankwise("report", study.folder.root, "--output", tmp_path / "elsewhere")
    assert done.exit_code == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()
    assert contents(study.folder.root) == before


# --- the disk, and other processes' files


def test_room_on_the_disk_is_asked_for_before_anything_is_written(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(acceptance, "free_bytes", lambda _: 1000)
    with pytest.raises(StorageError) as caught:
        run(study.file, tmp_path / "new", *SMALL)
    sentence(caught.value, names=(tmp_path / "new", "0.0 MB"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == [".lock"]
    run(study.file, study.folder.root, *SMALL)  # of a finished study nothing is left


def test_a_large_write_is_not_begun_without_room(tmp_path: Path, sentence: Sentences) -> None:
    files.require_room(tmp_path / "a" / "b", 1)
    with pytest.raises(StorageError) as caught:
        files.require_room(tmp_path / "a" / "b", 10**18)
    sentence(caught.value, names=("1000000000.0 GB",), FREE=r"[\d.]+(?= GB are free)")


def test_only_leftovers_of_dead_processes_of_this_machine_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = files.host_name()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        gone = tmp_path / "runs" / f".a.json.{host}.{dead.pid}.rankwise-tmp"
        kept = [
            tmp_path / f".a.json.{host}.{sleeper.pid}.rankwise-tmp",
            tmp_path / f".a.json.elsewhere.{dead.pid}.rankwise-tmp",
            tmp_path / ".somebody.tmp",
            tmp_path / ".notes.123.tmp",
        ]
        gone.parent.mkdir()
        for path in (gone, *kept):
            path.write_text("half")
        with StudyFolder(tmp_path).lock():
            assert not gone.exists()
            assert all(path.exists() for path in kept)
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG, errno.EIO]
)
def test_the_remedy_is_that_of_the_error(tmp_path: Path, code: int, sentence: Sentences) -> None:
    error = files.storage_error(tmp_path, OSError(code, os.strerror(code)))
    sentence(error, names=(tmp_path, os.strerror(code)))


@pytest.mark.parametrize("task", ["红" * 30, "é" * 120, "a" * 300, "红/蓝" * 40, "%" * 90])
def test_long_names_are_files_of_their_own(tmp_path: Path, task: str) -> None:
    folder = StudyFolder(tmp_path)
    names = {folder.evaluation_file(BASE, name).name for name in (task, task + "x", task[:-1])}
    assert len(names) == 3
    for name in (task, task + "x"):
        path = folder.samples_file(BASE, name)
        files.write_atomically(path, "written")
        assert path.read_text() == "written"


# --- signals

STOPPED = """
import os, signal, sys
from pathlib import Path
import rankwise.engine.training.trainees as trainees
from rankwise.cli.main import app

take_step = trainees.Trainee.take_step
signals = [int(sys.argv[1])]
def signalling(self, *arguments, **named):
    metrics = take_step(self, *arguments, **named)
    if self.step == 2 and signals:  # both adapters come here; a second signal would not wait
        os.kill(os.getpid(), signals.pop())
    return metrics
trainees.Trainee.take_step = signalling
app(sys.argv[2:])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_saves_what_is_trained(study: Study, tmp_path: Path, number: int) -> None:
    driver = tmp_path / "driver.py"
    driver.write_text(STOPPED)
    command = ["run", str(study.file), *SMALL, "train.epochs=2", "--study-dir", str(tmp_path / "s")]
    stopped = subprocess.run(
        [sys.executable, str(driver), str(int(number)), *command],
        capture_output=True,
        text=True,
        check=False,
    )
    assert stopped.returncode == 128 + number, stopped.stderr
    name = signal.Signals(number).name
    assert name in stopped.stderr
    states = list((tmp_path / "s").rglob("training.pt"))
    assert states  # although the time to save one has not come
    recorder = Recorder()
    plan = plan_study(load_config(study.file, [*SMALL, "train.epochs=2"]))
    outcome = run_study(plan, StudyFolder(tmp_path / "s"), recorder)
    whole = run_study(plan, StudyFolder(tmp_path / "whole"), Recorder())
    for mine, theirs in zip(outcome.results.runs, whole.results.runs, strict=True):
        assert mine.items == theirs.items
        assert mine.run is not None
        assert theirs.run is not None
        assert mine.run.files == theirs.run.files
    shutil.rmtree(tmp_path / "whole")


def test_every_stage_failing_is_an_error(
    study: Study, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(loop, "train_pass", out_of_memory)
    with pytest.raises(StageFailedError) as caught:
        run(study.file, study.folder.root.parent / "new", *SMALL)
    sentence(caught.value, names=("pass 1",))


ALLOCATOR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 99999 bytes."
)


@pytest.mark.parametrize(
    ("place", "kinds"),
    [
        ("stages.heads.CompareHeads.do", {"heads"}),
        ("stages.spectra.analyse_weights", {"spectra"}),
        ("stages.divergence.expected_by", {"divergence"}),
    ],
)
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no room"), ALLOCATOR, MemoryError()])
def test_without_memory_that_stage_alone_fails(
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kinds: set[str],
    error: Exception,
    sentence: Sentences,
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    settings = ("methods.lora.ranks=[2]", "evaluation.held_out_text=[]", "analysis.divergence=true")
    monkeypatch.setattr(f"rankwise.study.{place}", refuse)
    outcome, _ = run(study_file, tmp_path / "study", *settings)
    assert {failure.kind for failure in outcome.failures} == kinds
    for failure in outcome.failures:
        sentence(failure.message, failure.kind)
    assert len(outcome.results.runs) == 2
    assert rankwise("report", tmp_path / "study").exit_code == 1
    page = words(html.unescape((tmp_path / "study" / "report.html").read_text()))
    assert all(words(failure.message) in page for failure in outcome.failures)
    monkeypatch.undo()
    outcome, recorder = run(study_file, tmp_path / "study", *settings)
    assert outcome.failures == ()
    assert {stage for _, stage in recorder.stages} == kinds


def test_a_stop_in_the_last_step_loses_nothing(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_step, signals = Trainee.take_step, list[int]()

    def signalled(self: Trainee, *arguments: Any, **named: Any) -> Any:
        if self.step == len(self.batches) - 1 and not signals:
            signals.append(signal.SIGTERM)  # a second one would end the process at once
            os.kill(os.getpid(), signal.SIGTERM)
        return take_step(self, *arguments, **named)

    folder, config = StudyFolder(tmp_path / "s"), load_config(study.file, SMALL)
    plan = plan_study(config)
    monkeypatch.setattr(Trainee, "take_step", signalled)
    with pytest.raises(Stopped):
        run_study(plan, folder, Recorder())
    runs = folder.read_study().runs
    assert all(folder.training_state_file(run).exists() for run in runs)
    monkeypatch.setattr(Trainee, "take_step", None)  # no step is taken again
    run_study(plan_study(config), folder, Recorder())
    assert all(folder.finished_run(run) is not None for run in runs)


def test_other_weights_of_the_base_are_named(
    study: Study, tmp_path: Path, sentence: Sentences
) -> None:
    base = tmp_path / "base"
    shutil.copytree(load_config(study.file).base_model.name, base)
    overrides = [*SMALL, f"base_model={base}"]
    folder = tmp_path / "s"
    run(study.file, folder, *overrides)
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.5 for name, tensor in tensors.items()}, weights, {"format": "pt"})
    with pytest.raises(StudyChangedError) as error:
        run(study.file, folder, *overrides)
    sentence(error.value, names=("base_model", base))
