"""What the collection keeps of a finished study, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankwise.errors import RecordError
from rankwise.prediction.collected import CollectedStudy, in_thousandths
from rankwise.prediction.collecting import collected_studies
from rankwise.prediction.collection import add_study, own_collection, read_collection
from rankwise.prediction.curves import curve_of
from rankwise.prediction.flips import retention_items
from rankwise.records.fingerprints import spectra_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, StudyResults
from tests.planted.folders import write_study
from tests.planted.results import Scores, planted_study
from tests.planted.weights import spectra
from tests.support.records import losses_as_they_are

# kinship: 0.50 of the base and 0.70, 0.80, 0.81 of the ranks; retention 0.90, then 0.90, 0.90, 0.88
GAIN = {4: 20.0, 16: 30.0, 64: 31.0}
RETENTION = {4: 0.0, 16: 0.0, 64: -2.0}


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    found = StudyFolder(tmp_path / "study")
    write_study(found, planted_study(seeds=(0, 1)))
    return found


@pytest.fixture
def study(folder: StudyFolder) -> CollectedStudy:
    (found,) = collected_studies(folder)
    return found.with_features({"gradient_energy_rank_90": 7.0})


def test_figures_are_those_of_the_study(study: CollectedStudy) -> None:
    assert (study.task, study.base_model.name) == ("kinship", "smollm2-135m-instruct")
    assert study.base_model.parameters_per_rank == 115_200
    assert study.training.num_rows == 480
    assert study.base_scores["kinship"] == 50.0
    assert [(run.rank, run.seed) for run in study.runs] == [
        (4, 0), (4, 1), (16, 0), (16, 1), (64, 0), (64, 1), (None, 0), (None, 1)
    ]  # fmt: skip
    for run in study.runs[:6]:
        assert run.gain is not None
        assert run.retention is not None
        assert run.rank is not None
        assert run.gain.estimate == pytest.approx(GAIN[run.rank], abs=1e-3)
        assert run.retention.estimate == pytest.approx(RETENTION[run.rank], abs=1e-3)
        assert 0.0 < run.gain.stderr < 5.0
    assert study.features["base_accuracy"] == 0.5
    assert study.features["train_tokens"] == 12_000  # of two epochs
    assert study.features["gradient_energy_rank_90"] == 7.0


@pytest.mark.parametrize(
    "name", ["/somewhere/models/my-base", "../somewhere/my-base", "somewhere/else/my-base"]
)
def test_no_folder_of_the_machine_is_kept(tmp_path: Path, name: str) -> None:
    results = planted_study()
    config = results.study.config
    base = config.base_model.model_copy(update={"name": name})
    config = config.model_copy(update={"base_model": base})
    study = results.study.model_copy(update={"config": config})
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, results.model_copy(update={"study": study}))
    (found,) = collected_studies(folder)
    assert found.base_model.name == "my-base"
    assert "somewhere" not in found.model_dump_json()


def test_items_are_known_by_place_alone(study: CollectedStudy) -> None:
    assert [items.task for items in study.items] == ["kinship", "capitals", "elements"]
    kinship = study.items[0]
    assert kinship.right_of(0).sum() == 150
    assert kinship.right_of(1).sum() == 210  # rank 4, seed 0
    assert kinship.gain_of(1).mean() == pytest.approx(20.0)


def test_losses_and_weights_of_a_run(folder: StudyFolder) -> None:
    """Six matrices of norm 3, with two intruders each; 16 losses, averaged in pairs."""
    record = folder.read_study()
    run = record.runs[0]
    found = spectra(run, lambda _: 3.0, intruders=2.0)
    fingerprint = spectra_fingerprint(record, run)
    folder.write(
        folder.spectra_file(run.name), found.model_copy(update={"fingerprint": fingerprint})
    )
    for step in range(16):
        folder.append_metrics(run.name, {"step": step, "loss_nats": float(step)})
    folder.append_metrics(run.name, {"step": 16, "loss_nats": float("nan")})  # no record has one
    losses_as_they_are(folder, run.name)
    (study,) = collected_studies(folder)
    first, second = study.runs[:2]
    assert first.losses_nats == (0.5, 2.5, 4.5, 6.5, 8.5, 10.5, 12.5, 14.5)
    assert (first.energy_rank_90, first.intruders) == (2.0, 2.0)
    assert first.update_norm == pytest.approx(3.0 * 6**0.5)
    assert (second.losses_nats, second.intruders, second.update_norm) == ((), None, None)


def test_the_curve_is_what_was_planted(study: CollectedStudy) -> None:
    curve = curve_of(study)
    assert curve is not None
    assert curve.ranks == (4, 16, 64)
    assert curve.mean("gain") == pytest.approx(list(GAIN.values()))
    assert curve.mean("retention") == pytest.approx(list(RETENTION.values()))
    assert [array.shape for array in curve.parts["retention"]] == [(2, 200, 3), (2, 200, 3)]


def test_a_rank_counts_at_the_median_of_its_rates(study: CollectedStudy) -> None:
    """Of rates 1e-4, 2e-4 and 4e-4 at rank 16 the middle one; a rank without a seed is left out."""
    slow, fast = (
        [run.model_copy(update={"learning_rate": rate}) for run in study.runs[2:4]]
        for rate in (1e-4, 4e-4)
    )
    runs = (*study.runs[:4], *slow, *fast, study.runs[4])
    places = (0, 1, 2, 3, 4, 3, 3, 4, 4, 5)
    items = tuple(
        each.model_copy(
            update={
                "values": tuple(each.values[place] for place in places),
                "right": tuple(each.right[place] for place in places),
            }
        )
        for each in study.items
    )
    curve = curve_of(study.model_copy(update={"runs": runs, "items": items}))
    assert curve is not None
    assert curve.question.ranks == (4, 16)
    assert curve.question.rates == (2e-4, 2e-4)
    assert sorted((trial.rank, trial.rate) for trial in curve.trials) == [
        (4, 2e-4), (16, 1e-4), (16, 2e-4), (16, 4e-4)
    ]  # fmt: skip


def test_a_rank_whose_median_rate_diverged_is_left_out(study: CollectedStudy) -> None:
    """Rank 16 at 1e-4, 2e-4 and 4e-4: without the last, the median would seem to be 1e-4."""
    rates = ((2, 1e-4), (3, 1e-4), (2, 2e-4), (3, 2e-4), (2, 4e-4), (3, 4e-4))
    for lost, ranks in ((5, (4, 16, 64)), (3, (4, 64))):
        runs = [
            study.runs[place].model_copy(
                update={"learning_rate": rate, "status": "diverged" if n == lost else "trained"}
            )
            for n, (place, rate) in enumerate(rates)
        ]
        places = (0, 1, 2, *(place + 1 for place, _ in rates), 5, 6)
        found = study.model_copy(
            update={
                "runs": (*study.runs[:2], *runs, *study.runs[4:6]),
                "items": tuple(
                    each.model_copy(update={"values": tuple(each.values[p] for p in places)})
                    for each in study.items
                ),
            }
        )
        curve = curve_of(found)
        assert curve is not None
        assert curve.ranks == ranks
        assert set(curve.question.rates) == {2e-4}


def test_a_further_seed_of_one_rank_changes_nothing(study: CollectedStudy) -> None:
    """Rank 16 has a seed 2, whose items are those of the base."""
    third = study.runs[3].model_copy(update={"seed": 2})
    items = tuple(
        each.model_copy(
            update={
                "values": (*each.values[:5], each.values[0], *each.values[5:]),
                "right": (*each.right[:5], each.right[0], *each.right[5:]),
            }
        )
        for each in study.items
    )
    runs = (*study.runs[:4], third, *study.runs[4:])
    before = curve_of(study)
    curve = curve_of(study.model_copy(update={"runs": runs, "items": items}))
    assert before is not None
    assert curve is not None
    assert curve.question == before.question
    assert curve.mean("gain") == pytest.approx(before.mean("gain"))


def test_one_seed_has_no_curve(tmp_path: Path) -> None:
    """It would choose the best rank and measure it."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    (study,) = collected_studies(folder)
    assert curve_of(study) is None


