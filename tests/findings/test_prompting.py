"""A prompt instead of a training: planted gains beside the base and the ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from rankwise.findings.options import option_gains
from rankwise.findings.prompting import TrainTaskPrompting, prompting
from rankwise.findings.recommendation import recommend
from rankwise.findings.study import study_findings
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun, PromptedTask
from rankwise.report.sections.prompting import prompting_section
from tests.planted.grid import grid_run, planted_grid, relations
from tests.planted.results import planted_items
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows

BASE, SIZE = 0.4, 1000
RANKS = {4: 0.20, 8: 0.30}


def planted(gains: Mapping[int, float], *, seeds: Sequence[int] = (0, 1)) -> StudyResults:
    """Ranks 4 and 8 gain 20 and 30 points; a prompt gains as planted, by its number of rows."""
    runs = [grid_run("sums", rank, seed=seed) for rank in RANKS for seed in seeds]

    def score(plan: PlannedRun | None, task: str) -> float:
        if task != "sums":
            return 0.8
        return BASE if plan is None or plan.rank is None else BASE + RANKS[plan.rank]

    tasks = {"sums": relations(["sums"], (), ["capitals"])}
    results = planted_grid(runs, tasks, score, sizes=SIZE)
    asked = [
        PromptedTask(
            task="sums", name=f"sums@prompt-{shots}-{seed}", shots=shots, seed=seed,
            context_tokens=50.0 + 40.0 * shots,
        )
        for shots in gains
        for seed in (seeds if shots else (None,))
    ]  # fmt: skip
    items = {
        each.name: planted_items(
            "sums", "base", BASE + gains[each.shots], SIZE, nats=False, noise=0.0
        )
        for each in asked
    }
    base = results.base.model_copy(update={"items": results.base.items | items})
    study = results.study.model_copy(update={"prompted": {"sums": tuple(asked)}})
    return results.model_copy(update={"study": study, "base": base})


def found(results: StudyResults) -> TrainTaskPrompting:
    (source,) = option_gains(results)
    one = prompting(source, recommend(results).by_train_task[0])
    assert one is not None
    return one


def test_gains_and_tokens_are_as_planted(sentence: Sentences) -> None:
    one = found(planted({0: 0.0, 5: 0.25}))
    assert [row.gain.estimate for row in one.alone] == pytest.approx([0.0, 25.0])
    assert [row.context_tokens for row in one.alone] == [50.0, 250.0]
    assert [row.more_tokens for row in one.alone] == [0.0, 200.0]
    assert [row.num_seeds for row in one.alone] == [1, 2]
    sentence(one.statements[1], names=("250", "200"))


@pytest.mark.parametrize(
    ("gain", "answer", "sentence"),
    [
        (0.31, "as much", "5 examples in the prompt gain what rank 8 gains: +1.0"),
        (0.20, "less", "5 examples in the prompt gain less than rank 8: "),
    ],
)
def test_a_prompt_beside_a_rank(gain: float, answer: str, sentence: str) -> None:
    one = found(planted({5: gain}))
    (row,) = (row for row in one.rows if row.against == "rank 8")
    assert row.lead is not None
    assert row.lead.estimate == pytest.approx(100 * (gain - 0.30))
    assert row.gains == answer
    assert one.beside("rank 8").startswith(sentence)


def test_the_card_says_what_the_best_prompt_does_beside_the_choice() -> None:
    results = planted({0: 0.1, 2: 0.05, 5: 0.295})
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    (card,) = findings.cards
    assert card.choice == "rank 8"
    assert "5 examples in the prompt gain what rank 8 gains" in card.remark
    rows = csv_rows("prompting", results, prompting=findings.prompting)
    assert [row["against"] for row in rows] == 3 * ["base", "rank 4", "rank 8"]
    section = prompting_section(findings.prompting)
    assert [each.title for each in section.tables] == ["Every number", "Against a training"]


def test_without_a_prompt_there_is_nothing() -> None:
    results = planted({})
    (source,) = option_gains(results)
    assert prompting(source, recommend(results).by_train_task[0]) is None
