"""Items that will be forgotten: known factors are found again, and the AUC is as by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rankwise.prediction.collected import CollectedStudy
from rankwise.prediction.collecting import collected_studies
from rankwise.prediction.flips import (
    auc,
    factor_forecast,
    retention_items,
    scores_of,
    study_aucs,
)
from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study

FORGETTING = {2: 0.86, 4: 0.84, 8: 0.80, 16: 0.76, 32: 0.70, 64: 0.60}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CollectedStudy:
    """The same difficult items are forgotten by every rank, by larger ones more."""
    folder = StudyFolder(tmp_path_factory.mktemp("flips"))
    gain = dict.fromkeys(FORGETTING, 0.8)
    write_study(folder, planted_study({**gain}, {**FORGETTING}, noise=0.03, seeds=(0, 1)))
    (found,) = collected_studies(folder)
    return found


def test_auc_by_hand() -> None:
    """Events have scores 3 and 1, the rest 2 and 1: pairs 1, 1, 0 and a tie."""
    scores, events = np.array([3.0, 1.0, 2.0, 1.0]), np.array([1.0, 1.0, 0.0, 0.0])
    assert auc(scores, events) == pytest.approx(2.5 / 4)
    assert auc(-scores, events) == pytest.approx(1.5 / 4)


def test_a_matrix_of_rank_3_that_is_linear_is_found_again() -> None:
    rng = np.random.default_rng(0)
    places = np.array([1.0, 2.0, 4.0, 5.0, 6.0])
    items, slopes, starts = rng.normal(size=(50, 3)), rng.normal(size=3), rng.normal(size=3)

    def column(place: float) -> np.ndarray:
        return items @ (starts + slopes * place)

    change = np.stack([column(place) for place in places], axis=1)
    assert factor_forecast(change, places, 3.0) == pytest.approx(column(3.0))


def test_only_items_that_the_base_has_right(study: CollectedStudy) -> None:
    items = retention_items(study)
    assert items is not None
    assert items.change.shape == (360, 12)  # 180 of 200 right in each of two tasks
    assert items.forgotten.min() == 0.0
    # of a model that has 60 % right, at least a third of what the base had right is forgotten
    assert items.forgotten[:, items.ranks == 64].mean() >= 1 / 3


def test_the_rank_that_is_left_out_is_not_used(study: CollectedStudy) -> None:
    items = retention_items(study)
    assert items is not None
    change, forgotten = items.change.copy(), items.forgotten.copy()
    change[:, items.ranks == 16] = 1e6
    forgotten[:, items.ranks == 16] = 1.0 - forgotten[:, items.ranks == 16]
    same = scores_of(items._replace(change=change, forgotten=forgotten), 16.0)
    for name, scores in scores_of(items, 16.0).items():
        assert scores == pytest.approx(same[name])


def test_other_runs_tell_what_the_base_cannot(study: CollectedStudy) -> None:
    """Right items all have p(right) = 1 in the base, so its margin is no better than a coin."""
    found = study_aucs(study)
    assert found is not None
    assert found["base margin"] == pytest.approx(0.5)
    assert found["other runs"] > 0.9
    assert found["rank-3 factors"] > 0.9


def test_a_rank_counts_at_its_median_rate_alone(study: CollectedStudy) -> None:
    """Runs of rank 4 at half and twice its rate, which forget everything, change nothing."""
    places = [place for place, run in enumerate(study.runs) if run.rank == 4]
    rate = study.runs[places[0]].learning_rate or 0.0
    runs, items = list(study.runs), {each.task: each for each in study.items}
    for factor in (0.5, 2.0):
        for place in places:
            runs.append(study.runs[place].model_copy(update={"learning_rate": factor * rate}))
            items = {
                task: each.model_copy(
                    update={
                        "values": (*each.values, " ".join("0" * len(each.right[0]))),
                        "right": (*each.right, "0" * len(each.right[0])),
                    }
                )
                for task, each in items.items()
            }
    changed = {"runs": tuple(runs), "items": tuple(items.values())}
    assert study_aucs(study.model_copy(update=changed)) == study_aucs(study)


def test_where_nothing_is_forgotten_there_is_no_auc(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    same = dict.fromkeys(FORGETTING, 0.9)
    write_study(folder, planted_study({**same}, {**same}, noise=0.0))
    (study,) = collected_studies(folder)
    assert study_aucs(study) is None
