"""Weights as a stage of a study: what is recorded, when it is made again, and what has none."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from rankwise.cli.terminal import status_table
from rankwise.engine.models import lanes as engine_lanes
from rankwise.engine.models import weights as engine_weights
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.lanes import Lanes, opened
from rankwise.engine.models.loading import load_frozen
from rankwise.records.files import read_record
from rankwise.records.folder import StudyFolder
from rankwise.records.spectra import MatrixSpectrum, SpectraRecord
from rankwise.records.study_file import load_config
from rankwise.report.page import study_sections
from rankwise.study.planning.plan import plan_study
from rankwise.study.printer import Printer
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.study.stages.spectra import AnalyseWeights
from rankwise.study.status import study_status
from tests.support.observers import Recorder
from tests.support.reads import Reads
from tests.support.records import weights_as_they_are
from tests.support.saved_adapters import save_dora
from tests.support.sentences import Sentences
from tests.support.tiny_tasks import COLOURS_PY, COLOURS_YAML

STUDY = """
base_model: {model}
tasks_path: tasks
allow_task_code: true
train:
  task: colours
  epochs: 1
  learning_rate: {{lora: 1e-2, full: 1e-3}}
  precision: float32
methods:
  lora: {{ranks: [2, 4], target_modules: [q_proj, k_proj, v_proj, o_proj]}}
evaluation:
  num_train_items: 0
analysis: {{top_k: 30, null_draws: 1}}
"""


class Finished(NamedTuple):
    """A study file and the folder that it was run in: rank 2, rank 4, full."""

    file: Path
    folder: Path


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    """Run once, for all tests that look at it or at a copy."""
    root = tmp_path_factory.mktemp("spectra")
    (root / "tasks").mkdir()
    (root / "tasks" / "colours.py").write_text(COLOURS_PY)
    (root / "tasks" / "colours.yaml").write_text(COLOURS_YAML)
    (root / "study.yaml").write_text(STUDY.format(model=tiny_model_folder))
    run(root / "study.yaml", root / "study")
    return Finished(root / "study.yaml", root / "study")


@pytest.fixture
def finished(original: Finished, tmp_path: Path) -> Finished:
    """A copy that a test may change."""
    shutil.copytree(original.folder, tmp_path / "study")
    return Finished(original.file, tmp_path / "study")


def run(file: Path, folder: Path, *overrides: str) -> tuple[Any, Recorder]:
    recorder = Recorder()
    outcome = run_study(plan_study(load_config(file, overrides)), StudyFolder(folder), recorder)
    return outcome, recorder


def kinds(recorder: Recorder) -> list[str]:
    """Which stages were worked at; heads are another matter."""
    return [stage for _, stage in recorder.stages if stage not in ("gauges", "heads")]


def records(folder: Path) -> dict[str, SpectraRecord]:
    paths = sorted(folder.glob("runs/*/spectra.json"))
    return {p.parent.name[:-9]: read_record(p, SpectraRecord) for p in paths}


def written(folder: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in folder.glob("runs/*/spectra.json")}


def numbers(content: Any) -> Iterator[float]:
    """Every number of a record, in its order, but for the clock's."""
    if isinstance(content, SpectraRecord):
        content = content.model_dump(exclude={"analysis_seconds"})
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list | tuple):
        for each in content:
            yield from numbers(each)
    elif isinstance(content, int | float):
        yield float(content)


R2, R4, FULL = "colours-lora-r002-a004-s0", "colours-lora-r004-a008-s0", "colours-full-s0"
LAYERS = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(2) for kind in "qkvo"]


