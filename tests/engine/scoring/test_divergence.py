"""Divergence from full fine-tuning: by hand, on tiny models, and in a study that is resumed."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.scoring.divergence import divergences, item_divergence, log_probabilities
from rankwise.records import fingerprints
from rankwise.records.config.study import BaseModelConfig
from rankwise.records.files import read_record
from rankwise.records.folder import BASE, StudyFolder
from rankwise.records.results import Divergence
from rankwise.records.study import PlannedRun
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import StudyPlan, plan_study
from rankwise.study.reading import read_results
from rankwise.study.run import run_study
from rankwise.study.stages.divergence import CompareDistributions
from rankwise.study.stages.graph import stages
from rankwise.study.status import study_status
from rankwise.tasks import right_answers as right_answers_module
from rankwise.tasks.questions import RightAnswer
from rankwise.tasks.right_answers import MOST_TOKENS, TEXT_TOKENS, right_answers, text_ends
from tests.planted import results as planted_results
from tests.support.observers import Recorder
from tests.support.records import change
from tests.support.studies import run

SETTINGS: dict[str, Any] = {"max_batch_tokens": 40}


def answer(context: list[int], continuation: list[int]) -> RightAnswer:
    return RightAnswer("colours", 0, tuple(context), tuple(continuation))


def tiny_model(folder: Path, shift: float = 0.0) -> Any:
    model: Any = load_frozen(folder, "float32", torch.device("cpu"))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(shift * torch.randn_like(parameter))
    return model


def test_the_divergence_of_two_distributions_by_hand() -> None:
    full = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]).log()
    lora = torch.tensor([[0.2, 0.5, 0.3], [0.8, 0.1, 0.1]]).log()
    found = item_divergence(full, lora, torch.tensor([1, 0]))
    first = 0.5 * math.log(0.5 / 0.2) + 0.25 * (math.log(0.25 / 0.5) + math.log(0.25 / 0.3))
    assert found.kl_nats == pytest.approx((first + 0.0) / 2, rel=1e-6)
    assert found.top1_agreement == 0.5
    assert found.rise_nats == pytest.approx((math.log(0.25 / 0.5) + math.log(0.8 / 0.8)) / 2)
    logits = torch.tensor([[1.0, 2.0, 0.0]])
    other = torch.tensor([[0.0, 2.0, 1.0]])
    p = [math.exp(x) / (math.e + math.e**2 + 1) for x in (1, 2, 0)]
    kl = item_divergence(logits.log_softmax(-1), other.log_softmax(-1), torch.tensor([0])).kl_nats
    assert kl == pytest.approx(p[0] * 1.0 + p[2] * -1.0, rel=1e-5)  # equal normalisers cancel


def test_a_model_does_not_diverge_from_itself(tiny_model_folder: Path) -> None:
    model = tiny_model(tiny_model_folder)
    answers = [answer([5, 6, 7], [8, 9]), answer([5], [3]), answer(list(range(10, 30)), [1, 2, 3])]
    expected = log_probabilities(model, answers, **SETTINGS)
    assert [len(each) for each in expected] == [2, 1, 3]
    assert all(each.dtype == torch.float32 for each in expected)
    found = divergences(model, answers, expected, **SETTINGS)
    assert [each.kl_nats for each in found] == [0.0, 0.0, 0.0]
    assert [each.top1_agreement for each in found] == [1.0, 1.0, 1.0]
    assert [each.rise_nats for each in found] == [0.0, 0.0, 0.0]


def test_steps_and_shared_prefixes_change_nothing(tiny_model_folder: Path) -> None:
    full, lora = tiny_model(tiny_model_folder, 0.1), tiny_model(tiny_model_folder)
    answers = [
        answer([5, 6, 7], [8, 9]),
        answer([5], [3]),
        answer(list(range(10, 60)), [1, 2, 3]),
        answer([9, 9, 4], [8]),
        answer(list(range(10, 60)), [1, 2, 8, 5]),  # begins as the third, and ends otherwise
        answer(list(range(10, 20)), list(range(20, 60))),  # is longer than a step
    ]
    read: list[int] = []
    expected = log_probabilities(full, answers, **SETTINGS, advance=read.append)
    found = divergences(lora, answers, expected, **SETTINGS, advance=read.append)
    prefixes = {
        each.tokens_read[:end] for each in answers for end in range(1, len(each.tokens_read) + 1)
    }
    assert sum(read) == 2 * len(prefixes)
    assert len(prefixes) < sum(len(each.tokens_read) for each in answers) / 2
    assert max(read) <= SETTINGS["max_batch_tokens"]
    for each, result in zip(answers, found, strict=True):
        tokens = torch.tensor([each.tokens_read])
        kept = len(each.continuation)
        with torch.no_grad():
            p, q = (m(tokens).logits[0, -kept:].double().log_softmax(-1) for m in (full, lora))
        by_hand = (p.exp() * (p - q)).sum(-1).mean()
        assert by_hand > 0.01
        assert result.kl_nats == pytest.approx(float(by_hand), rel=1e-4)
        written = torch.tensor(each.continuation)[:, None]
        rise = (p - q).gather(-1, written).mean()
        assert result.rise_nats == pytest.approx(float(rise), rel=1e-4)
        same = (p.argmax(-1) == q.argmax(-1)).double().mean()
        assert result.top1_agreement == pytest.approx(float(same))


# which words are compared


@pytest.fixture
def plan(study_file: Path) -> StudyPlan:
    return plan_study(load_config(study_file, ["analysis.divergence=true"]))


def test_the_right_option_is_read_as_it_is_scored(plan: StudyPlan) -> None:
    answers = plan.inputs["divergence"]["colours"]
    assert [each.doc_id for each in answers] == list(range(26))
    assert all(each.task == "colours" for each in answers)
    prepared = plan.tasks["colours"]
    for each in answers:
        doc = next(i.doc for i in prepared.instances if i.doc_id == each.doc_id)
        assert plan.tokenizer.decode(each.context).endswith("Answer:")
        assert doc["question"] in plan.tokenizer.decode(each.context)
        assert plan.tokenizer.decode(each.continuation).strip() == doc["choices"][doc["label"]]
    assert answers[0].tokens_read == (answers[0].context + answers[0].continuation)[:-1]


def test_targets_and_texts(plan: StudyPlan) -> None:
    size = len(plan.tokenizer)
    sums = right_answers([plan.tasks["sums"]], plan.tokenizer, size)
    assert plan.tokenizer.decode(sums[0].context).endswith("4 plus 0?\nAnswer:")
    assert plan.tokenizer.decode(sums[0].continuation) == " 4"
    prose = right_answers([plan.tasks["small_prose"]], plan.tokenizer, size)
    assert {len(each.continuation) for each in prose} == {MOST_TOKENS}
    assert len(prose) == 10
    text = plan.tasks["small_prose"].instances[0].doc["text"]
    assert text.startswith(plan.tokenizer.decode(prose[0].continuation))


def test_the_end_of_a_text_is_compared_after_what_comes_before_it(plan: StudyPlan) -> None:
    size, prose = len(plan.tokenizer), plan.tasks["small_prose"]
    ends = text_ends([prose], plan.tokenizer, size, 100)
    assert len(ends) == len(right_answers([prose], plan.tokenizer, size)) == 10
    for each in ends:
        text = next(i.doc["text"] for i in prose.instances if i.doc_id == each.doc_id)
        whole = plan.tokenizer.encode(text)[: TEXT_TOKENS - 1]  # after the beginning of text
        assert [*each.context[1:], *each.continuation] == whole
        assert len(each.continuation) == MOST_TOKENS
    assert {
        len(each.continuation) for each in text_ends([prose], plan.tokenizer, 1_000_000, 100)
    } == {6}
    assert text_ends([prose], plan.tokenizer, size, 3) == ends[:3]


def test_tasks_take_turns_and_the_same_question_is_asked_once(
    plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(right_answers_module, "MOST_ITEMS", 5)
    tasks = [plan.tasks["colours"], plan.tasks["sums"], plan.tasks["colours"]]
    found = right_answers(tasks, plan.tokenizer, len(plan.tokenizer))
    places = [(each.task, each.doc_id) for each in found]
    assert places == [("colours", 0), ("sums", 0), ("colours", 1), ("sums", 1), ("colours", 2)]


def test_an_item_without_a_right_answer_is_passed_over(plan: StudyPlan) -> None:
    prepared = plan.tasks["colours"]
    doc = next(i.doc for i in prepared.instances if i.doc_id == 1)
    doc["label"] = -1
    found = right_answers([prepared], plan.tokenizer, len(plan.tokenizer))
    assert [each.doc_id for each in found][:3] == [0, 2, 3]


def test_log_probabilities_of_a_large_vocabulary_stay_small(plan: StudyPlan) -> None:
    prose = plan.tasks["small_prose"]
    for vocabulary_size, tokens in ((400, 16), (1_000_000, 6), (50_000_000, 1)):
        found = right_answers([prose], plan.tokenizer, vocabulary_size)
        assert {len(each.continuation) for each in found} == {tokens}
        if tokens > 1:
            assert 10 * tokens * vocabulary_size * 4 <= right_answers_module.MOST_BYTES


# with which full fine-tuning


def planned(name: str, method: str, seed: int | None, epochs: int | None) -> PlannedRun:
    run = planted_results.planted_study({4: 0.5}).study.runs[0]
    changes = {"name": name, "method": method, "seed": seed, "epochs": epochs}
    return run.model_copy(update=changes | ({"rank": None} if method == "full" else {}))


def test_a_run_is_compared_with_the_first_full_run_of_its_seed_and_epochs() -> None:
    runs = (
        planned("lora-0", "lora", 0, 3),
        planned("lora-1", "lora", 1, 3),
        planned("lora-imported", "lora", None, None),
        planned("full-0-short", "full", 0, 1),
        planned("full-0-slow", "full", 0, 3),
        planned("full-0-fast", "full", 0, 3),
    )
    study = planted_results.planted_study({4: 0.5}).study.model_copy(update={"models": runs})
    references = {run.name: study.full_run_of(run) for run in runs}
    assert {name: run.name for name, run in references.items() if run} == {"lora-0": "full-0-slow"}
    assert [run.name for run in study.full_runs_compared] == ["full-0-slow"]
    other = study.full_run_of(planned("lora-0", "lora", 0, 2))
    assert other is not None
    assert other.name == "full-0-short"


# in a study


def names(recorder: Recorder) -> list[tuple[str, str]]:
    return [(model.rpartition("-")[0] or model, stage) for model, stage in recorder.stages]


SMALL = (
    "evaluation.out_of_domain=[]",
    "evaluation.held_out_text=[]",
    "analysis.divergence=true",
)


class Finished(NamedTuple):
    """A finished small study; ``folder`` is a copy for one test."""

    outcome: Any
    recorder: Recorder
    folder: StudyFolder


@pytest.fixture(scope="module")
def original() -> list[Finished]:
    """Filled by the first test that needs it."""
    return []


@pytest.fixture
def finished(
    study_file: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    original: list[Finished],
) -> Finished:
    """A study that is run once for all tests of this module."""
    if not original:
        folder = tmp_path_factory.mktemp("original") / "study"
        original.append(Finished(*run(study_file, folder, *SMALL), StudyFolder(folder)))
    shutil.copytree(original[0].folder.root, tmp_path / "study")
    return original[0]._replace(folder=StudyFolder(tmp_path / "study"))


def test_a_study_compares_the_base_and_every_lora_run(finished: Finished) -> None:
    outcome, recorder, folder = finished
    assert names(recorder)[-5:-2] == [
        ("base", "divergence"),
        ("colours-lora-r002-a004-s0", "divergence"),
        ("colours-lora-r004-a008-s0", "divergence"),
    ]
    assert recorder.done == pytest.approx(recorder.work[0])
    full = outcome.results.runs[2].name
    assert (folder.root / "base" / "divergence" / f"{full}.json").is_file()
    assert outcome.results.runs[2].divergences == ()
    (base,) = outcome.results.base.divergences
    assert (base.model, base.reference, base.train_task) == (BASE, full, "colours")
    assert base.num_items == len(base.kl_nats) == len(base.top1_agreement) == 26
    assert base.doc_ids == tuple(range(26))
    assert sum(base.kl_nats) > 0.0
    for model in outcome.results.runs[:2]:
        (found,) = model.divergences
        assert found == read_record(folder.model_folder(model.name) / "divergence.json", Divergence)
        assert found.reference == full
        assert min(found.kl_nats) >= 0.0
        assert found.kl_nats != base.kl_nats


def test_the_divergence_is_that_of_the_saved_weights(finished: Finished, study_file: Path) -> None:
    outcome, _, folder = finished
    plan = plan_study(load_config(study_file, SMALL))
    cpu = torch.device("cpu")
    full = load_frozen(folder.weights_folder(plan.record.runs[2]), "float32", cpu)
    base = load_frozen(
        find_base_model(BaseModelConfig(name=str(plan.base.folder))).folder, "float32", cpu
    )
    answers = plan.inputs["divergence"]["colours"]
    settings: dict[str, Any] = {"max_batch_tokens": 4096}
    expected = log_probabilities(full, answers, **settings)
    by_hand = divergences(base, answers, expected, **settings)
    (found,) = outcome.results.base.divergences
    assert found.kl_nats == pytest.approx([each.kl_nats for each in by_hand], rel=1e-5)


def test_a_missing_record_is_made_again_and_nothing_else(
    finished: Finished, study_file: Path
) -> None:
    before, _, folder = finished
    name = before.results.runs[1].name
    path = CompareDistributions.path(folder, name, before.results.runs[2].name)
    path.unlink()
    assert read_results(folder).runs[1].divergences == ()  # not read as something else
    assert ["divergence" in line.left for line in study_status(folder)] == [
        False,
        False,
        True,
        False,
    ]
    after, recorder = run(study_file, folder.root, *SMALL)
    assert names(recorder) == [("colours-lora-r004-a008-s0", "divergence")]
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    assert after.results.runs[1].divergences[0].kl_nats == pytest.approx(
        before.results.runs[1].divergences[0].kl_nats
    )
    change(path, fingerprint="of other words")
    _, recorder = run(study_file, folder.root, *SMALL)
    assert len(recorder.stages) == 1
    assert not any("divergence" in line.left for line in study_status(folder))


def test_a_run_that_is_trained_again_is_compared_again(
    finished: Finished, study_file: Path
) -> None:
    full = finished.outcome.results.runs[2].name
    finished.folder.run_file(full).unlink()
    _, recorder = run(study_file, finished.folder.root, *SMALL)
    assert [stage for _, stage in recorder.stages].count("divergence") == 3
    assert {model for model, stage in recorder.stages if stage == "training"} == {full}


def test_without_full_fine_tuning_there_is_nothing_to_do(study_file: Path, tmp_path: Path) -> None:
    outcome, recorder = run(study_file, tmp_path / "study", *SMALL, "methods.full=null")
    assert "divergence" not in {stage for _, stage in recorder.stages}
    assert not list((tmp_path / "study").rglob("*divergence*"))
    assert "divergence" not in outcome.results.study.inputs
    (part,) = outcome.findings.mechanisms
    assert part.agreement == ()


def test_without_being_asked_for_nothing_is_compared(study_file: Path) -> None:
    (asked, whole), (default, same) = (
        (plan.fingerprint, plan)
        for overrides in (SMALL, SMALL[:2])
        for plan in [plan_study(load_config(study_file, overrides)).record]
    )
    assert "divergence" in {stage.kind for stage in stages(whole)}
    assert "divergence" not in {stage.kind for stage in stages(same)}
    assert [run.fingerprint for run in same.runs] == [run.fingerprint for run in whole.runs]
    assert same.task_fingerprints == whole.task_fingerprints
    # the key at its default is no other study than that of a file written before it existed
    left_out = fingerprints._IN_NO_RESULT  # pyright: ignore[reportPrivateUsage]
    before = same.config.model_dump(mode="json", exclude=left_out)
    del before["analysis"]["divergence"]
    del before["train"]["turns"], before["train"]["sequence"], before["evaluation"]["labels"]
    del before["methods"]["lora"]["rank_pattern"]
    assert default == fingerprints.fingerprint(before) != asked


def test_a_diverged_full_run_is_compared_with_nothing(study_file: Path, tmp_path: Path) -> None:
    overrides = (*SMALL, "train.learning_rate={lora: 1e-2, full: 1e30}")
    outcome, _ = run(study_file, tmp_path / "study", *overrides)
    assert all(model.divergences == () for model in outcome.results.runs)
    assert not list((tmp_path / "study").rglob("*divergence*"))
    plan = plan_study(load_config(study_file, overrides))
    folder = StudyFolder(tmp_path / "study")
    assert all(stage.is_finished(folder) for stage in stages(plan.record))


def test_each_seed_has_its_own_full_fine_tuning(study_file: Path, tmp_path: Path) -> None:
    overrides = (*SMALL, "seeds=[0,1]", "methods.lora.ranks=[2]")
    recorder = Recorder()
    plan = plan_study(load_config(study_file, overrides))
    results = run_study(plan, StudyFolder(tmp_path / "study"), recorder).results
    runs = {model.name[:-9]: model for model in results.runs}
    for seed in (0, 1):
        (found,) = runs[f"colours-lora-r002-a004-s{seed}"].divergences
        assert found.reference == runs[f"colours-full-s{seed}"].name
    references = [each.reference for each in results.base.divergences]
    assert references == [runs["colours-full-s0"].name, runs["colours-full-s1"].name]
