"""The study folder: whole files or none, errors that name the file, one process at a time."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import (
    ConfigError,
    NewerRecordError,
    RecordError,
    StorageError,
    StudyLockedError,
)
from rankwise.records import files
from rankwise.records import folder as store
from rankwise.records.files import FileDigest, read_record, sealed
from rankwise.records.files import write_atomically as write
from rankwise.records.fingerprints import fingerprint
from rankwise.records.folder import BASE, LOSS_METRIC, StudyFolder
from rankwise.records.locking import StudyProgress
from rankwise.records.recommendation import StudyRecommendation
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import PlannedRun, RunRecord, StudyRecord, TaskEvaluation
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude, keep
from rankwise.study.damage import find_damage
from rankwise.study.reading import read_results
from tests.planted import results as planted_results
from tests.planted.folders import write_study
from tests.support.records import items_as_they_are
from tests.support.sentences import Sentences

ODD_NAMES = [
    "plain",
    "Plain",
    "a/b",
    "a%2Fb",
    "a b",
    "a_b",
    "a.b",
    "..",
    ".",
    "a\\b",
    "é",
    "a:b",
    "data_own rows@v1",
]


@pytest.fixture
def results() -> StudyResults:
    return planted_results.planted_study({4: 0.7}, num_in_domain=12, num_retention=6)


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


def scored(folder: StudyFolder, fingerprint: str) -> TaskEvaluation | None:
    return folder.finished(folder.evaluation_file(BASE, "kinship"), TaskEvaluation, fingerprint)


def evaluation_of(results: StudyResults, **changes: Any) -> TaskEvaluation:
    return results.base.evaluations["kinship"].model_copy(update=changes)


def planned_of(results: StudyResults) -> tuple[PlannedRun, RunRecord]:
    record = results.runs[0].run
    assert record is not None
    return record.planned, record


def without_digests(results: StudyResults) -> StudyResults:
    """As the results were before they were written."""

    def bare(model: ModelResults) -> ModelResults:
        evaluations = {
            task: record.model_copy(update={"samples": None})
            for task, record in model.evaluations.items()
        }
        return model.model_copy(update={"evaluations": evaluations})

    runs = tuple(bare(model) for model in results.runs)
    return results.model_copy(update={"base": bare(results.base), "models": runs})


def disk_full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_limit_of_the_size_of_files_is_named(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk has room: it is the shell's limit, or a batch system's."""

    def too_large(*_: Any, **__: Any) -> None:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Path, "write_bytes", too_large)
    with pytest.raises(StorageError, match=r"File too large\. Raise the limit .*`ulimit -f`"):
        folder.write(folder.stacks_file, folder.accepted_stacks())


def test_what_is_written_is_read_back(folder: StudyFolder, results: StudyResults) -> None:
    write_study(folder, results)
    assert without_digests(read_results(folder)) == results


def test_a_full_disk_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    path = tmp_path / "record.json"
    write(path, "old")
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(StorageError) as caught:
        write(path, "new" * 1000)
    sentence(caught.value, names=("record.json",))
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert path.read_text() == "old"
    monkeypatch.undo()
    write(path, "new")
    assert path.read_text() == "new"


def test_a_failed_rename_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(StorageError):
        write(tmp_path / "deep" / "record.json", b"bytes")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write(tmp_path / "file" / "record.json", "x")
    with (
        pytest.raises(StorageError, match="file cannot be written"),
        StudyFolder(tmp_path / "file").lock(),
    ):
        pass