def test_every_run_has_a_record_of_every_adapted_matrix(original: Finished) -> None:
    found = records(original.folder)
    assert sorted(found) == [FULL, R2, R4]
    for record in found.values():
        assert sorted(each.module for each in record.matrices) == sorted(LAYERS)
        assert record.not_analysed is None
        assert record.null_draws == 1
        assert record.analysis_seconds > 0
        for each in record.matrices:
            assert each.leading == ((10, 24) if each.out_features == 24 else (10, 30))
            assert each.gaussian_null is not None
            assert each.haar_null is not None
    ranks = {name: {each.update.rank for each in it.matrices} for name, it in found.items()}
    assert ranks == {R2: {2}, R4: {4}, FULL: {None}}
    assert all(each.full_overlap is None for each in found[FULL].matrices)
    for each in found[R4].matrices:
        assert each.full_overlap is not None
        assert each.full_overlap.rank == 4
        assert each.full_overlap.left_expected == 4 / each.out_features
        # trained on the same rows from the same start: not by chance
        assert each.full_overlap.left > each.full_overlap.left_expected


def test_matrices_side_by_side_have_the_records_of_one_after_the_other(
    original: Finished, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in finished.folder.glob("runs/*/spectra.json"):
        path.unlink()
    threads, counts = torch.get_num_threads(), list[int]()

    def lanes(count: int) -> contextlib.AbstractContextManager[Lanes]:
        counts.append(count)
        return opened(count)

    monkeypatch.setattr(engine_lanes, "opened", lanes)
    torch.set_num_threads(3)
    try:
        run(finished.file, finished.folder)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert counts == [3]
    before, after = records(original.folder), records(finished.folder)
    assert [x.module for x in after[FULL].matrices] == [x.module for x in before[FULL].matrices]
    for name, record in after.items():
        assert list(numbers(record)) == pytest.approx(list(numbers(before[name])), abs=1e-6)


def test_of_base_and_full_fine_tuning_one_matrix_each_is_in_memory(
    original: Finished, finished: Finished
) -> None:
    for path in finished.folder.glob("runs/*/spectra.json"):
        path.unlink()
    with Reads() as reads:
        run(finished.file, finished.folder)
    assert reads.most_bytes == 2 * 48 * 48 * 4
    before, after = records(original.folder), records(finished.folder)
    for name, record in after.items():
        assert list(numbers(record)) == list(numbers(before[name]))


def weights_folders(folder: Path, name: str) -> list[Path]:
    paths = folder.glob(f"runs/{name}-*/*")
    return [path for path in paths if path.name in ("adapter", "checkpoint")]


def adapted(folder: Path, name: str, model_folder: Path) -> dict[str, torch.Tensor]:
    """The base's matrix plus delta of every adapted layer, in float64, by other means than ours."""
    (weights,) = weights_folders(folder, name)
    if weights.name == "checkpoint":
        tensors = load_file(weights / "model.safetensors")
        return {layer: tensors[f"{layer}.weight"].double() for layer in LAYERS}
    base: Any = load_frozen(model_folder, "float32", torch.device("cpu"))
    model: Any = peft.PeftModel.from_pretrained(base, str(weights)).base_model.model
    found: dict[str, torch.Tensor] = {}
    for layer in LAYERS:
        module = model.get_submodule(layer)
        delta = module.get_delta_weight("default").detach().double()
        found[layer] = module.base_layer.weight.detach().double() + delta
    return found


@pytest.mark.parametrize("name", [R2, R4, FULL])
def test_numbers_are_those_of_the_saved_weights(
    original: Finished, tiny_model_folder: Path, name: str
) -> None:
    base = load_file(tiny_model_folder / "model.safetensors")
    after = adapted(original.folder, name, tiny_model_folder)
    for each in records(original.folder)[name].matrices:
        W0 = base[f"{each.module}.weight"].double()
        delta = after[each.module] - W0
        assert float(delta.norm()) > 0
        assert each.update.frobenius_norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert each.update.spectral_norm == pytest.approx(
            float(torch.linalg.matrix_norm(delta, 2)), rel=1e-5
        )
        assert each.base_frobenius_norm == pytest.approx(float(W0.norm()), rel=1e-6)
        assert (each.out_features, each.in_features) == tuple(W0.shape)
        U0, S0, Vh0 = torch.linalg.svd(W0, full_matrices=False)
        U1, S1, Vh1 = torch.linalg.svd(W0 + delta, full_matrices=False)
        left, right = (U0.T @ U1).abs(), (Vh0 @ Vh1.T).abs()
        for side, cosines in ((each.change.left, left), (each.change.right, right)):
            for place, k in enumerate(each.leading):
                index = float(cosines.diagonal()[:k].mean())
                assert side.index_matched[place] == pytest.approx(index, abs=1e-4)
                best = float(cosines[:, :k].amax(0).mean())
                assert side.best_matched[place] == pytest.approx(best, abs=1e-4)
                shared = float(cosines[:k, :k].square().sum() / k)
                assert side.overlap[place] == pytest.approx(shared, abs=1e-4)
        shift = float((S1 - S0)[:10].mean() / S0[0])
        assert each.change.value_shift[0] == pytest.approx(shift, abs=1e-6)


def left_over(folder: Path) -> dict[str, bool]:
    lines = study_status(StudyFolder(folder))
    assert "spectra" not in lines[0].left  # the base has no update
    return {line.model[:-9]: "spectra" in line.left for line in lines[1:]}


def remarks(outcome: Any) -> str | None:
    """Of the report's section; None where there is none."""
    sections = study_sections(outcome.results, outcome.findings)
    found = [" ".join(each.remarks) for each in sections if each.name == "weights"]
    return found[0] if found else None


def test_a_missing_record_is_made_again_and_nothing_else(finished: Finished) -> None:
    folder, before, times = finished.folder, records(finished.folder), written(finished.folder)
    assert not any(left_over(folder).values())
    (path,) = folder.glob(f"runs/{R4}-*/spectra.json")
    path.unlink()
    assert [name for name, left in left_over(folder).items() if left] == [R4]
    console = Printer(width=200)
    with console.capture() as shown:
        console.print(status_table(study_status(study := StudyFolder(folder)), study.read_study()))
    assert shown.get().count("spectra") == 1
    assert read_results(StudyFolder(folder)).runs[1].spectra is None
    outcome, recorder = run(finished.file, folder)
    assert kinds(recorder) == ["spectra"]
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    assert outcome.results.runs[1].spectra is not None
    assert not any(left_over(folder).values())
    after = written(folder)
    assert {name for name in after if after[name] != times[name]} == {path.parent.name}
    found, wanted = records(folder)[R4], before[R4]
    assert found.fingerprint == wanted.fingerprint
    assert list(numbers(found)) == pytest.approx(list(numbers(wanted)), abs=1e-9)
    _, recorder = run(finished.file, folder)
    assert recorder.stages == []


@pytest.mark.parametrize(
    ("setting", "leading", "draws"),
    [("analysis.top_k=5", (5,), 1), ("analysis.null_draws=0", (10, 30), 0)],
)
def test_other_settings_make_all_records_again(
    finished: Finished, setting: str, leading: tuple[int, ...], draws: int
) -> None:
    outcome, recorder = run(finished.file, finished.folder, setting)
    assert kinds(recorder) == ["spectra"]
    for record in records(finished.folder).values():
        matrix = record.matrices[0]
        assert matrix.leading == leading
        assert record.null_draws == draws
        assert (matrix.haar_null is None) == (matrix.gaussian_null is None) == (draws == 0)
    assert all(model.spectra is not None for model in outcome.results.runs)
    assert not any(left_over(finished.folder).values())


def test_weights_are_not_looked_into_unasked(original: Finished, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    outcome, recorder = run(original.file, folder, "analysis.spectra=false")
    assert "spectra" not in kinds(recorder)
    assert records(folder) == {}
    assert outcome.findings.weights == ()
    assert remarks(outcome) is None
    assert not any(left_over(folder).values())
    outcome, recorder = run(original.file, folder)  # asked later, nothing else is done
    assert kinds(recorder) == ["spectra"]
    assert len(outcome.findings.weights[0].runs) == 3
    assert remarks(outcome)


def test_a_new_rank_leaves_the_other_records_alone(finished: Finished) -> None:
    times = written(finished.folder)
    outcome, _ = run(finished.file, finished.folder, "methods.lora.ranks=[2, 3, 4]")
    after = written(finished.folder)
    assert {name: after[name] for name in times} == times
    (new,) = after.keys() - times.keys()
    assert "-r003-" in new
    assert [each.spectra is not None for each in outcome.results.runs] == [True] * 4
    (found,) = outcome.findings.weights
    assert [trend.ranks for trend in found.norm_trends[:1]] == [(2, 3, 4)]


def test_what_diverged_has_no_record_and_the_others_do(original: Finished, tmp_path: Path) -> None:
    overrides = "train.learning_rate={lora: 1e-2, full: 1e30}"
    outcome, _ = run(original.file, tmp_path / "study", overrides)
    found = records(tmp_path / "study")
    assert sorted(found) == [R2, R4]
    assert all(each.full_overlap is None for each in found[R2].matrices)  # with nothing
    assert not any(left_over(tmp_path / "study").values())
    assert [run.option.label for run in outcome.findings.weights[0].runs] == ["rank 2", "rank 4"]
    _, recorder = run(original.file, tmp_path / "study", overrides)
    assert recorder.stages == []


def test_full_fine_tuning_is_looked_into_beside_an_adapter_that_diverged(
    original: Finished, tmp_path: Path
) -> None:
    """The adapter has no weights to read; which layers it would have had, its config says."""
    overrides = "train.learning_rate={lora: 1e30, full: 1e-3}"
    run(original.file, tmp_path / "study", overrides, "methods.lora.ranks=[2]")
    (name,) = records(tmp_path / "study")
    assert name == FULL
    assert len(records(tmp_path / "study")[FULL].matrices) == 8


# models from elsewhere


def imported(original: Finished, tmp_path: Path, *entries: dict[str, str]) -> Any:
    """A study of these and of rank 2."""
    overrides = [
        f"methods.imported={json.dumps(entries)}",
        "methods.full=null",
        "methods.lora.ranks=[2]",
    ]
    return run(original.file, tmp_path / "study", *overrides)[0]


def copied(original: Finished, name: str, to: Path, scale: float, place: Any = ...) -> Path:
    """The weights of a run, with all numbers of lora_B, or one of a matrix, multiplied."""
    (weights,) = weights_folders(original.folder, name)
    shutil.copytree(weights, to)
    path = to / (WEIGHTS_FILE if weights.name == "adapter" else "model.safetensors")
    tensors = load_file(path)
    for key, tensor in tensors.items():
        if "lora_B" in key or "layers.1.self_attn.v_proj.weight" in key:
            tensor[place] *= scale
    save_file(tensors, path, metadata={"format": "pt"})
    return to


def test_an_adapter_that_is_no_plain_lora_is_noted(
    original: Finished, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    save_dora(tmp_path / "dora", tiny_model_folder)
    outcome = imported(original, tmp_path, {"adapter": str(tmp_path / "dora"), "name": "theirs"})
    mine, theirs = outcome.results.runs
    assert len(mine.spectra.matrices) == 8
    assert theirs.spectra.matrices == ()
    sentence(theirs.spectra.not_analysed, names=("use_dora",), HASH=r"(?<=-theirs-)\w+")
    (found,) = outcome.findings.weights
    assert [each.run for each in found.runs] == [mine.name]
    assert found.not_analysed == {theirs.name: theirs.spectra.not_analysed}
    assert not any(left_over(tmp_path / "study").values())
    assert theirs.spectra.not_analysed in (remarks(outcome) or "")


def test_an_adapter_that_does_nothing_has_zeros(original: Finished, tmp_path: Path) -> None:
    zero = copied(original, R4, tmp_path / "zero", 0.0)
    outcome = imported(original, tmp_path, {"adapter": str(zero)})
    matrices: tuple[MatrixSpectrum, ...] = outcome.results.runs[1].spectra.matrices
    assert len(matrices) == 8
    for each in matrices:
        assert each.update.rank == 4
        assert each.update.frobenius_norm == each.update.effective_rank == 0.0
        assert set(each.change.left.index_matched) == {1.0}
        assert each.haar_null is None
    run_ = outcome.findings.weights[0].runs[1]
    assert (run_.frobenius_norm, run_.similarity.observed, run_.intruders.haar) == (0.0, 1.0, None)


@pytest.mark.parametrize("kind", ["adapter", "checkpoint"])
def test_weights_that_are_not_finite_are_said_to_have_diverged(
    original: Finished, tmp_path: Path, kind: str, sentence: Sentences
) -> None:
    source, place = (R4, ...) if kind == "adapter" else (FULL, (2, 3))
    bad = copied(original, source, tmp_path / "bad", math.nan, place)
    outcome = imported(original, tmp_path, {kind: str(bad)})
    mine, theirs = outcome.results.runs
    assert theirs.run.status == "diverged"
    assert "v_proj" in theirs.run.message or "lora_B" in theirs.run.message
    sentence(theirs.run.message, names=(bad,))
    assert theirs.evaluations == {}
    assert theirs.spectra is None
    assert len(mine.spectra.matrices) == 8
    assert [each.name for each in outcome.findings.signatures if each.name == "diverged"]
    assert not any(left_over(tmp_path / "study").values())


@pytest.mark.parametrize(
    ("name", "named"), [(R4, "self_attn.k_proj"), (FULL, "self_attn.v_proj")], ids=["LoRA", "full"]
)
def test_weights_that_are_spoilt_later_are_named_and_the_others_analysed(
    finished: Finished, name: str, named: str, sentence: Sentences
) -> None:
    (weights,) = weights_folders(finished.folder, name)
    copied(Finished(finished.file, finished.folder), name, finished.folder / name, math.nan)
    shutil.rmtree(weights)
    (finished.folder / name).rename(weights)
    (weights.parent / "spectra.json").unlink()
    weights_as_they_are(StudyFolder(finished.folder), weights.parent.name)
    for _ in range(2):  # nothing was written that would be believed
        outcome, _ = run(finished.file, finished.folder)
        failed = {failure.kind: failure for failure in outcome.failures}["spectra"]
        assert failed.error == "ModelError"
        sentence(failed.message, names=(named,))
        assert not (weights.parent / "spectra.json").exists()


def test_a_base_that_is_stored_quantised_has_no_weights_to_look_into(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in finished.folder.glob("runs/*/spectra.json"):
        path.unlink()
    monkeypatch.setattr(engine_weights, "is_stored_quantised", lambda _: True)
    outcome, recorder = run(finished.file, finished.folder)
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    for model in outcome.results.runs:
        assert model.spectra is not None
        assert model.spectra.matrices == ()
        assert "stored quantised" in (model.spectra.not_analysed or "")


def test_full_fine_tuning_is_looked_into_where_any_adapter_is(finished: Finished) -> None:
    """Also where the adapters' own records are there already, and targets are a pattern."""
    (path,) = (p for p in finished.folder.glob("runs/*/spectra.json") if FULL in p.parent.name)
    before = read_record(path, SpectraRecord)
    path.unlink()
    for config in finished.folder.glob("runs/*/adapter/adapter_config.json"):
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"target_modules": r".*self_attn\.[qkvo]_proj"}))
        weights_as_they_are(StudyFolder(finished.folder), config.parents[1].name)
    run(finished.file, finished.folder)
    after = read_record(path, SpectraRecord)
    assert [m.module for m in after.matrices] == [m.module for m in before.matrices]


def test_a_full_fine_tuning_that_comes_later_is_compared_with(finished: Finished) -> None:
    """As after one that failed: the adapters were analysed without it, and are again."""
    folder = StudyFolder(finished.folder)
    runs = folder.read_study().runs
    (full,) = (run for run in runs if run.method == "full")
    expected: dict[str, SpectraRecord] = {}
    for run_ in runs:
        path = AnalyseWeights.path(folder, run_.name)
        record = read_record(path, SpectraRecord)
        expected[run_.name] = record
        alone = [matrix.model_copy(update={"full_overlap": None}) for matrix in record.matrices]
        folder.write(path, record.model_copy(update={"matrices": tuple(alone)}))
    AnalyseWeights.path(folder, full.name).unlink()
    run(finished.file, finished.folder)
    for name, record in expected.items():
        found = read_record(AnalyseWeights.path(folder, name), SpectraRecord)
        assert found.matrices == record.matrices
        assert name == full.name or all(each.full_overlap is not None for each in found.matrices)
