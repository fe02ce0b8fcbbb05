"""What of a change is a matter of format: planted answers, and a study scored both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankwise import write_report
from rankwise.findings.differences import format_effects
from rankwise.findings.options import OptionGains
from rankwise.findings.recommendation import recommend_for
from rankwise.records.folder import StudyFolder
from rankwise.records.results import ModelResults, TrainTaskResults
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.planted.results import planted_runs
from tests.support.observers import Silent
from tests.support.tiny_tasks import LETTERS_YAML


def with_trained_format(
    results: TrainTaskResults, task: str, num_forgotten: int
) -> TrainTaskResults:
    """The task scored once more as ``task@letters``: the base's answers, but for some lost."""
    name = f"{task}@letters"

    def also(model: ModelResults) -> ModelResults:
        right = [i for i, value in enumerate(results.base.items[task].values) if value == 1.0]
        lost = set(right[:num_forgotten]) if model.run is not None else set()
        values = [0.0 if i in lost else v for i, v in enumerate(results.base.items[task].values)]
        items = model.items[task].model_copy(update={"task": name, "values": tuple(values)})
        scored = model.evaluations[task].model_copy(update={"task": name})
        return model.model_copy(
            update={
                "items": model.items | {name: items},
                "evaluations": model.evaluations | {name: scored},
            }
        )

    study = results.study.model_copy(update={"trained_formats": {"kinship": {task: name}}})
    return results.model_copy(
        update={
            "study": study,
            "base": also(results.base),
            "models": tuple(also(run) for run in results.runs),
        }
    )


def planted(num_forgotten: int) -> TrainTaskResults:
    """Rank 8 falls from 60 to 40 points of 200 items in the standard format."""
    results = planted_runs(
        in_domain_accuracy={8: 0.8},
        retention_tasks=("facts",),
        retention_accuracy={8: 0.4},
        num_retention=200,
        base={"facts": 0.6},
    )
    return with_trained_format(results, "facts", num_forgotten)


def test_a_loss_of_format_only_is_counted_and_said() -> None:
    results = planted(num_forgotten=0)
    (effect,) = format_effects(OptionGains(results))
    assert (effect.task, effect.scored_as) == ("facts", "facts@letters")
    assert effect.standard_difference == pytest.approx(-20.0)
    assert effect.difference.estimate == 0.0
    assert effect.by_format is not None
    assert effect.by_format.estimate == pytest.approx(-20.0)
    assert effect.by_format.lower < -20.0 < effect.by_format.upper < 0.0
    assert (effect.num_learned, effect.num_forgotten) == (0, 0)
    assert any(
        "Partly format" in reason and "−20.0" in reason for reason in recommend_for(results).reasons
    )


def test_a_loss_in_both_formats_is_no_matter_of_format() -> None:
    results = planted(num_forgotten=40)
    (effect,) = format_effects(OptionGains(results))
    assert effect.difference.estimate == pytest.approx(-20.0)
    assert effect.num_forgotten == 40
    assert effect.by_format is not None
    assert effect.by_format.lower < 0.0 < effect.by_format.upper
    assert not any("format" in reason for reason in recommend_for(results).reasons)


def test_the_recommendation_rests_on_the_standard_format_alone() -> None:
    keeps, loses = planted(0), planted(40)
    first, second = recommend_for(keeps), recommend_for(loses)
    assert first.verdicts == second.verdicts
    assert first.comparisons == second.comparisons


def test_a_study_scores_both_formats_and_reports_them(study_file: Path, tasks_folder: Path) -> None:
    (tasks_folder / "colours_letters.yaml").write_text(LETTERS_YAML)
    overrides = [
        "train.task=colours_letters",
        "evaluation.retention=[colours]",
        "evaluation.out_of_domain=[]",
        "methods.lora.ranks=[2]",
        "methods.full=null",
        "train.epochs=1",
    ]

    folder = StudyFolder(study_file.parent / "study")
    plan = plan_study(load_config(study_file, overrides))
    outcome = run_study(plan, folder, Silent())
    run = plan.record.runs[0].name
    assert folder.evaluation_file(run, "colours@letters").name == "colours@letters.json"
    letters = outcome.results.runs[0].evaluations["colours@letters"]
    assert letters.predicted_shares is not None
    assert sum(letters.predicted_shares) == pytest.approx(1.0)
    # the same questions in the same form as the task that was trained on
    by_hand = outcome.results.runs[0].items["colours_letters"].values
    assert outcome.results.runs[0].items["colours@letters"].values == by_hand
    (part,) = outcome.recommendation.by_train_task
    (effect,) = part.format_effects
    assert effect.scored_as == "colours@letters"
    page = write_report(
        folder.root, outcome.results, outcome.recommendation, outcome.findings
    ).read_text()
    assert "As the training asked" in page
    rows = (folder.root / "report" / "formats.csv").read_text().splitlines()
    assert len(rows) == 2
    assert f"{run},colours,colours@letters,retention" in rows[1]
