"""A study with more seeds, items or ranks: what is there is kept, what is new is done."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ConfigError, StudyChangedError
from rankwise.findings.statements import next_command, with_folder
from rankwise.records.config.training import RateRuleConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import Comparison
from rankwise.records.study import Interval
from rankwise.records.study_file import load_config
from rankwise.study.conclusion import conclude
from rankwise.study.growing import Extension, extended
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from rankwise.tasks import requests, update_guard
from rankwise.tasks.item_order import in_random_order
from tests.support.observers import Recorder
from tests.support.sentences import Sentences

SETTINGS = [
    "methods.lora.ranks=[2]",
    "methods.full=null",
    "evaluation.limit=4",
    "evaluation.num_train_items=3",
    "train.epochs=1",
]
ONE_BY_ONE = "evaluation.max_batch_tokens=1"
"""In other batches a loss differs in its last digits."""


def run(config: Any, folder: Path) -> tuple[Any, list[tuple[str, str]]]:
    recorder = Recorder()
    return run_study(plan_study(config), StudyFolder(folder), recorder), recorder.stages


def without_bounds(row: Comparison) -> Comparison:
    estimate = row.difference.estimate
    known = Interval(estimate=estimate, lower=estimate, upper=estimate)
    return row.model_copy(update={"difference": known})


@pytest.mark.parametrize("task", ["colours", "sums"])
def test_more_items_are_scored_and_none_again(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    settings = [*SETTINGS, ONE_BY_ONE, f"train.task={task}", "evaluation.out_of_domain=[]"]
    config = load_config(study_file, settings)
    run(config, tmp_path / "grown")
    asked: list[int] = []

    def counted(name: str) -> Any:
        ask = getattr(ResidentScorer, name)

        def asking(self: Any, models: Any, items: Any, *rest: Any) -> Any:
            asked.append(len(items))
            return ask(self, models, items, *rest)

        return asking

    monkeypatch.setattr(update_guard, "refuse_unapplied", lambda *_: None)
    for name in ("log_likelihoods", "generate"):
        monkeypatch.setattr(ResidentScorer, name, counted(name))
    grown, stages = run(extended(config, Extension(num_items=3)), tmp_path / "grown")
    models = {"base", grown.results.study.runs[0].name}
    scored = {(model, t) for model in models for t in (task, "small_prose")}
    assert set(stages) == scored | {("gauges", "gauges"), ("heads", "heads")}  # they read more now
    order = in_random_order(range(26 if task == "colours" else 8))
    new = {
        line["doc_id"]: line for line in StudyFolder(tmp_path / "grown").read_samples("base", task)
    }
    assert set(new) == set(order[:7])
    items = sum(len(new[doc_id]["resps"]) for doc_id in order[4:7])
    assert sorted(asked) == sorted([items, 3] * 2)  # of each model: new options or prompts, prose
    monkeypatch.undo()
    whole, _ = run(load_config(study_file, [*settings, "evaluation.limit=7"]), tmp_path / "whole")
    (more,), (once,) = (each.recommendation.by_train_task for each in (grown, whole))
    # bounds of what decides are those of the look: the grown study's second is stricter
    assert list(map(without_bounds, more.comparisons)) == [*map(without_bounds, once.comparisons)]
    # grown, it is the second look, and is judged by the margins of the first
    assert [look.number for look in more.looks] == [1, 2]
    assert [look.number for look in once.looks] == [1]
    assert more.looks[-1].num_items == once.looks[-1].num_items
    for mine, theirs in zip(grown.results.runs, whole.results.runs, strict=True):
        assert mine.items == theirs.items
        for name, record in mine.evaluations.items():
            other = theirs.evaluations[name]
            same: dict[str, Any] = {"score_seconds": 0.0, "provenance": None}
            assert record.model_copy(update=same) == other.model_copy(update=same)


def test_clusters_are_found_in_what_was_scored(
    study_file: Path, tmp_path: Path, tasks_folder: Path, sentence: Sentences
) -> None:
    """The task, its other format and its trained rows have them; nothing is done again."""
    module = tasks_folder / "colours.py"
    text = module.read_text(encoding="utf-8")
    module.write_text(text.replace('"label":', '"story": index % 4, "label":'), encoding="utf-8")
    settings = [*SETTINGS, "evaluation.limit=6", "evaluation.out_of_domain=[]"]
    plain, _ = run(load_config(study_file, settings), tmp_path / "study")
    settings.append("evaluation.clusters={colours: story}")
    clustered, stages = run(load_config(study_file, settings), tmp_path / "study")
    assert stages == []
    for model in (clustered.results.base, *clustered.results.runs):
        numbers = {task: items.clusters for task, items in model.items.items()}
        assert numbers["small_prose"] is None
        assert [len(set(numbers[task])) for task in ("colours", "colours@train")] == [4, 3]
    assert plain.recommendation.by_train_task[0].num_clusters_in_domain is None
    (answer,) = clustered.recommendation.by_train_task
    assert (answer.num_items_in_domain, answer.num_clusters_in_domain) == (6, 4)
    sentence(answer.reasons, names=("colours", "6 items", "4 clusters"), part=True)


def test_other_settings_are_scored_from_the_beginning(study_file: Path, tmp_path: Path) -> None:
    config = load_config(study_file, SETTINGS)
    plan = plan_study(config)
    run(config, tmp_path / "study")
    folder = StudyFolder(tmp_path / "study")
    earlier = folder.earlier_evaluation("base", "colours")
    assert earlier is not None
    base = plan.base.fingerprint

    def begins(*overrides: str) -> bool:
        other = plan_study(load_config(study_file, [*SETTINGS, *overrides]))
        return other.begins_with(earlier, base, other.tasks["colours"])

    assert begins("evaluation.limit=9")
    assert begins("evaluation.limit=null")
    whole = [*SETTINGS, "evaluation.limit=30"]
    run(load_config(study_file, whole), tmp_path / "whole")
    grown, _ = run(load_config(study_file, [*whole, "evaluation.limit=40"]), tmp_path / "whole")
    assert grown.results.base.evaluations["colours"].limit == 40  # of 26 items, all there are
    assert not begins("evaluation.limit=9", "evaluation.metric.colours=acc_norm")
    assert not begins("evaluation.limit=9", "evaluation.num_fewshot=1")
    assert not begins()  # the same items: finished, not extended
    assert not plan.begins_with(earlier, "another model", plan.tasks["colours"])


def test_scores_of_the_first_items_are_kept_where_all_are_scored(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    """As studies have them that were made before items came in a random order."""
    settings = [*SETTINGS, ONE_BY_ONE, "evaluation.out_of_domain=[]"]
    settings += ["evaluation.held_out_text=[]"]
    monkeypatch.setattr(requests, "in_random_order", sorted)
    run(load_config(study_file, settings), tmp_path / "study")
    monkeypatch.undo()
    folder = StudyFolder(tmp_path / "study")
    before = folder.read_samples("base", "colours")
    assert [line["doc_id"] for line in before] == [0, 1, 2, 3]
    with pytest.raises(StudyChangedError) as caught:
        run(load_config(study_file, settings), tmp_path / "study")
    sentence(caught.value, "items", names=("colours",))
    with pytest.raises(StudyChangedError) as caught:
        run(load_config(study_file, [*settings, "evaluation.limit=9"]), tmp_path / "study")
    sentence(caught.value, "limit", names=("evaluation.limit: 4", "9"))
    asked: list[int] = []
    ask = ResidentScorer.log_likelihoods

    def asking(self: Any, models: Any, items: Any, *rest: Any) -> Any:
        asked.append(len(items))
        return ask(self, models, items, *rest)

    monkeypatch.setattr(update_guard, "refuse_unapplied", lambda *_: None)
    monkeypatch.setattr(ResidentScorer, "log_likelihoods", asking)
    run(load_config(study_file, [*settings, "evaluation.limit=null"]), tmp_path / "study")
    after = folder.read_samples("base", "colours")
    assert after[:4] == before
    new = sum(len(line["resps"]) for line in after[4:])
    assert (len(after), asked) == (26, [new, new])  # of the base, and of the adapter


def test_more_seeds_and_ranks_train_only_those(study_file: Path, tmp_path: Path) -> None:
    config = load_config(study_file, SETTINGS)
    run(config, tmp_path / "study")
    records = (tmp_path / "study" / "runs").rglob("*.json*")
    before = {p: p.stat().st_mtime_ns for p in records if p.parent.name != "adapter"}
    more = extended(config, Extension(num_seeds=1, ranks=(4, 3)))
    assert (more.seeds, more.methods.lora and more.methods.lora.ranks) == ((0, 1), (2, 3, 4))
    outcome, stages = run(more, tmp_path / "study")
    assert [model for model, stage in stages if stage == "training"] == ["pass 1: 6 adapters"]
    ranks = {(run.rank, run.seed): run.name for run in outcome.results.study.runs}
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parts[-2] for path in after} == {ranks[2, 0], "eval"}
    assert after == before
    assert "base" not in dict(stages)


def test_new_seeds_are_unused_ones(study_file: Path) -> None:
    config = load_config(study_file, ["seeds=[1, 7]"])
    assert extended(config, Extension(num_seeds=3)).seeds == (1, 7, 0, 2, 3)


def test_other_learning_rates_stand_beside_the_first_and_follow_its_rule(study_file: Path) -> None:
    plain = load_config(study_file, ["train.learning_rate.lora=[3e-4]"])
    more = extended(plain, Extension(rate_factors=(0.5, 2.0)))
    assert more.train.learning_rate.lora == (3e-4, 1.5e-4, 6e-4)
    by_rule = load_config(study_file, ["train.learning_rate={lora: {rule: r^-1/2, value: 2e-4}}"])
    first, second = extended(by_rule, Extension(rate_factors=(2.0,))).train.learning_rate.lora
    assert isinstance(first, RateRuleConfig)
    assert second == first.model_copy(update={"value": 4e-4})


@pytest.mark.parametrize(
    ("overrides", "extension", "names"),
    [
        ([], Extension(), ("--seeds", "--items", "--ranks", "--rate-factors")),
        ([], Extension(num_items=5), ()),
        ([], Extension(ranks=(4,)), ("rank 4",)),
        (["methods.lora=null"], Extension(ranks=(4,)), ("LoRA",)),
        (["methods.lora=null"], Extension(rate_factors=(2,)), ("LoRA",)),
        ([], Extension(rate_factors=(2, 1)), ("1 times",)),
        (["methods.lora={_: [{rank: 2, alpha: {ratio: 1}}]}"], Extension(ranks=(4,)), ()),
    ],
    ids=["nothing", "items", "rank", "rank without LoRA", "rate without LoRA", "rate", "pairs"],
)
def test_what_cannot_be_added_is_said(
    study_file: Path,
    overrides: list[str],
    extension: Extension,
    names: tuple[str, ...],
    sentence: Sentences,
) -> None:
    with pytest.raises(ConfigError) as caught:
        extended(load_config(study_file, overrides), extension)
    sentence(caught.value, names=names)


def test_extend_is_a_verb(study_file: Path, tmp_path: Path, sentence: Sentences) -> None:
    from typer.testing import CliRunner

    from rankwise.cli.main import app

    run(load_config(study_file, SETTINGS), tmp_path / "study")
    done = CliRunner().invoke(app, ["extend", str(tmp_path / "study"), "--ranks", "3"])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "study" / "study.json").read_text())
    assert [planned["rank"] for planned in record["models"]] == [2, 3]
    wrong = CliRunner().invoke(app, ["extend", str(tmp_path / "study"), "--ranks", "8,x"])
    assert (wrong.exit_code, wrong.stdout) == (2, "")
    sentence(wrong.stderr, names=("--ranks", "'x'"), part=True)
    for factors in ("0", "-1", "nan", "1e3", "2,2", "2.0,2"):
        wrong = CliRunner().invoke(
            app, ["extend", str(tmp_path / "study"), "--rate-factors", factors]
        )
        assert (wrong.exit_code, wrong.stdout) == (2, ""), factors
        assert "--rate-factors" in wrong.stderr


def test_what_a_verdict_advises_can_be_done(study_file: Path, tmp_path: Path) -> None:
    """Every growth's command, as the verdict writes it: all items that there are, and seeds."""
    from tests.support.command_line import rankwise

    folder = tmp_path / "study"
    settings = [*SETTINGS, "methods.lora.ranks=[2,3]", "evaluation.out_of_domain=[]"]
    outcome, _ = run(load_config(study_file, settings), folder)
    (answer,) = outcome.recommendation.by_train_task
    items = [p for p in answer.prospects if p.add == "in_domain"]
    seeds = [p for p in answer.prospects if p.add == "seeds"]
    in_all = {t: e.num_available for t, e in outcome.results.base.evaluations.items()}
    largest = items[-1]
    assert largest.num_items == {task: min(40, in_all[task] or 0) for task in largest.num_items}
    advised: list[dict[str, Any]] = [
        {"prospects": (prospect.model_copy(update={"probability": 1.0}),)}
        for prospect in (largest, seeds[0])
    ]
    # other rates come last: with them the options are others
    full_is_better = {"outcome": "recommended", "better_and_kept_by_full": "full fine-tuning"}
    for update in (*advised, {**full_is_better, "prospects": ()}):
        said = with_folder(next_command(answer.model_copy(update=update)), folder)
        command = said.removeprefix("rankwise ")
        done = rankwise(*shlex.split(command))
        assert done.exit_code == 0, done.output
    grown = conclude(StudyFolder(folder)).results
    assert {task: len(grown.base.items[task].doc_ids) for task in largest.num_items} == dict(
        largest.num_items
    )
    assert len(grown.study.config.seeds) == seeds[0].num_seeds
    rates = {model.learning_rate for model in grown.study.models}
    assert len(rates) == 3


def test_a_file_that_knows_no_extension_says_what_it_leaves_out(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    config = load_config(study_file, SETTINGS)
    run(extended(config, Extension(ranks=(3,))), tmp_path / "s")
    for said in (1, 0):  # the second time the folder's plan is this one
        recorder = Recorder()
        run_study(plan_study(config), StudyFolder(tmp_path / "s"), recorder)
        found = [note for note in recorder.notes if "colours-lora-r003-" in note]
        assert len(found) == said
        for note in found:
            sentence(note)
