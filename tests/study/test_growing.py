"""Studies that are extended until they are decided, or until nothing is to be gained."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise.records.config.study import StudyConfig
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.judgement import Prospect
from rankwise.records.search import GrowthDecision, SearchRecord
from rankwise.records.study_file import load_config
from rankwise.study import growing
from rankwise.study.growing import run_to_verdict
from rankwise.study.planning.plan import plan_study
from rankwise.study.stopping import Stopped
from tests.support.observers import Recorder
from tests.support.small_studies import write_study


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    settings = """
train: {task: colours, epochs: 1, learning_rate: {lora: 1e-2}, precision: float32}
methods: {lora: {ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}, full: null}
evaluation: {limit: 6, num_train_items: 0}
analysis: {spectra: false, heads: false}
search: {until: decided}
"""
    return write_study(tmp_path_factory.mktemp("growing"), tiny_model_folder, settings)


def prospect(probability: float, **changes: object) -> Prospect:
    fields: dict[str, object] = {
        "add": "in_domain",
        "factor": 2.0,
        "num_items": {"colours": 12},
        "num_available": None,
        "num_new_items": 6,
        "num_seeds": 1,
        "num_new_seeds": 0,
        "probability": probability,
    }
    return Prospect.model_validate(fields | changes)


def growths_of(folder: StudyFolder) -> tuple[GrowthDecision, ...]:
    return read_record(folder.search_file, SearchRecord).growths


@pytest.fixture
def promising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first growth alone promises a decision, so that what is done is known."""
    original, least = growing.next_growth, list[int]()

    def chosen(offers, budget=None, **options):
        sizes = [size for offer in offers for size in offer.prospect.num_items.values()]
        least.append(min(sizes))
        chance = 0.9 if least[-1] == least[0] else 0.0
        promised = [
            offer._replace(prospect=offer.prospect.model_copy(update={"probability": chance}))
            for offer in offers
            if offer.prospect.factor == 2.0
        ]
        return original(promised, budget, **options)

    monkeypatch.setattr(growing, "next_growth", chosen)


def test_items_are_added_and_only_new_ones_are_scored(
    study_file: Path, tmp_path: Path, promising: None
) -> None:
    folder = StudyFolder(tmp_path)
    observer = Recorder()
    outcome = run_to_verdict(load_config(study_file), plan_study, folder, observer)
    *quarters, first, last = growths_of(folder)
    assert [growth.share for growth in quarters] == [0.5, 0.75, 1.0]
    assert (first.limit, first.num_seeds, first.probability) == (12, 1, 0.9)
    assert last.is_last
    assert outcome.results.study.config.evaluation.limit == 12
    assert [stage for _, stage in observer.stages].count("training") == 1
    (part,) = outcome.recommendation.by_train_task
    # each judgement is a look, and they share the error
    assert [look.num_items["colours"] for look in part.looks] == [2, 3, 5, 6, 12]
    assert part.looks[4].alpha == pytest.approx(0.005)


def test_a_stopped_growth_goes_on_with_it(
    study_file: Path, tmp_path: Path, promising: None
) -> None:
    class Stopping(Recorder):
        def decided(self, text: str) -> None:
            if text.startswith("Next: 2 times"):
                self.is_next = True

        def stage_started(self, *arguments) -> None:
            if getattr(self, "is_next", False):
                raise Stopped(15)

    folder = StudyFolder(tmp_path)
    with pytest.raises(Stopped):
        run_to_verdict(load_config(study_file), plan_study, folder, Stopping())
    outcome = run_to_verdict(load_config(study_file), plan_study, folder, Recorder())
    assert outcome.results.study.config.evaluation.limit == 12
    assert [growth.is_last for growth in growths_of(folder)] == [*[False] * 4, True]


def test_a_budget_that_is_spent_ends_it(study_file: Path, tmp_path: Path, promising: None) -> None:
    folder = StudyFolder(tmp_path)
    config = load_config(study_file, ["search.budget=0.001s", "search.until=null"])
    assert config.search.grows
    run_to_verdict(config, plan_study, folder, Recorder())
    (only,) = growths_of(folder)
    assert only.is_last
    assert "budget" in only.statement


def test_a_study_that_does_not_ask_for_it_is_not_grown(study_file: Path, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    config: StudyConfig = load_config(study_file, ["search.until=null"])
    run_to_verdict(config, plan_study, folder, Recorder())
    assert not folder.search_file.exists()


def test_what_can_be_added(study_file: Path) -> None:
    config = load_config(study_file)
    assert growing._can_be_added(config, prospect(0.5))
    assert not growing._can_be_added(config, prospect(0.5, add="retention"))
    unlimited = load_config(study_file, ["evaluation.limit=null"])
    assert not growing._can_be_added(unlimited, prospect(0.5))
    seeds = prospect(0.5, add="seeds", factor=None, num_seeds=3, num_new_seeds=2, num_new_items=0)
    assert growing._can_be_added(unlimited, seeds)
    narrow = load_config(study_file, ["search.policy=narrow"])
    assert not growing._can_be_added(narrow, seeds)
