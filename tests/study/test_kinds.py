"""What every kind of stage keeps to, whatever it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from rankwise.integrations.study_files import study_files
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults
from rankwise.records.study import StageRecord
from rankwise.records.study_file import load_config
from rankwise.study.damage import find_damage
from rankwise.study.observer import Advanced, Event, Skipped, StageFinished, StageStarted
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.run import run_study
from rankwise.study.stages.graph import KINDS, stages
from rankwise.study.stages.stage import Stage, model_name
from tests.support.small_studies import write_study

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")

SETTINGS = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2, full: 1e-3}, precision: float32}
methods:
  lora: {ranks: [2, 4, 8], target_modules: [q_proj, k_proj, v_proj, o_proj]}
  full: {weights: float32}
evaluation: {retention: [hues], num_train_items: 0, trained_format: false, limit: 12}
analysis: {divergence: true, null_draws: 0, head_prompts: 4}
deploy: [merged-bf16]
"""

QUESTION = "which colour has the"
"""What every question of both tasks has; of the user's texts, the one that a record would hold."""


class Finished(NamedTuple):
    plan: StudyPlan
    folder: StudyFolder
    events: list[Event]

    @property
    def graph(self) -> tuple[Stage, ...]:
        return stages(self.folder.read_study())  # which names what is deployed


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("kinds")
    file = write_study(root, tiny_model_folder, SETTINGS)
    folder, plan, events = StudyFolder(root / "study"), plan_study(load_config(file)), list[Event]()
    run_study(plan, folder, events.append)
    return Finished(plan, folder, events)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_is_at_its_path_with_its_fingerprint_and_says_whether_it_has_texts(
    finished: Finished, kind: type[Stage]
) -> None:
    folder = finished.folder
    written = {each.path: each for each in study_files(folder, folder.read_study())}
    graph = [stage for stage in finished.graph if type(stage) is kind]
    assert graph
    for stage, model in ((each, model) for each in graph for model in each.models):
        path = stage.path_of(folder, model)
        record = folder.read(path, kind.record)
        if isinstance(record, StageRecord):
            assert record.fingerprint == stage.fingerprint_of(model)
        assert (path, kind.record) in stage.records_of(folder, model)
        assert written[path].has_texts == kind.record.has_texts
        assert kind.record.has_texts or QUESTION not in path.read_text()


def test_no_two_records_have_one_path_and_each_is_in_its_model_s_folder(finished: Finished) -> None:
    paths = dict[Path, tuple[str, str]]()
    for stage in finished.graph:
        for model in stage.models:
            path = stage.path_of(finished.folder, model)
            name = model_name(model)
            assert paths.setdefault(path, (stage.id, name)) == (stage.id, name)
            assert path.is_relative_to(finished.folder.model_folder(name))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_finished_is_read_back_as_results_of_a_model(
    finished: Finished, kind: type[Stage]
) -> None:
    study = finished.folder.read_study()
    for stage in (stage for stage in finished.graph if type(stage) is kind):
        for model in stage.models:
            results = kind.results(finished.folder, study, model)
            assert results.keys() <= ModelResults.model_fields.keys()
            assert None not in results.values()
            assert all(results.values())


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_planned_and_recorded_and_tell_stages_apart(
    finished: Finished, kind: type[Stage]
) -> None:
    study = finished.folder.read_study()
    recorded = study.inputs.get(kind.kind, {})
    planned = finished.plan.inputs.get(kind.kind, {})
    assert planned.keys() == recorded.keys()
    assert all(each.num_tokens > 0 for each in recorded.values())

    def ids(inputs: dict[str, object]) -> set[str]:
        changed = study.model_copy(update={"inputs": {**study.inputs, kind.kind: inputs}})
        return {stage.id for stage in stages(changed) if type(stage) is kind}

    before = ids({**recorded})
    assert before == {stage.id for stage in finished.graph if type(stage) is kind}
    if recorded:
        assert ids({}) == set()
    if any(each.fingerprint for each in recorded.values()):
        other = {
            source: each.model_copy(update={"fingerprint": "of others"})
            for source, each in recorded.items()
        }
        assert not ids({**other}) & before


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "a flipped byte": flipped,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_record_is_found_and_named(
    finished: Finished, kind: type[Stage], damage: str
) -> None:
    stage = next(stage for stage in finished.graph if type(stage) is kind)
    path = stage.path_of(finished.folder, stage.models[-1])
    content = path.read_bytes()
    assert find_damage(finished.folder) == []
    path.write_bytes(DAMAGES[damage](content))
    assert path.read_bytes() != content
    try:
        (damage,) = (each for each in find_damage(finished.folder) if each.path == path)
        assert damage.made_by
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_is_said_to_begin_to_go_on_and_to_end(
    finished: Finished, kind: type[Stage]
) -> None:
    for stage in (stage for stage in finished.graph if type(stage) is kind):
        own = [each for each in finished.events if getattr(each, "stage", None) == stage.id]
        assert [type(own[0]), type(own[-1])] == [StageStarted, StageFinished]
        work = sum(each.work for each in own if isinstance(each, Advanced | Skipped))
        assert work == pytest.approx(stage.work)