def _replanned(**changed: Any) -> StudyResults:
    """The planted study with the first run planned otherwise."""
    results = planted_study(seeds=(0, 1))
    record = results.runs[0].run
    assert record is not None
    planned = record.planned.model_copy(update=changed)
    first = results.runs[0].model_copy(
        update={"run": record.model_copy(update={"planned": planned})}
    )
    study = results.study.model_copy(update={"runs": (planned, *results.study.runs[1:])})
    return results.model_copy(update={"study": study, "runs": (first, *results.runs[1:])})


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"alpha": 16.0}, "alpha"),
        ({"epochs": 3}, "epochs"),
        ({"target_modules": ("q_proj",)}, "target_modules"),
    ],
)
def test_a_grid_over_more_than_rates_is_refused(
    tmp_path: Path, changed: dict[str, Any], name: str
) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, _replanned(**changed))
    with pytest.raises(RecordError, match=f"runs on kinship that differ in {name} besides rank"):
        collected_studies(folder)


def test_a_study_that_was_extended_takes_the_place_of_itself(tmp_path: Path) -> None:
    """What was measured for the first is kept, wherever the second is."""
    records = []
    for seeds in ((0, 1), (0, 1, 2)):
        results = planted_study(seeds=seeds)
        changed = results.study.model_copy(update={"fingerprint": str(len(seeds)) * 64})
        folder = StudyFolder(tmp_path / f"{len(seeds)}")
        write_study(folder, results.model_copy(update={"study": changed}))
        records += collected_studies(folder)
    first, second = records
    own, other = tmp_path / "own", tmp_path / "other"
    add_study(own, first.with_features({"near_tie_share": 0.25}))
    add_study(own, second)
    add_study(other, second)
    for folders in ((own,), (own, other)):
        (found,) = read_collection(*folders)
        assert len(found.runs) == 12
        assert found.features["near_tie_share"] == 0.25


