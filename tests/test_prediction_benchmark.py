"""From finished studies to the comparison, which reads published curves as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.prediction import __main__ as comparison
from benchmarks.prediction import collect, collecting, measure
from benchmarks.prediction.collection import add_study, read_collection
from benchmarks.prediction.domains import glue_curves, tinker_curves
from benchmarks.prediction.feature_table import FEATURES
from benchmarks.prediction.power import number_found
from rankwise.records.folder import StudyFolder
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import PlannedRun
from tests.planted.folders import write_study
from tests.planted.rank_curves import collected, planted_curves
from tests.planted.results import planted_study
from tests.planted.weights import spectra, with_spectra


def test_a_planted_rule_beats_the_constants_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "SHIPPED", tmp_path / "none")
    for curve in planted_curves(rule=True):
        add_study(tmp_path / "own", collected(curve))
    comparison.main(["--collection", str(tmp_path / "own"), "--only", "ours"])
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["ours"]["curves"] == 20
    assert "ridge" in told["ours"]["gain"]["beat_the_constants"]
    assert told["ours"]["gain"]["ridge_regret"] < told["ours"]["gain"]["best_constant_regret"]
    # with the studies of its own task left out
    assert told["answered"] == 20
    assert told["forgotten_items"] == {}  # no item is right or wrong here
    assert "ours, retention lost by a choice for gain: 10 tasks" in lines


@pytest.mark.parametrize(("rule", "expected"), [(True, 4), (False, 0)])
def test_in_synthetic_collections_a_rule_is_found_where_it_is(rule: bool, expected: int) -> None:
    """As large and noisy as the real one, 80 points between the ends: found in half of them."""
    assert number_found(7, 80.0, 8, rule=rule) == expected


def test_glue_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "glue.csv"
    header = "model,task,n,rank,seed,epochs,accuracy,trainable_params,trainable_pct"
    rows = [
        f"bert,mrpc,50,{rank},{seed},3,{accuracy},{100 + 10 * rank},0.1"
        for rank, accuracy in ((2, 0.5), (4, 0.6))
        for seed in (1, 2)
    ]
    file.write_text("\n".join([header, *rows]))
    (curve,) = glue_curves(file)
    assert (curve.task, curve.ranks) == ("mrpc", (2, 4))
    assert curve.question.features == {"train_rows": 50.0, "rank_parameters": 10.0}
    assert curve.parts["gain"][0].shape == (2, 1, 2)
    assert curve.mean("gain") == pytest.approx([50.0, 60.0])


def test_tinker_by_hand(tmp_path: Path) -> None:
    """Rates 1 and 2 are those of both ranks of a/x; a/y has no rate in common."""
    file = tmp_path / "tinker.csv"
    rows = ["a/x,1,4,0.9,0", "a/x,2,4,0.7,0", "a/x,3,4,0.1,0", "a/x,1,16,0.6,0", "a/x,2,16,0.8,0"]
    rows += ["a/y,1,4,0.9,0", "a/y,2,16,0.7,0"]
    file.write_text("\n".join(["model,learning_rate,rank,test_nll,train_nll", *rows]))
    (curve,) = tinker_curves(file)
    assert (curve.name, curve.task) == ("a/x", "a")
    assert curve.mean("gain") == pytest.approx([-0.7, -0.6])


def test_the_published_curves_are_read_whole() -> None:
    if not comparison.CURVES.is_dir():
        pytest.skip("no shared curves beside this checkout")
    read = comparison.domains(comparison.CURVES)
    assert {name: len(tuple(curves)) for name, (_, curves) in read.items()} == {
        "GLUE": 56, "tinker": 34
    }  # fmt: skip


def alike(run: PlannedRun) -> SpectraRecord:
    """Every matrix has a norm of 3."""
    return spectra(run, lambda _: 3.0)


def test_what_is_collected_of_a_study_is_what_was_planted(tmp_path: Path) -> None:
    """Kinship: 0.50 of the base, and 0.70, 0.80 and 0.81 of the ranks."""
    write_study(StudyFolder(tmp_path / "study"), planted_study(seeds=(0, 1)))
    collect.main([str(tmp_path / "study"), "--to", str(tmp_path / "own")])
    (study,) = read_collection(tmp_path / "own")
    assert [(run.rank, run.seed) for run in study.runs[:3]] == [(4, 0), (4, 1), (16, 0)]
    gains = [run.gain.estimate for run in study.runs[::2] if run.gain is not None]
    assert gains == pytest.approx([20.0, 30.0, 31.0, 31.0], abs=1e-3)
    assert study.features["base_accuracy"] == 0.5
    assert study.runs[0].update_norm is None


def test_what_is_collected_of_weights_is_the_norm_of_all_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = with_spectra(planted_study(), alike)
    monkeypatch.setattr(collecting, "read_results", lambda _: results)
    (study,) = collecting.collected_studies(StudyFolder(tmp_path))
    assert results.runs[0].spectra is not None
    count = len(results.runs[0].spectra.matrices)
    assert study.runs[0].update_norm == pytest.approx(3.0 * count**0.5)


def test_what_is_measured_is_complete_and_other_entries_stay(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "features.json"
    output.write_text(json.dumps({"another": {"features": {"train_rows": 3.0}}}))
    measure.main([str(study_file), "--output", str(output)])
    found = json.loads(output.read_text())
    assert found["another"] == {"features": {"train_rows": 3.0}}
    features = found["tiny"]["features"]
    # by hand: 24 rows; 2 epochs in steps of 8; a llama of width 48 with 2 layers
    names = ("train_rows", "train_steps", "model_layers", "model_width", "probe_steps")
    assert [features[name] for name in names] == [24, 6, 2, 48, 6]
    assert features.keys() <= FEATURES.keys()
    assert features["probe_kl"] > 0.0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["tiny"]["cpu_seconds"] > 0
