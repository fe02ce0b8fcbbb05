"""Arms against forgetting in a study: planned, trained beside each other, scored, and reported."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rankwise.engine.models import own_texts
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.own_texts import NUM_TOKENS
from rankwise.errors import ConfigError, PlanError
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.findings.signatures.found import failure_signatures
from rankwise.records.folder import StudyFolder
from rankwise.records.own_texts import OwnTexts
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, RunRecord, StudyRecord
from rankwise.records.study_file import load_config
from rankwise.report.page import write_report
from rankwise.study.conclusion import conclude
from rankwise.study.planning.plan import plan_study
from rankwise.weights.lowrank import read_updates
from tests.planted.results import planted_study
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  epochs: 2
  learning_rate: {lora: 1e-2}
  precision: float32
methods: {lora: {ranks: [4]}, full: null}
mitigations:
  - {learning_rate_factor: 0.3}
  - {alpha_factor: 0.5}
  - {kl: {share: 0.4}}
  - {kl: {at: prompts}, name: hold the prompts}
  - {replay: {share: 0.2, rows: {task: sums}}}
  - {weight_decay: 10}
evaluation: {retention: [hues], num_train_items: 0}
analysis: {spectra: false, heads: false}
"""


class Finished(NamedTuple):
    file: Path
    folder: StudyFolder
    study: StudyRecord
    results: StudyResults

    def arm(self, label: str) -> PlannedRun:
        (found,) = (
            m
            for m in self.study.of_role("mitigated")
            if m.mitigation and m.mitigation.label == label
        )
        return found

    def record(self, model: PlannedRun) -> RunRecord:
        record = self.folder.finished_run(model)
        assert record is not None
        return record


@pytest.fixture(scope="module", autouse=True)
def _few_texts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_texts, "NUM_TEXTS", 5)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Finished:
    root = tmp_path_factory.mktemp("mitigated")
    file = write_study(root, tiny_model_folder, SETTINGS)
    outcome, _ = run(file, root / "study")
    folder = StudyFolder(root / "study")
    return Finished(file, folder, folder.read_study(), outcome.results)


def test_each_arm_is_one_more_run_changed_as_it_says(finished: Finished) -> None:
    (source,) = finished.study.runs
    assert [m.mitigation.label for m in finished.study.of_role("mitigated") if m.mitigation] == [
        "rate × 0.3",
        "alpha × 0.5",
        "KL on own texts",
        "hold the prompts",
        "20 % sums",
        "weight decay 10",
    ]
    assert all(model.of == source.training for model in finished.study.of_role("mitigated"))
    assert finished.arm("rate × 0.3").learning_rate == pytest.approx(3e-3)
    halved = finished.arm("alpha × 0.5")
    assert (halved.alpha, halved.scaling) == (4.0, 1.0)
    config = json.loads((finished.folder.weights(halved) / "adapter_config.json").read_text())
    assert config["lora_alpha"] == 4.0
    assert len(finished.results.of_role("mitigated")) == 6
    assert {*finished.results.of_role("mitigated")[0].items} == {*finished.results.runs[0].items}


def test_arms_read_what_they_say_besides(finished: Finished) -> None:
    (source,) = finished.study.runs
    plain = finished.record(source)
    texts = finished.record(finished.arm("KL on own texts"))
    # 40 % of the rows: two for every three of the task's
    num_texts = round(source.num_examples * 2 * 0.4 / 0.6)
    assert texts.num_tokens == plain.num_tokens + num_texts * NUM_TOKENS
    assert texts.num_tokens == finished.arm("KL on own texts").num_tokens
    assert texts.num_loss_tokens == plain.num_loss_tokens
    replayed = finished.record(finished.arm("20 % sums"))
    assert replayed.num_loss_tokens > plain.num_loss_tokens
    assert finished.record(finished.arm("hold the prompts")).num_tokens == plain.num_tokens


def test_the_penalty_is_in_the_metrics(finished: Finished) -> None:
    for label, has_kl in {
        "KL on own texts": True,
        "hold the prompts": True,
        "20 % sums": False,
    }.items():
        path = finished.folder.metrics_file(finished.arm(label).name)
        kls = [json.loads(line)["kl_nats"] for line in path.read_text().splitlines()]
        assert all((kl is not None) == has_kl for kl in kls)
        if has_kl:
            assert kls[0] == 0.0
            assert kls[-1] > 0.0


