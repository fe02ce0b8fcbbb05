"""A study of LoRA and its variants: planned, trained, scored, resumed, and on the page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
from transformers import AutoModelForCausalLM

from rankwise.cli.terminal import pass_lines
from rankwise.engine.models import variants as variant_table
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE, AdapterFolder
from rankwise.engine.models.structure import adaptable_shapes, model_skeleton, target_shapes
from rankwise.engine.training.memory import AdapterSize
from rankwise.errors import ConfigError
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.study.growing import Extension, extended
from rankwise.study.planning.passes import size_of
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.file_events import FileEvent, file_events
from tests.support.killed_studies import run_until_path, started
from tests.support.observers import Recorder, Silent
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  epochs: 2
  learning_rate: {lora: 1e-2}
  precision: float32
methods:
  lora: {ranks: [2, 4, 8]}
  variants: {names: [dora, vera, pissa]}
  full: null
evaluation: {held_out_text: []}
analysis: {spectra: false, heads: false}
"""


class Finished(NamedTuple):
    file: Path
    model: Path
    folder: StudyFolder
    results: StudyResults
    findings: Any
    recommendation: Any
    recorder: Recorder

    @property
    def study(self) -> StudyRecord:
        return self.results.study

    def variant(self, name: str) -> PlannedRun:
        return next(run for run in self.study.of_role("variant") if run.variant == name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("variants")
    file = write_study(root, tiny_model_folder, SETTINGS)
    outcome, recorder = run(file, root / "study", "evaluation.retention=[sums]")
    return Finished(
        file,
        tiny_model_folder,
        StudyFolder(root / "study"),
        outcome.results,
        outcome.findings,
        outcome.recommendation,
        recorder,
    )


def planned(file: Path, *overrides: str) -> StudyRecord:
    return plan_study(load_config(file, overrides)).record


def test_variants_share_lora_s_pass_or_are_trained_alone(
    finished: Finished, sentence: Sentences
) -> None:
    """Beside LoRA's middle rank. PiSSA is LoRA that begins elsewhere."""
    assert [run.variant for run in finished.study.of_role("variant")] == ["dora", "vera", "pissa"]
    assert [(run.rank, run.beside_ranks) for run in finished.study.of_role("variant")] == [
        (4, (4,)),
        (4, (4,)),
        (4, (4,)),
    ]
    together = [planned.runs for planned in finished.study.passes]
    assert together == [
        (*(run.name for run in finished.study.runs), finished.variant("pissa").name),
        (finished.variant("dora").name,),
        (finished.variant("vera").name,),
    ]
    first, second = pass_lines(finished.study)
    sentence(
        f"{first}\n{second}",
        names=("pass 1: ", "passes 2 to 3: "),
        SIZE=r"(?<=~)[\d.]+ [MG]iB",
    )


def test_a_residual_initialisation_counts_twice_the_rank(finished: Finished) -> None:
    pissa = finished.variant("pissa")
    num = pissa.num_trainable_parameters
    assert size_of(pissa) == AdapterSize(8, num, num_frozen=num)
    assert size_of(finished.study.runs[1]) == AdapterSize(4, num)


def test_everything_is_trained_and_scored_and_the_verdict_knows_lora_only(
    finished: Finished,
) -> None:
    assert {model.name for model in finished.results.of_role("variant")} == {
        run.name for run in finished.study.of_role("variant")
    }
    for model in finished.results.of_role("variant"):
        assert model.run is not None
        assert model.run.status == "trained"
        assert not model.run.update_is_zero
        assert model.run.num_steps == finished.study.runs[0].num_steps
        assert model.items.keys() == finished.results.runs[0].items.keys()
    (verdict,) = finished.recommendation.by_train_task
    assert {each.rank for each in verdict.verdicts} == {2, 4, 8}
    assert {each.label for each in verdict.verdicts} == {"rank 2", "rank 4", "rank 8"}


def test_what_is_saved_is_plain_lora_where_it_can_be(finished: Finished) -> None:
    pissa = finished.folder.weights(finished.variant("pissa"))
    assert {len(A) for A, _, _ in AdapterFolder(pissa).factors.values()} == {2 * 4}
    for name in ("dora", "vera", "pissa"):
        base: Any = AutoModelForCausalLM.from_pretrained(finished.model)
        peft.PeftModel.from_pretrained(base, str(finished.folder.weights(finished.variant(name))))


def test_the_page_has_each_variant_beside_lora(finished: Finished) -> None:
    (found,) = finished.findings.variants
    assert [row.label for row in found.rows] == ["rank 4, DoRA", "rank 4, VeRA", "rank 4, PiSSA"]
    shapes = target_shapes(
        adaptable_shapes(model_skeleton(finished.model)),
        finished.variant("dora").target_modules,
    ).values()
    outputs = sum(shape.out_features for shape in shapes)
    assert [row.num_parameters for row in found.rows] == [
        4 * sum(map(sum, shapes)) + outputs,
        4 * len(shapes) + outputs,
        4 * sum(map(sum, shapes)),
    ]
    (lora,) = (m for m in finished.results.runs if m.run and m.run.planned.rank == 4)
    for row, model in zip(found.rows, finished.results.of_role("variant"), strict=True):
        assert row.against == "rank 4"
        own, its = model.items["colours"].values, lora.items["colours"].values
        mean = 100 * sum(a - b for a, b in zip(own, its, strict=True)) / len(own)
        assert row.lead is not None
        assert row.lead.estimate == pytest.approx(mean, abs=1e-9)
    from rankwise.report.page import write_report

    page = write_report(
        finished.folder.root, finished.results, finished.recommendation, finished.findings
    ).read_text(encoding="utf-8")
    assert all(row.label in page for row in found.rows)
    (gauged,) = finished.findings.gauges
    kinds = {model.label: model.kind for model in gauged.models if model.kind == "variant"}
    assert [*kinds] == [row.label for row in found.rows]


def test_running_again_does_nothing(finished: Finished) -> None:
    _, recorder = run(finished.file, finished.folder.root, "evaluation.retention=[sums]")
    assert recorder.stages == []


@pytest.mark.parametrize("name", ["dora", "vera", "pissa"])
def test_killed_while_a_variant_trains_it_resumes(
    tmp_path: Path, tiny_model_folder: Path, name: str
) -> None:
    """It goes on from the saved state, and the weights are those of one that never stopped."""
    settings = SETTINGS.replace("precision: float32", "precision: float32\n  save_every: 0.001s")
    file = write_study(tmp_path, tiny_model_folder, settings)
    whole, events = tmp_path / "whole", list[FileEvent]()
    with file_events(whole, before=events.append):
        run_study(plan_study(load_config(file)), StudyFolder(whole), Silent())
    parts = (f"-{name}-", "training.pt")
    count = sum(all(part in each.path for part in parts) for each in events) // 2
    root = tmp_path / "killed"  # before the second of two states is written
    process = started(run_until_path, file, root, parts, count)
    process.join()
    assert process.exitcode != 0
    assert any(f"-{name}-" in path.parent.name for path in root.rglob("training.pt"))
    outcome = run_study(plan_study(load_config(file)), StudyFolder(root), Silent())
    expected = StudyFolder(whole)
    assert len(outcome.results.of_role("variant")) == 3
    for model in outcome.results.of_role("variant"):
        theirs = expected.model_folder(model.name) / "adapter" / WEIGHTS_FILE
        ours = StudyFolder(root).model_folder(model.name) / "adapter" / WEIGHTS_FILE
        assert ours.read_bytes() == theirs.read_bytes()
    assert json.loads((root / "findings.json").read_text())["variants"][0]["rows"]


def test_as_many_weights_and_rates_of_their_own(finished: Finished) -> None:
    study = planned(
        finished.file,
        "methods.variants={names: [rslora, lora_fa], ranks: 8, match: parameters, "
        "learning_rate: [1e-3, 1e-2]}",
    )
    assert [(run.variant, run.rank, run.learning_rate) for run in study.of_role("variant")] == [
        ("rslora", 8, 1e-3),
        ("rslora", 8, 1e-2),
        ("lora_fa", 16, 1e-3),  # 8 * (48 + 48 + ...) over the outputs alone
        ("lora_fa", 16, 1e-2),
    ]
    rslora = study.of_role("variant")[0]
    assert rslora.alpha == 16
    assert rslora.scaling == pytest.approx(16 / 8**0.5)
    (lora,) = (run for run in study.runs if run.rank == 8)
    assert lora.num_trainable_parameters == rslora.num_trainable_parameters


def test_pairs_of_settings_stay_together(finished: Finished) -> None:
    """Each variant has the settings of a LoRA run at its rank, and of no other."""
    pairs = (
        "{rank: 2, alpha: {policy: fixed, alpha: 16}, learning_rate: 4e-4}, "
        "{rank: 8, alpha: {policy: fixed, alpha: 128}, learning_rate: 1e-4}"
    )
    for ranks, expected in (
        ("[]", [(2, 16, 4e-4)]),
        ("[8]", [(8, 128, 1e-4)]),
        ("[8, 2]", [(2, 16, 4e-4), (8, 128, 1e-4)]),
    ):
        study = planned(
            finished.file,
            f"methods={{lora: {{_: [{pairs}]}}, variants: {{names: dora, ranks: {ranks}}}}}",
            "train.learning_rate={full: 1e-4}",
        )
        found = [(run.rank, run.alpha, run.learning_rate) for run in study.of_role("variant")]
        assert found == expected
        assert {*found} <= {(run.rank, run.alpha, run.learning_rate) for run in study.runs}


def test_what_comes_to_one_training_is_beside_every_rank(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VeRA would need more than the largest rank for LoRA's weights."""
    monkeypatch.setattr(variant_table, "MOST_RANK", 64)
    study = planned(
        finished.file,
        "methods.variants={names: [lora_fa, vera], ranks: [4, 8], match: parameters}",
    )
    assert [(run.variant, run.rank, run.beside_ranks) for run in study.of_role("variant")] == [
        ("lora_fa", 8, (4,)),
        ("lora_fa", 16, (8,)),
        ("vera", 64, (4, 8)),
    ]


def test_more_ranks_leave_the_variants_beside_theirs(finished: Finished) -> None:
    config = load_config(finished.file)
    assert config.methods.variant_ranks == (4,)
    longer = extended(config, Extension(ranks=(16, 32)))
    assert longer.methods.lora is not None
    assert longer.methods.lora.ranks == (2, 4, 8, 16, 32)
    assert longer.methods.variant_ranks == (4,)


def test_the_same_initialisation_at_several_rates_is_made_once(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    """EVA reads for each seed, and the findings say where its directions are taken as they are."""
    asked: list[int] = []
    row = variant_table.VARIANTS["eva"]
    assert row.initialise is not None
    initialise = row.initialise

    def counted(base: Any, adapter: Any, examples: Any) -> variant_table.Initialisation:
        asked.append(adapter.seed)
        return initialise(base, adapter, examples)

    monkeypatch.setitem(variant_table.VARIANTS, "eva", replace(row, initialise=counted))  # pyright: ignore[reportArgumentType]
    outcome, _ = run(
        finished.file,
        tmp_path / "study",
        "methods.variants={names: [eva, rslora], learning_rate: [1e-3, 1e-2]}",
        "methods.lora.ranks=[4]",
        "seeds=[0, 1]",
        "evaluation.retention=[]",
    )
    assert asked == [0, 1]
    study = outcome.results.study
    assert len(study.passes) == 1
    assert len(outcome.results.of_role("variant")) == 8
    eva = [
        model.run
        for model in outcome.results.of_role("variant")
        if model.run.planned.variant == "eva"
    ]  # pyright: ignore[reportOptionalMemberAccess]
    assert [each.update_is_zero for each in eva if each is not None] == [False] * 4
    # the few rows are read as one part, after which nothing is known to stay
    assert [each.unsettled_share for each in eva if each is not None] == [1.0] * 4
    (found,) = outcome.findings.variants
    shares = {(row.variant, row.unsettled_share) for row in found.rows}
    assert shares == {("EVA", 1.0), ("rsLoRA", None)}
    sentence(found.statements, names=("EVA", "100 %"), part=True)


def test_a_run_of_lora_has_the_fingerprint_that_it_has_without_variants(
    finished: Finished,
) -> None:
    without = planned(finished.file, "methods.variants=null", "evaluation.retention=[sums]")
    assert [run.fingerprint for run in without.runs] == [
        run.fingerprint for run in finished.study.runs
    ]
    assert without.of_role("variant") == ()
    assert (
        len({run.fingerprint for run in (*finished.study.runs, *finished.study.of_role("variant"))})
        == 6
    )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.dropout=0.1", "dropout"),
        ("train.base_precision=4bit", "quantised"),
        ("train.learning_rate.tune=true", "search"),
        ("methods={lora: null, variants: {names: dora}}", "LoRA"),
        ("methods.variants.names=[lokr]", "lokr"),
        ("methods.variants.ranks=[0]", "0"),
        ("methods.variants.ranks=[4, 16]", "2, 4, 8"),
        (
            "methods={lora: {alpha: [{ratio: 2}, {policy: rslora, alpha: 16}]}, "
            "variants: {names: [dora, rslora]}}",
            "rslora",
        ),
    ],
    ids=["dropout", "4bit", "search", "no LoRA", "no variant", "rank 0", "rank 16", "rslora"],
)
def test_what_variants_do_not_go_with(
    finished: Finished, override: str, named: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, [override])
    sentence(caught.value, names=("methods", "variants", named))
