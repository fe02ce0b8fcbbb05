"""Scoring in a study: together in one call, resumed without repeating, and each adapter applied."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.engine.models.loading import load_frozen
from rankwise.errors import StageFailedError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.study.stages import training
from rankwise.tasks.questions import Continuation, LogLikelihood
from rankwise.tasks.requests import Request
from rankwise.tasks.update_guard import probes
from rankwise.weights import session as scoring_session
from tests.support.observers import Recorder
from tests.support.plain_scorer import PlainScorer
from tests.support.saved_adapters import save_dora
from tests.support.sentences import Sentences
from tests.support.studies import run

RANKS = "methods.lora.ranks=[2, 4, 8]"
SMALL = [RANKS, "methods.full=null", "evaluation.limit=6", "train.epochs=1"]
TASKS = ["colours", "sums", "small_prose", "colours@train", "colours@end"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[PlainScorer]:
    """Every scorer that a study opens; they remember what they are asked."""
    found: list[PlainScorer] = []

    def remembered(*args: Any, **options: Any) -> PlainScorer:
        found.append(PlainScorer(*args, **options))
        return found[-1]

    monkeypatch.setattr(scoring_session, "ResidentScorer", remembered)
    return found


def scorings(scorers: Sequence[PlainScorer]) -> list[tuple[tuple[str | None, ...], int]]:
    """The calls that were no questions of the guard, which asks up to four texts in a study."""
    return [call for scorer in scorers for call in scorer.calls if call[1] > 4]


def short(name: str | None) -> str:
    return "base" if name is None else name.split("-")[2]


def test_the_adapters_of_a_pass_are_scored_in_one_call_per_task(
    study_file: Path, tmp_path: Path, opened: list[PlainScorer]
) -> None:
    outcome, recorder = run(study_file, tmp_path / "study", *SMALL)
    called = [tuple(map(short, names)) for names, _ in scorings(opened)]
    assert called == [("base",)] * 5 + [("r002", "r004", "r008")] * 5
    assert not any(scorer.adapters for scorer in opened)  # all were taken off again
    name = "pass 1: 3 adapters"
    assert recorder.stages == [
        *(("base", task) for task in TASKS),
        (name, "training"),
        *((name, task) for task in TASKS),
        ("gauges", "gauges"),
        ("heads", "heads"),
        ("weights", "spectra"),
    ]
    assert recorder.models == ["base", name, "gauges", "heads", "weights"]
    assert recorder.done == pytest.approx(recorder.work[0])
    for model in outcome.results.runs:
        seconds = [record.score_seconds for record in model.evaluations.values()]
        assert min(seconds) > 0


def test_only_the_adapter_whose_scores_are_missing_is_scored_again(
    study_file: Path, tmp_path: Path, opened: list[PlainScorer]
) -> None:
    before, _ = run(study_file, tmp_path / "study", *SMALL)
    folder = StudyFolder(tmp_path / "study")
    first, second, third = (model.name for model in before.results.runs)
    for name, task in ((second, "colours"), (third, "colours"), (first, "sums")):
        folder.evaluation_file(name, task).unlink()
    kept = folder.evaluation_file(first, "colours").stat().st_mtime_ns
    opened.clear()
    after, recorder = run(study_file, tmp_path / "study", *SMALL)
    assert [names for names, _ in scorings(opened)] == [(second, third), (first,)]
    assert recorder.stages == [("pass 1: 3 adapters", task) for task in ("colours", "sums")]
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    assert folder.evaluation_file(first, "colours").stat().st_mtime_ns == kept
    for mine, theirs in zip(after.results.runs, before.results.runs, strict=True):
        assert mine.items == theirs.items


def test_a_new_adapter_beside_extended_ones_is_asked_everything(
    study_file: Path, tmp_path: Path, opened: list[PlainScorer]
) -> None:
    run(study_file, tmp_path / "study", *SMALL, "methods.lora.ranks=[2, 4]")
    opened.clear()
    outcome, recorder = run(study_file, tmp_path / "study", *SMALL, "evaluation.limit=9")
    on_sums = [call for call in scorings(opened) if call[1] in (6, 9, 3)]
    assert recorder.done == pytest.approx(recorder.work[0] - recorder.work[1])
    assert [model.evaluations["sums"].num_examples for model in outcome.results.runs] == [8] * 3
    assert {tuple(map(short, names)) for names, _ in on_sums} <= {
        *(("base",), ("r002", "r004"), ("r008",))
    }
    fresh, _ = run(study_file, tmp_path / "fresh", *SMALL, "evaluation.limit=9")
    for mine, theirs in zip(outcome.results.runs, fresh.results.runs, strict=True):
        assert mine.items["sums"] == theirs.items["sums"]


def test_nothing_that_scores_is_held_while_a_model_is_trained(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[PlainScorer]] = []
    trained: list[int] = []
    train = training.train

    def remembered(*args: Any, **options: Any) -> PlainScorer:
        scorer = PlainScorer(*args, **options)
        held.append(weakref.ref(scorer))
        return scorer

    def watched(*args: Any) -> None:
        assert all(scorer() is None for scorer in held)
        trained.append(len(held))
        train(*args)

    monkeypatch.setattr(scoring_session, "ResidentScorer", remembered)
    monkeypatch.setattr(training, "train", watched)
    run(study_file, tmp_path / "study", *SMALL, "methods.full={}")
    assert trained == [
        1,
        2,
    ]  # the adapters behind the base's scoring, full fine-tuning behind theirs


# the guard


class Forgetful(PlainScorer):
    """Answers as the base does, whoever is asked."""

    def _carrying(self, name: str | None) -> Any:
        return super()._carrying(None)


class ForgetfulTogether(PlainScorer):
    """Forgets an adapter beside others, and rounds otherwise then."""

    def log_likelihoods(
        self, models: Sequence[str | None], items: Sequence[Continuation], *rest: Any
    ) -> list[list[LogLikelihood]]:
        if len(models) == 1:
            return super().log_likelihoods(models, items, *rest)
        (own,) = super().log_likelihoods([None], items, *rest)
        return [
            [LogLikelihood(x.nats + 1e-6 * i, x.is_greedy) for x in own]
            for i, _ in enumerate(models)
        ]


@pytest.mark.parametrize("engine", [Forgetful, ForgetfulTogether])
def test_a_generation_task_alone_shows_that_an_adapter_is_not_applied(
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: type[PlainScorer],
    sentence: Sentences,
) -> None:
    only_texts = [
        "train.task=sums",
        "evaluation.out_of_domain=[]",
        "evaluation.held_out_text=[]",
        "evaluation.num_train_items=0",
        *SMALL,
    ]
    plan = plan_study(load_config(study_file, only_texts))
    assert {task.loaded.output_type for task in plan.tasks.values()} == {"generate_until"}
    run(study_file, tmp_path / "applied", *only_texts)
    monkeypatch.setattr(scoring_session, "ResidentScorer", engine)
    with pytest.raises(StageFailedError) as caught:
        run(study_file, tmp_path / "forgotten", *only_texts)
    sentence(caught.value, names=("sums-lora-r002",))
    name = plan.record.runs[0].name
    assert not StudyFolder(tmp_path / "forgotten").evaluation_file(name, "sums").exists()


def test_a_zero_update_is_no_error(study_file: Path, tmp_path: Path) -> None:
    outcome, _ = run(study_file, tmp_path / "study", *SMALL, "train.learning_rate={lora: 1e-45}")
    assert all(model.run.update_is_zero for model in outcome.results.runs)


def test_probes_are_ends_of_distinct_texts() -> None:
    long = tuple(range(50))
    asked = [
        Request(0, long, (7,), is_truncated=False),
        Request(0, long, (8,), is_truncated=False),
        Request(1, long[:1], (), is_truncated=False),
        Request(2, long[:3], (), is_truncated=False),
        Request(3, long[:3], (), is_truncated=False),
    ]
    found = probes(asked)
    assert found == [
        Continuation((18,), (*range(19, 50), 7)),
        Continuation((18,), (*range(19, 50), 8)),
        Continuation((0,), (1, 2)),
    ]


# adapters that only PEFT can apply


def test_an_adapter_that_only_peft_can_apply_is_scored_alone(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    save_dora(tmp_path / "dora", tiny_model_folder)
    run(study_file, tmp_path / "first", *SMALL, "methods.lora.ranks=[2]")
    (plain,) = (tmp_path / "first" / "runs").glob("*/adapter")
    entries = json.dumps([{"adapter": str(tmp_path / "dora")}, {"adapter": str(plain)}])
    imports = ["methods.lora=null", f"methods.imported={entries}"]
    noted: list[str] = []
    recorder = Recorder()
    recorder.noted = noted.append
    plan = plan_study(load_config(study_file, [*SMALL, *imports]))
    outcome = run_study(plan, StudyFolder(tmp_path / "second"), recorder)
    assert all("use_dora" in note for note in noted)
    for note, case in zip(noted, ("scoring", "heads", "weights"), strict=True):
        sentence(note, case, RUN=r"(?<=-dora-)[0-9a-f]{8}")
    changes = [model.head_changes for model in outcome.results.runs]
    assert [bool(each.changes) and bool(each.shares) for each in changes] == [False, True]
    assert all(each.changes for each in changes)
    assert recorder.done == pytest.approx(recorder.work[0])
    base: Any = load_frozen(tiny_model_folder, "float32", torch.device("cpu"))
    by_peft = peft.PeftModel.from_pretrained(base, str(tmp_path / "dora")).eval()
    requests = plan.tasks["colours"].requests
    items = [Continuation(each.context, each.continuation) for each in requests]
    (expected,) = PlainScorer(by_peft, plan.tokenizer).log_likelihoods([None], items)
    folder = StudyFolder(tmp_path / "second")
    samples = folder.read_samples(outcome.results.runs[0].name, "colours")
    found = [nats for line in samples for ((nats, _),) in line["resps"]]
    assert found == pytest.approx([each.nats for each in expected], abs=1e-4)


# what is cut, and which engine


def test_cut_contexts_are_counted_by_item_and_said_once(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    short_folder = shutil.copytree(tiny_model_folder, tmp_path / "short")
    config = json.loads((short_folder / "tokenizer_config.json").read_text())
    config["model_max_length"] = 14
    (short_folder / "tokenizer_config.json").write_text(json.dumps(config))
    path = short_folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 14}))
    noted: list[str] = []
    recorder = Recorder()
    recorder.noted = noted.append
    plan = plan_study(load_config(study_file, [*SMALL, f"base_model={short_folder}"]))
    outcome = run_study(plan, StudyFolder(tmp_path / "study"), recorder)
    colours = outcome.results.base.evaluations["colours"]
    assert colours.num_truncated == colours.num_examples == 6
    sentence(noted, names=("6 of 6",), part=True)
    cut = [task for task in plan.tasks.values() if task.num_truncated]
    assert len(noted) == len(cut)