def _at_rate(study: CollectedStudy, rate: float) -> CollectedStudy:
    """The same study, all of whose ranks had another rate."""
    runs = tuple(
        run if run.rank is None else run.model_copy(update={"learning_rate": rate})
        for run in study.runs
    )
    return study.model_copy(update={"runs": runs})


def test_another_study_of_the_same_name_is_not_lost(study: CollectedStudy, tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    add_study(own, study)
    faster = _at_rate(study, 8e-4)
    with pytest.raises(RecordError, match="is a study of the same name with other runs"):
        add_study(own, faster)
    add_study(other, faster)
    assert read_collection(own, other) == (study, faster)


@pytest.mark.parametrize("change", [{"num_steps": 5}, {"rows_per_step": 64}, {"num_tokens": 9}])
def test_another_training_of_the_same_name_is_not_lost(
    study: CollectedStudy, tmp_path: Path, change: dict[str, int]
) -> None:
    add_study(tmp_path, study)
    training = study.training.model_copy(update=change)
    with pytest.raises(RecordError, match="other runs, training or tasks"):
        add_study(tmp_path, study.model_copy(update={"training": training}))
    assert read_collection(tmp_path) == (study,)


def test_other_tasks_in_domain_are_another_study(study: CollectedStudy) -> None:
    items = tuple(
        each.model_copy(update={"task": "other"}) if each.relation == "in_domain" else each
        for each in study.items
    )
    assert study.extends(study)
    assert not study.model_copy(update={"items": items}).extends(study)


def test_a_damaged_record_says_what_helps(study: CollectedStudy, tmp_path: Path) -> None:
    path = add_study(tmp_path, study)
    path.write_bytes(path.read_bytes().replace(b"kinship", b"kinshap", 1))
    for what in (lambda: read_collection(tmp_path), lambda: add_study(tmp_path, study)):
        with pytest.raises(RecordError) as error:
            what()
        assert path.name in str(error.value)
        assert "Remove it from the collection, and collect the study again." in str(error.value)
        assert "Run the study" not in str(error.value)


def test_a_score_that_was_measured_before_training_is_kept(study: CollectedStudy) -> None:
    """As the near ties beside it tell; of a record that has them too, the newer counts."""
    measured = study.with_features({"base_accuracy": 0.123, "near_tie_share": 0.25})
    assert study.after(measured).features["base_accuracy"] == 0.123
    again = study.with_features({"base_accuracy": 0.456, "near_tie_share": 0.5})
    assert again.after(measured).features["base_accuracy"] == 0.456


def test_what_a_probe_of_another_rate_showed_is_not_kept(study: CollectedStudy) -> None:
    measured = study.with_features({"probe_loss_drop": 9.0, "near_tie_share": 0.25})
    assert study.after(measured).features["probe_loss_drop"] == 9.0
    faster = _at_rate(study, 8e-4).after(measured).features
    assert faster["near_tie_share"] == 0.25
    assert "probe_loss_drop" not in faster


def test_alpha_is_of_the_factor(tmp_path: Path) -> None:
    """rsLoRA of rank 16 with alpha 16 has the factor 4, as plain LoRA with alpha 64."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study(seeds=(0, 1)))
    (study,) = collected_studies(folder)
    planned = {run.rank: run for run in folder.read_study().runs}
    for run in study.runs:
        if run.rank is not None:
            assert run.alpha == pytest.approx(run.rank * (planned[run.rank].scaling or 0.0))


def test_a_task_with_a_slash_lies_in_the_collection(study: CollectedStudy, tmp_path: Path) -> None:
    named = study.model_copy(update={"task": "own/task"})
    assert add_study(tmp_path, named).parent == tmp_path
    assert read_collection(tmp_path) == (named,)


@pytest.mark.parametrize("task", ["local_sciq", "sciq", "sciq_cloze"])
def test_tasks_of_one_data_set_are_left_out_together(study: CollectedStudy, task: str) -> None:
    curve = curve_of(study.model_copy(update={"task": task}))
    assert curve is not None
    assert curve.task == "sciq"


def test_tasks_that_share_rows_are_left_out_together(study: CollectedStudy) -> None:
    """A quarter of LegalBench's mix are rows of Overruling."""
    tasks = ("local_legal_cloze", "local_overruling")
    assert {study.model_copy(update={"task": task}).data_set for task in tasks} == {"legal"}


def test_items_are_right_or_wrong_in_all_models_or_in_none(tmp_path: Path) -> None:
    """The base has 0 and 1, one run a half."""
    results = planted_study(seeds=(0, 1))
    run = results.runs[0]
    items = run.items["capitals"]
    halved = items.model_copy(update={"values": (0.5, *items.values[1:])})
    changed = run.model_copy(update={"items": {**run.items, "capitals": halved}})
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, results.model_copy(update={"runs": (changed, *results.runs[1:])}))
    (study,) = collected_studies(folder)
    assert study.items[1].task == "capitals"
    assert set(study.items[1].right) == {""}
    items_right = retention_items(study)
    assert items_right is not None
    assert len(items_right.base) == 180  # of elements alone