def test_metrics_on_a_full_disk(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    (folder.model_folder("run")).mkdir(parents=True)
    folder.append_metrics("run", {"step": 1})
    monkeypatch.setattr(Path, "open", disk_full)
    with pytest.raises(StorageError) as caught:
        folder.append_metrics("run", {"step": 2})
    monkeypatch.undo()
    sentence(caught.value, names=("metrics.jsonl",))
    assert folder.metrics_file("run").read_text() == '{"step": 1}\n'


def test_starting_a_run_again_clears_what_was_cut_off(
    folder: StudyFolder, results: StudyResults
) -> None:
    planned, _ = planned_of(results)
    folder.start_run(planned)
    folder.append_metrics(planned.name, {"step": 1})
    weights = folder.weights_folder(planned)
    assert weights.name == "adapter"
    weights.mkdir()
    (weights / "half").write_text("half")
    folder.start_run(planned)
    assert not weights.exists()
    assert folder.metrics_file(planned.name).read_bytes() == b""


def test_starting_a_run_again_leaves_what_is_the_users(
    folder: StudyFolder, results: StudyResults, tmp_path: Path
) -> None:
    """Its folder may be under version control, or hold notes and plots of the run."""
    planned, _ = planned_of(results)
    folder.start_run(planned)
    place, victim = folder.model_folder(planned.name), tmp_path / "victim"
    victim.mkdir()
    mine = [
        *(place / name for name in ("note.md", ".git/config", "plots/loss.png", "eval/note.txt")),
        *(place / name for name in ("plan.json", "heads/effects/mine.json", "runs/events")),
        *(victim / name for name in ("adapter_config.json", "losses", "record.json")),
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"mine": 1}')
    folder.write(folder.evaluation_file(planned.name, "t"), folder.accepted_stacks())
    folder.samples_file(planned.name, "t").write_text("{}")
    (place / "repair" / "adapter").mkdir(parents=True)
    (place / "repair" / "adapter" / "adapter_model.safetensors").write_text("half")
    folder.metrics_file(planned.name).unlink()
    folder.metrics_file(planned.name).symlink_to(victim / "losses")
    folder.weights_folder(planned).symlink_to(victim)
    (place / "eval" / "linked").symlink_to(victim)
    folder.start_run(planned)
    assert {path.read_text() for path in mine} == {'{"mine": 1}'}
    assert not folder.evaluation_file(planned.name, "t").exists()
    assert not folder.samples_file(planned.name, "t").exists()
    assert not (place / "repair").exists()
    assert not folder.weights_folder(planned).is_symlink()
    assert not folder.metrics_file(planned.name).is_symlink()
    assert folder.metrics_file(planned.name).read_bytes() == b""


def with_entry(text: str, key: str, value: Any) -> str:
    """With another entry and its checksum: what an entry says counts."""
    content = json.loads(text)
    del content["checksum"]
    return sealed(json.dumps(content | {key: value}, indent=2))


def bare(text: str, key: str, value: Any) -> str:
    """The same without its checksum."""
    content = json.loads(with_entry(text, key, value))
    del content["checksum"]
    return json.dumps(content, indent=2)


def test_a_record_of_a_newer_version_is_an_error_of_its_own(
    folder: StudyFolder, results: StudyResults, sentence: Sentences
) -> None:
    folder.write_evaluation(evaluation_of(results), [])
    path = folder.evaluation_file(BASE, "kinship")
    path.write_text(with_entry(path.read_text(), "schema_version", 2))
    with pytest.raises(NewerRecordError) as caught:
        read_record(path, TaskEvaluation)
    sentence(caught.value)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "does not end in its ch"),
        (lambda text: "", "does not end in its ch"),
        (lambda text: text.replace('"num_examples": 12', '"num_examples": 13'), "it was changed"),
        (lambda text: text.replace('"checksum": "', '"checksum":  "'), "does not end in its ch"),
        (lambda text: bare(text, "num_examples", 13), "does not end in its ch"),
        (lambda text: bare(text, "schema_version", 1), "does not end in its ch"),
        (lambda text: with_entry(text, "num_examples", "a few"), "num_exa"),
        (lambda text: with_entry(text, "num_token", 1), r"num_token: Extra"),
        (lambda text: with_entry(text, "schema_version", 0), "schema_version"),
        (lambda text: sealed("[\n]"), "TaskEvaluation"),
        (lambda text: sealed("[" * 100_000 + "\n}"), "TaskEvaluation"),
        (lambda text: sealed('{\n  "num_tokens": ' + "9" * 5_000 + "\n}"), "TaskEvaluation"),
    ],
    ids=[
        *("half", "empty", "a digit", "the checksum", "stripped, a digit", "stripped"),
        *("wrong type", "another field", "an older schema", "a list", "nested", "a long number"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(
    folder: StudyFolder, results: StudyResults, damage: Any, reason: str, sentence: Sentences
) -> None:
    evaluation = evaluation_of(results)
    folder.write_evaluation(evaluation, [])
    path = folder.evaluation_file(BASE, "kinship")
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(RecordError, match=reason) as caught:
        folder.finished(
            folder.evaluation_file(BASE, "kinship"), TaskEvaluation, evaluation.fingerprint
        )
    sentence(caught.value, names=(path,))


def test_a_record_that_is_not_there(folder: StudyFolder, sentence: Sentences) -> None:
    with pytest.raises(RecordError) as caught:
        folder.read_study()
    sentence(caught.value, "study.json", names=("study.json",))
    with pytest.raises(RecordError) as caught:
        read_record(folder.recommendation_file, StudyRecommendation)
    sentence(caught.value, "recommendation.json", names=("recommendation.json",))


def test_a_record_of_another_kind_is_refused(
    folder: StudyFolder, results: StudyResults, sentence: Sentences
) -> None:
    folder.write(folder.study_file, planned_of(results)[1])
    with pytest.raises(RecordError) as caught:
        read_record(folder.study_file, StudyRecord)
    sentence(caught.value)


def test_a_finished_run_and_one_of_another_fingerprint(
    folder: StudyFolder, results: StudyResults, sentence: Sentences
) -> None:
    planned, record = planned_of(results)
    assert folder.finished_run(planned) is None
    folder.write(folder.run_file(planned.name), record)
    assert folder.finished_run(planned) == record
    other = planned.model_copy(update={"fingerprint": "0123456789abcdef" * 4})
    with pytest.raises(RecordError) as caught:
        folder.finished_run(other)
    sentence(caught.value, names=("run.json",))


def test_a_run_of_another_trained_task_is_no_run_of_the_study(
    folder: StudyFolder, results: StudyResults, sentence: Sentences
) -> None:
    """A record of a stranger's, whose task the study has nothing of."""
    planned, record = planned_of(results)
    other = planned.model_copy(update={"train_task": "日本語"})
    folder.write(folder.run_file(planned.name), record.model_copy(update={"planned": other}))
    with pytest.raises(RecordError) as caught:
        folder.finished_run(planned)
    sentence(caught.value, names=("run.json", "日本語"))


def test_an_evaluation_of_other_settings_counts_for_nothing(
    folder: StudyFolder, results: StudyResults
) -> None:
    evaluation = evaluation_of(results)
    assert (
        folder.finished(
            folder.evaluation_file(BASE, "kinship"), TaskEvaluation, evaluation.fingerprint
        )
        is None
    )
    folder.write_evaluation(evaluation, [])
    scored_now = folder.finished(
        folder.evaluation_file(BASE, "kinship"), TaskEvaluation, evaluation.fingerprint
    )
    assert scored_now == evaluation.model_copy(update={"samples": FileDigest.of(b"")})
    assert scored(folder, "another") is None


def test_an_evaluation_cut_off_between_samples_and_record_is_not_there(
    folder: StudyFolder, results: StudyResults, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    old = evaluation_of(results, fingerprint="old")
    folder.write_evaluation(old, [{"sample": "old"}])
    new = evaluation_of(results, fingerprint="new")
    written: list[str] = []

    def fails_at_the_record(path: Path, content: str) -> None:
        written.append(path.name)
        if path.suffix == ".json":
            disk_full()
        write(path, content)

    monkeypatch.setattr(store, "write_atomically", fails_at_the_record)
    monkeypatch.setattr(files, "write_atomically", fails_at_the_record)
    with pytest.raises(OSError, match="No space left"):
        folder.write_evaluation(new, [{"sample": "new"}])
    assert written == ["kinship.samples.jsonl", "kinship.json"]
    assert scored(folder, "old") is None
    assert scored(folder, "new") is None
    with pytest.raises(RecordError) as caught:
        folder.read_samples(BASE, "kinship")
    sentence(caught.value, names=("kinship.json",))


def test_samples_keep_every_kind_of_text(folder: StudyFolder, results: StudyResults) -> None:
    texts = ["a\nb", "a\r\nb", "\u2028", "\x85", "\x0b\x0c\x1c", "é 中 🙂", '"quoted\\"', ""]
    lines = [{"text": text, "\u2029": index} for index, text in enumerate(texts)]
    folder.write_evaluation(evaluation_of(results), lines)
    assert folder.read_samples(BASE, "kinship") == lines


@pytest.mark.parametrize("content", [None, "{}\n{half", "\xff"])
def test_samples_that_cannot_be_read(
    folder: StudyFolder, results: StudyResults, content: str | None, sentence: Sentences
) -> None:
    folder.write_evaluation(evaluation_of(results), [])
    path = folder.samples_file(BASE, "kinship")
    path.unlink()
    if content is not None:
        path.write_text(content, encoding="latin-1")
        items_as_they_are(folder, BASE, "kinship")
    with pytest.raises(RecordError) as caught:
        folder.read_samples(BASE, "kinship")
    sentence(caught.value, names=("samples.jsonl",))


def test_a_record_and_its_samples_must_have_equally_many_items(
    folder: StudyFolder, results: StudyResults, sentence: Sentences
) -> None:
    write_study(folder, results)
    path = folder.samples_file(BASE, "kinship")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    sentence(caught.value, "first")
    items_as_they_are(folder, BASE, "kinship")
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    sentence(caught.value, "kinship.samples.jsonl", names=("kinship.samples.jsonl", "11", "12"))


def test_items_of_other_filters_are_left_out(folder: StudyFolder, results: StudyResults) -> None:
    write_study(folder, results)
    evaluation = evaluation_of(results)
    lines = folder.read_samples(BASE, "kinship")
    others = [{**line, "filter": "flexible", "acc": 0.5} for line in lines]
    folder.write_evaluation(evaluation, others + lines)
    assert read_results(folder).base.items == results.base.items


def test_of_a_study_that_is_not_finished_the_rest_is_read(
    folder: StudyFolder, sentence: Sentences
) -> None:
    results = planted_results.planted_study({4: 0.7, 8: 0.7}, num_in_domain=12, num_retention=4)
    write_study(folder, results)
    planned, _ = planned_of(results)
    task = folder.evaluation_file(planned.name, "elements")
    others = [model.name for model in results.runs[1:]]
    task.unlink()
    for left in ("is not scored on elements", "is not trained"):
        read = read_results(folder)
        assert read.left_out == {planned.name: left}
        assert [model.name for model in read.runs] == others
        folder.run_file(planned.name).unlink(missing_ok=True)
    for other in results.runs[1:]:
        folder.run_file(other.name).unlink()
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    sentence(caught.value, "first")
    folder.evaluation_file(BASE, "elements").unlink()
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    sentence(caught.value, "second")


def test_a_task_of_one_item_is_left_out_and_named(folder: StudyFolder, sentence: Sentences) -> None:
    results = planted_results.planted_study({4: 0.7, 8: 0.7}, num_in_domain=12, num_retention=1)
    write_study(folder, results)
    few = results.study.tasks["kinship"]["retention"]
    read = read_results(folder)
    assert read.left_out == dict.fromkeys(few, "has 1 item, and differences need 2")
    assert read.study.tasks["kinship"]["retention"] == ()
    assert not read.base.items.keys() & {*few}
    outcome = conclude(folder)
    sentence(write_report(folder.root, *outcome).read_text(), names=(few[0], "1 item"), part=True)
    keep(folder, outcome, settings=True)
    assert folder.read_study().tasks["kinship"]["retention"] == few


def test_a_study_of_one_item_is_refused_with_the_remedy(
    folder: StudyFolder, sentence: Sentences
) -> None:
    write_study(folder, planted_results.planted_study({4: 0.7}, num_in_domain=1))
    with pytest.raises(RecordError) as caught:
        read_results(folder)
    sentence(caught.value)


def test_a_diverged_run_has_no_evaluations(folder: StudyFolder) -> None:
    results = planted_results.planted_study(
        {4: 0.7, 8: 0.7}, num_in_domain=12, diverged=[(8, 0)], num_retention=4
    )
    write_study(folder, results)
    assert without_digests(read_results(folder)) == results
    assert read_results(folder).runs[1].evaluations == {}


def test_loss_items_of_prose_average_to_nats_per_token(
    folder: StudyFolder, results: StudyResults
) -> None:
    write_study(folder, results)
    tokens, nats = [10, 1000, 3], [25.0, 1500.0, 30.0]
    evaluation = results.base.evaluations["pydoc_topics"].model_copy(update={"num_examples": 3})
    lines = [
        {"doc_id": i, "filter": "none", LOSS_METRIC: n / t, "num_loss_tokens": t}
        for i, (t, n) in enumerate(zip(tokens, nats, strict=True))
    ]
    folder.write_evaluation(evaluation, lines)
    items = read_results(folder).base.items["pydoc_topics"]
    assert items.unit == "nats"
    assert not items.higher_is_better
    assert sum(items.values) / len(items.values) == pytest.approx(sum(nats) / sum(tokens))


def test_a_fingerprint_depends_on_content_and_not_on_its_order(results: StudyResults) -> None:
    one = fingerprint({"a": 1, "b": {"x": [1, 2], "y": None}})
    assert one == fingerprint({"b": {"y": None, "x": [1, 2]}, "a": 1})
    assert len(one) == 64
    others = [
        {"a": 1, "b": {"x": [2, 1], "y": None}},
        {"a": "1", "b": {"x": [1, 2], "y": None}},
        {"a": 1, "b": {"x": [1, 2]}},
    ]
    assert one not in {fingerprint(other) for other in others}
    planned, _ = planned_of(results)
    assert fingerprint(planned) == fingerprint(planned.model_dump(mode="json"))
    assert fingerprint(planned) != fingerprint(planned.model_copy(update={"seed": 1}))


def test_every_task_name_has_a_file_of_its_own_inside_the_folder(
    folder: StudyFolder, results: StudyResults
) -> None:
    for name in ODD_NAMES:
        folder.write_evaluation(evaluation_of(results, task=name), [{"name": name}])
    for name in ODD_NAMES:
        path = folder.evaluation_file(BASE, name)
        assert path.parent == folder.root / "base" / "eval"
        assert read_record(path, TaskEvaluation).task == name
        assert folder.read_samples(BASE, name) == [{"name": name}]
    assert len(list((folder.root / "base" / "eval").iterdir())) == 2 * len(ODD_NAMES)


def test_the_lock_keeps_other_processes_out_and_dies_with_its_own(folder: StudyFolder) -> None:
    holding = (
        "import sys; from pathlib import Path; from rankwise.records.folder import StudyFolder\n"
        "with StudyFolder(Path(sys.argv[1])).lock():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(folder.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(StudyLockedError, match=r"process \d+ on \S+ is working"), folder.lock():
            pass
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        with folder.lock(), pytest.raises(StudyLockedError), StudyFolder(folder.root).lock():
            pass
        with folder.lock():  # and it is free again
            assert sorted(p.name for p in folder.root.iterdir()) == [".leader", ".lock"]


def test_states_beside_finished_runs_are_removed(
    folder: StudyFolder, results: StudyResults
) -> None:
    write_study(folder, results)
    planned, _ = planned_of(results)
    for run in (planned.name, "unfinished", "a-copy", "somebody-elses"):
        folder.model_folder(run).mkdir(parents=True, exist_ok=True)
        (folder.model_folder(run) / "training.pt").write_text("")
    folder.run_file("a-copy").write_bytes(folder.run_file(planned.name).read_bytes())
    folder.run_file("somebody-elses").write_text("{}")
    with folder.lock():
        left = {path.parent.name for path in folder.root.glob("runs/*/training.pt")}
    assert left == {"unfinished", "a-copy", "somebody-elses"}


def files_below(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


OF_OTHERS = (
    *("runs/exp/run.json", "runs/exp/training.pt", ".tasks/todo.md"),
    ".tasks/pass-0123456789ab/1-a/runs/exp/training.pt",
)


@pytest.mark.parametrize("plan", [None, "", '{"study": "of another tool"}'])
def test_a_folder_without_a_study_keeps_what_is_in_it(
    folder: StudyFolder, plan: str | None
) -> None:
    for name in OF_OTHERS:
        write(folder.root / name, "mine")
    if plan is not None:
        write(folder.study_file, plan)
    before = files_below(folder.root)
    with folder.lock():
        pass
    assert files_below(folder.root) == before


@pytest.mark.parametrize(
    "name", [".lock", ".leader", ".progress.json", ".finished", ".checked.json"]
)
@pytest.mark.parametrize("is_link", [False, True])
def test_working_files_of_others_are_named_and_stay(
    folder: StudyFolder, tmp_path: Path, name: str, is_link: bool
) -> None:
    write(mine := tmp_path / "mine" if is_link else folder.root / name, "mine")
    folder.root.mkdir(exist_ok=True)
    if is_link:
        (folder.root / name).symlink_to(mine)
    with pytest.raises(ConfigError) as caught, folder.lock():
        pass
    assert [problem.partition(" ")[0] for problem in caught.value.problems] == [name]
    assert mine.read_text() == "mine"
    assert [path.name for path in folder.root.iterdir()] == [name]


def test_what_a_killed_process_left_is_no_hindrance(
    folder: StudyFolder, results: StudyResults
) -> None:
    """Even where the study's own file is damaged."""
    write_study(folder, results)
    find_damage(folder, thorough=True)
    with folder.lock():
        folder.write(folder.progress_file, StudyProgress(told_at="now", stages=()))
        write(folder.finished_file, "0" * 64)
        left = {name: (folder.root / name).read_bytes() for name in (".leader", ".progress.json")}
    for name, content in left.items():
        (folder.root / name).write_bytes(content)
    assert json.loads((folder.root / ".checked.json").read_text())
    write(folder.study_file, "")
    with StudyFolder(folder.root).lock():
        pass


def test_a_link_in_the_place_of_the_leader_is_replaced(
    folder: StudyFolder, results: StudyResults, tmp_path: Path
) -> None:
    """A stranger's study may hold one to any file."""
    write_study(folder, results)
    write(tmp_path / "mine", "mine")
    (folder.root / ".leader").symlink_to(tmp_path / "mine")
    with folder.lock():
        assert folder.leader() is not None
    assert (tmp_path / "mine").read_text() == "mine"
