"""A finished study of which nothing has changed is concluded without a plan, and no other is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankwise.records.config.own_rows import CheckConfig, OwnSetConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.study import RunRecord
from rankwise.study import unchanged
from rankwise.study.unchanged import concluded_again, remember
from rankwise.tasks import task_files
from rankwise.tasks.task_files import is_bundled
from tests.planted.folders import write_study
from tests.planted.results import planted_study


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A finished study on the embedded model and bundled tasks."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    remember(folder, folder.read_study().config)
    return folder


def changed(config: StudyConfig, **sections: dict[str, object]) -> StudyConfig:
    """The config with other values in its sections."""
    return config.model_copy(
        update={
            name: getattr(config, name).model_copy(update=values)
            for name, values in sections.items()
        }
    )


def test_what_is_as_it_was_is_concluded_again_and_again(folder: StudyFolder) -> None:
    config = folder.read_study().config
    for _ in range(2):  # the first writes verdict and looks
        outcome = concluded_again(StudyFolder(folder.root), config)
        assert outcome is not None
        assert [run.name for run in outcome.results.runs] == [
            run.name for run in folder.read_study().runs
        ]
    assert folder.recommendation_file.exists()


def rewritten_run(folder: StudyFolder) -> None:
    path = folder.run_file(folder.read_study().runs[0].name)
    folder.write(path, folder.read(path, RunRecord))


CHANGES: dict[str, Callable[[StudyFolder], object]] = {
    "a record that was written again": rewritten_run,
    "a record that is gone": lambda folder: next(folder.root.glob("base/eval/*.json")).unlink(),
    "a file beside a run": lambda folder: (
        folder.model_folder(folder.read_study().runs[0].name) / "more"
    ).write_text("x"),
    "a plan of other margins": lambda folder: folder.write(
        folder.study_file, folder.read_study().model_copy(update={"warnings": ("other",)})
    ),
    "a mark that is not a text": lambda folder: folder.finished_file.write_bytes(b"\xff"),
    "a mark that is gone": lambda folder: folder.finished_file.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_has_changed_is_planned(folder: StudyFolder, change: str) -> None:
    config = folder.read_study().config
    CHANGES[change](folder)
    assert concluded_again(StudyFolder(folder.root), config) is None


def test_other_settings_are_planned(folder: StudyFolder) -> None:
    config = folder.read_study().config
    assert concluded_again(folder, changed(config, evaluation={"limit": 7})) is None


def test_other_data_is_planned(folder: StudyFolder, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}')
    config = changed(folder.read_study().config, train={"task": (), "data": rows})
    remember(folder, config)
    assert concluded_again(folder, config) is not None
    status = rows.stat()
    rows.write_text('{"prompt": "a", "completion": "c"}')
    os.utime(rows, ns=(status.st_atime_ns, status.st_mtime_ns))  # as some copies do
    assert concluded_again(folder, config) is None


def test_another_model_in_the_same_folder_is_planned(folder: StudyFolder, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"1")
    config = changed(folder.read_study().config, base_model={"name": str(model)})
    remember(folder, config)
    assert concluded_again(folder, config) is not None
    (model / "model.safetensors").write_bytes(b"2")
    assert concluded_again(folder, config) is None


def test_other_code_and_other_packages_are_planned(
    folder: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = folder.read_study().config
    with monkeypatch.context() as patch:
        patch.setattr(unchanged, "_PACKAGE", tmp_path)
        assert concluded_again(folder, config) is None
    installed = tmp_path / "site-packages"
    installed.mkdir()
    monkeypatch.setattr(unchanged.sysconfig, "get_path", lambda _: str(installed))
    remember(folder, config)
    assert concluded_again(folder, config) is not None
    (installed / "torch-9.dist-info").mkdir()
    assert concluded_again(folder, config) is None


def test_what_may_change_elsewhere_is_planned(folder: StudyFolder, tmp_path: Path) -> None:
    config = folder.read_study().config
    evaluation: dict[str, object] = {"retention": ("arc_easy",)}
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    judged = CheckConfig(code=f"{tmp_path}/check.py:score")
    own = {"mine": OwnSetConfig(data=rows, judged_by=(judged,))}
    for other in (
        changed(config, evaluation={"own": own}),
        changed(config, base_model={"name": "org/model"}),
        changed(config, base_model={"name": "x" * 5000}),
        changed(config, evaluation=evaluation),
        changed(config, train={"task": (), "data": Path("org/rows")}),
        config.model_copy(update={"tasks_path": (tmp_path,)}),
    ):
        remember(folder, other)
        assert concluded_again(folder, other) is None


def test_a_group_is_ours_where_all_its_tasks_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_bundled("kinship")
    assert not is_bundled("retention_wide")  # lm-eval's tasks, with data on the hub
    assert not is_bundled("../bundled/kinship")
    (tmp_path / "one.yaml").write_text("task: one")
    (tmp_path / "group.yaml").write_text("group: group\ntask: [one]")
    (tmp_path / "wide.yaml").write_text("group: wide\ntask: [one, arc_easy]")
    monkeypatch.setattr(task_files, "BUNDLED_FOLDER", tmp_path)
    assert is_bundled("group")
    assert not is_bundled("wide")


def test_no_large_library_is_needed(folder: StudyFolder) -> None:
    asked = (
        "import sys; from pathlib import Path; from rankwise.records.folder import StudyFolder; "
        "from rankwise.study.unchanged import concluded_again; "
        "folder = StudyFolder(Path(sys.argv[1])); "
        "assert concluded_again(folder, folder.read_study().config) is not None; "
        "assert not {'torch', 'transformers', 'datasets', 'lm_eval'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", asked, folder.root], check=True)