def test_normalised_accuracy_is_not_what_is_measured(tmp_path: Path) -> None:
    results = planted_study(seeds=(0, 1))

    def renamed(model: ModelResults) -> ModelResults:
        found = model.evaluations["kinship"]
        (score,) = found.metrics
        changed = {
            "decision_metric": "acc_norm",
            "metrics": (score.model_copy(update={"metric": "acc_norm"}),),
        }
        kinship = found.model_copy(update=changed)
        return model.model_copy(update={"evaluations": {**model.evaluations, "kinship": kinship}})

    changed = {"base": renamed(results.base), "runs": tuple(map(renamed, results.runs))}
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, results.model_copy(update=changed))
    (study,) = collected_studies(folder)
    assert study.base_scores["kinship"] == 50.0
    assert "base_accuracy" not in study.features


def test_losses_in_nats_have_no_curve(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    losses: Scores = {4: 1.0, 16: 0.9, "full": 0.8}
    write_study(folder, planted_study(losses, in_domain_unit="nats"))
    (study,) = collected_studies(folder)
    gain = study.runs[1].gain
    assert gain is not None
    assert gain.unit == "nats"
    assert "base_accuracy" not in study.features
    assert study.items[0].right == ("",) * 4
    assert curve_of(study) is None


def test_a_study_is_read_as_it_was_written_and_once(study: CollectedStudy, tmp_path: Path) -> None:
    path = add_study(tmp_path / "own", study)
    add_study(tmp_path / "other", study)
    assert path.name == f"kinship-480-{study.source[:8]}.json"
    assert read_collection(tmp_path / "own", tmp_path / "other", tmp_path / "none") == (study,)
    assert path.stat().st_size < 50_000


def test_the_users_collection_has_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKWISE_COLLECTION", str(tmp_path))
    assert own_collection() == tmp_path
    monkeypatch.delenv("RANKWISE_COLLECTION")
    assert own_collection().name == "collection"
    assert "rankwise" in own_collection().parts


def test_an_unfinished_study_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    results = planted_study()
    write_study(folder, results)
    folder.run_file(results.runs[1].name).unlink()
    with pytest.raises(RecordError, match=r"is no finished study: kinship-lora-r016.* not trained"):
        collected_studies(folder)


def test_a_study_of_one_rank_is_refused(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study({16: 0.8, "full": 0.8}))
    with pytest.raises(RecordError, match="has rank 16 alone on kinship"):
        collected_studies(folder)


def test_a_diverged_run_is_kept_without_scores(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study(seeds=(0, 1), diverged=[(64, 1)]))
    (study,) = collected_studies(folder)
    run = study.runs[5]
    assert (run.status, run.gain, study.items[0].values[6]) == ("diverged", None, "")
    curve = curve_of(study)
    assert curve is not None
    assert curve.ranks == (4, 16)


def test_items_of_other_models_are_refused(study: CollectedStudy) -> None:
    content = study.model_dump()
    content["runs"] = content["runs"][1:]
    with pytest.raises(ValueError, match="9 models and 7 runs"):
        CollectedStudy.model_validate(content)


def test_values_lose_half_a_thousandth_at_most(study: CollectedStudy) -> None:
    shares = np.random.default_rng(0).random(1000)
    values = (in_thousandths(shares.tolist()), *study.items[0].values[1:])
    items = study.items[0].model_copy(update={"values": values})
    assert np.abs(items.value_of(0) / 100.0 - shares).max() <= 0.0005 + 1e-12
    assert np.abs(items.value_of(0) / 100.0 - shares).max() > 0.0004  # they are rounded


def test_reading_a_collection_needs_no_torch() -> None:
    code = (
        "import sys, rankwise.prediction.judge, rankwise.prediction.collecting\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout == "[]\n"