def test_an_arm_changes_no_other(finished: Finished, tmp_path: Path) -> None:
    """The run and an arm are what they are without the other arms, but for rounding."""
    outcome, _ = run(finished.file, tmp_path / "alone", "mitigations=[{weight_decay: 10}]")
    alone = StudyFolder(tmp_path / "alone")
    (arm,) = alone.read_study().of_role("mitigated")
    expected = finished.arm("weight decay 10")
    assert arm.fingerprint == expected.fingerprint
    assert arm.name == expected.name
    assert len(outcome.results.of_role("mitigated")) == 1
    for folder, model in ((alone, arm), (alone, alone.read_study().runs[0])):
        ours, theirs = (
            read_updates(AdapterFolder(each.weights(model))) for each in (folder, finished.folder)
        )
        for name, update in ours.items():
            other = theirs[name]
            torch.testing.assert_close(update.lora_A, other.lora_A, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(update.lora_B, other.lora_B, rtol=1e-5, atol=1e-7)


def test_own_texts_are_written_once_and_kept(finished: Finished) -> None:
    record = finished.folder.read(finished.folder.own_texts_file, OwnTexts)
    assert len(record.tokens) == len(record.texts) == 5
    assert {len(tokens) for tokens in record.tokens} == {NUM_TOKENS}
    before = finished.folder.own_texts_file.stat().st_mtime_ns
    run(finished.file, finished.folder.root)
    assert finished.folder.own_texts_file.stat().st_mtime_ns == before


def test_the_report_shows_them(finished: Finished) -> None:
    outcome = conclude(finished.folder)
    write_report(finished.folder.root, outcome.results, outcome.recommendation, outcome.findings)
    assert "hold the prompts" in finished.folder.report_file.read_text()
    assert (finished.folder.root / "report" / "mitigations.csv").exists()


@pytest.mark.parametrize(
    ("arm", "named"),
    [
        ("{replay: {rows: {task: suns}}}", "'sums'"),
        ("{kl: {at: rows, rows: {task: colours}}}", "'colours'"),
        ("{replay: {rows: {data: nowhere.jsonl}}}", "nowhere.jsonl"),
    ],
    ids=["no task", "a trained task", "no file"],
)
def test_rows_that_cannot_be_had_are_problems(
    finished: Finished, arm: str, named: str, sentence: Sentences
) -> None:
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(finished.file, [f"mitigations=[{arm}]"]))
    sentence(caught.value, names=("mitigations[0]", named))


@pytest.mark.parametrize("arms", ["", "{weight_decay: 10}"])
def test_the_arm_that_negative_transfer_advises_can_be_planned(study_file: Path, arms: str) -> None:
    """Alone, and beside the arms that are there."""
    kept = "evaluation.retention=[hues]"
    there = plan_study(load_config(study_file, [kept, f"mitigations=[{arms}]"]))
    assert there.record.replayable == ("sums",)
    lost = planted_study({4: 0.6}, {}, {4: 0.3}, {}, noise=0.0)
    told = {"replayable": ("syllogism",), "config": there.record.config}
    lost = lost.model_copy(update={"study": lost.study.model_copy(update=told)})
    (source,) = option_gains(lost)
    (part,) = recommend(lost).by_train_task
    found = [each for each in failure_signatures(source, part) if each.name == "negative_transfer"]
    advised, _ = re.findall(r"`(.+?)`", found[0].advice.replace("syllogism", "sums"))
    override = f"mitigations=[{arms}{', ' * bool(arms)}{advised}]"
    plan = plan_study(load_config(study_file, [kept, override]))
    labels = {run.mitigation.label for run in plan.record.of_role("mitigated") if run.mitigation}
    assert labels == {"20 % sums", *(["weight decay 10"] if arms else [])}


def test_what_is_not_scored_out_of_domain_is_not_replayed(study_file: Path) -> None:
    none = plan_study(load_config(study_file, ["evaluation.out_of_domain=[]"]))
    assert none.record.replayable == ()


def test_rows_with_scored_items_are_refused(
    finished: Finished, tmp_path: Path, sentence: Sentences
) -> None:
    plan = plan_study(load_config(finished.file, []))
    instance = plan.tasks["hues"].instances[0]
    row = {"prompt": str(instance.arguments[0]), "completion": str(instance.arguments[1])}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    arm = f"{{replay: {{rows: {{data: {tmp_path / 'rows.jsonl'}}}}}}}"
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(finished.file, [f"mitigations=[{arm}]"]))
    sentence(caught.value, "scored", names=("mitigations[0]", "hues"))
    dropped = [f"mitigations=[{arm}]", "train.drop_overlapping=true"]
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(finished.file, dropped))
    sentence(caught.value, "dropped")


@pytest.mark.parametrize(
    ("arm", "names"),
    [
        ("{}", ("mitigations[0]",)),
        ("{kl: {at: rows}}", ("mitigations[0].kl", "rows")),
        ("{kl: {mask_target: true}}", ("mitigations[0].kl", "mask_target", "completions")),
        ("{replay: {share: 1}}", ("mitigations[0].replay.share",)),
        ("{replay: {rows: {task: a, data: b}}}", ("mitigations[0].replay.rows", "task", "data")),
        ("{alpha_factor: 0.3}, {weight_decay: 1, name: alpha × 0.3}", ("alpha × 0.3",)),
        ("{kl: {at: prompts, share: 0.5}}", ("mitigations[0].kl", "share")),
        ("{replay: {rows: {data: b, split: test}}}", ("mitigations[0].replay.rows",)),
    ],
    ids=["nothing", "no rows", "mask", "share", "two", "one name", "prompts", "split"],
)
def test_arms_that_make_no_sense_are_refused(
    finished: Finished, arm: str, names: tuple[str, ...], sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, [f"mitigations=[{arm}]"])
    sentence(caught.value, names=names)


def test_a_study_without_arms_has_its_old_fingerprint(finished: Finished) -> None:
    """Nothing that was trained before there were arms is trained again."""
    plain = plan_study(load_config(finished.file, ["mitigations=[]"])).record
    assert [r.fingerprint for r in plain.runs] == [r.fingerprint for r in finished.study.runs]
    assert plain.of_role("mitigated") == ()
    assert plain.fingerprint != finished.study.fingerprint


@pytest.mark.parametrize(
    "setting",
    ["evaluation.retention=[]", "train.loss_on=all", "methods={lora: null}"],
    ids=["no retention", "loss on all", "no LoRA"],
)
def test_what_does_not_go_with_arms_is_refused(
    finished: Finished, setting: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, [setting])
    sentence(caught.value, names=("mitigations",))


def test_an_early_stop_and_arms_are_not_combined(finished: Finished, sentence: Sentences) -> None:
    stop = ["train.score_checkpoints=[0.5]", "train.stop={retention_loss: 1}"]
    with pytest.raises(ConfigError) as caught:
        load_config(finished.file, stop)
    sentence(caught.value, names=("mitigations",))


def test_rows_of_a_task_are_the_same_whatever_other_arms_there_are(finished: Finished) -> None:
    more = load_config(
        finished.file,
        ["mitigations=[{replay: {share: 0.2, rows: {task: sums}}}, {replay: {share: 0.9}}]"],
    )
    first, _ = plan_study(more).record.of_role("mitigated")
    assert first.fingerprint == finished.arm("20 % sums").fingerprint


def test_a_file_of_rows_is_found_beside_the_study_file(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = finished.file.parent / "mine.jsonl"
    rows.write_text(json.dumps({"prompt": "Two and two?", "completion": " Four."}) + "\n")
    monkeypatch.chdir(tmp_path)
    arm = "mitigations=[{replay: {rows: {data: mine.jsonl}}}]"
    (model,) = plan_study(load_config(finished.file, [arm])).record.of_role("mitigated")
    moved = finished.file.parent / "moved.jsonl"
    rows.rename(moved)
    (again,) = plan_study(
        load_config(finished.file, [arm.replace("mine", "moved")])
    ).record.of_role("mitigated")
    assert model.fingerprint == again.fingerprint  # the content counts, not the place
