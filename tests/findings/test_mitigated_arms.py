"""Arms against forgetting: above, on and below the line of lower rates, as planted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rankwise.findings.mitigations import Arm, TrainTaskMitigations, mitigations
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend
from rankwise.records.results import StudyResults
from rankwise.report.sections.mitigations import mitigation_section
from tests.planted.mitigated import Change, planted_mitigated

PLAIN = Change(0.30, -0.10)
ARMS: dict[str, tuple[dict[str, Any], Change]] = {
    "rate x 0.1": ({"learning_rate_factor": 0.1}, Change(0.12, -0.02)),
    "rate x 0.3": ({"learning_rate_factor": 0.3}, Change(0.24, -0.06)),
    # on the line between the run as trained and the first lower rate: nothing is won
    "replay": ({"replay": {"share": 0.1}}, Change(0.27, -0.08)),
    # at the retention of the lowest rate, whose gain is 0.12
    "kl": ({"kl": {}}, Change(0.28, -0.02)),
    # between the lowest rate and the base: the line is at 0.06 there
    "decay": ({"weight_decay": 1.0}, Change(0.01, -0.01)),
}


def found_in(results: StudyResults) -> TrainTaskMitigations:
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    found = mitigations(source, part)
    assert found is not None
    return found


def arms_of(found: TrainTaskMitigations) -> Mapping[str, Arm]:
    (option,) = found.options
    return {arm.label: arm for arm in option.arms}


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_each_arm_is_where_it_was_planted_against_the_line(seeds: tuple[int, ...]) -> None:
    arms = arms_of(found_in(planted_mitigated(PLAIN, ARMS, seeds=seeds)))
    assert list(arms) == ["as trained", "rate x 0.3", "rate x 0.1", "kl", "replay", "decay"]
    for name, (_, change) in ARMS.items():
        assert arms[name].gain.estimate == pytest.approx(100 * change.gain)
        assert arms[name].retention.estimate == pytest.approx(100 * change.retention)
        assert arms[name].gain.num_seeds == len(seeds)
    for name, above in {"kl": 16.0, "replay": 0.0, "decay": -5.0}.items():
        found = arms[name].above_rates
        assert found is not None
        assert found.estimate == pytest.approx(above, abs=1e-6)
        assert found.lower < above < found.upper
        assert arms[name].is_told_apart == (name != "replay")
    for name in ("as trained", "rate x 0.3", "rate x 0.1"):
        assert arms[name].above_rates is None


def test_shares_of_gain_and_of_loss() -> None:
    arms = arms_of(found_in(planted_mitigated(PLAIN, ARMS)))
    kept, regained = arms["kl"].kept_gain, arms["kl"].regained
    assert kept is not None
    assert regained is not None
    assert kept.estimate == pytest.approx(0.28 / 0.30)
    assert regained.estimate == pytest.approx(0.8)
    assert arms["as trained"].kept_gain is None
    assert arms["as trained"].regained is None


def test_statements_name_what_is_better_worse_and_tied() -> None:
    (option,) = found_in(planted_mitigated(PLAIN, ARMS, epsilon=4.0)).options
    said = " ".join(option.statements)
    assert "rank 16: kl gains 16.0 points above the line of lower learning rates, at its" in said
    assert "rank 16: decay gains 5.0 points below the line of lower learning rates" in said
    assert "rank 16: replay cannot be told from a lower learning rate." in said
    assert "lose less than 4.0 points of retention, kl gains the most" in said
    assert set(option.meeting) == {"kl", "decay", "rate x 0.1"}


def test_none_meets_a_constraint_that_none_meets() -> None:
    (option,) = found_in(planted_mitigated(PLAIN, ARMS, epsilon=0.1)).options
    assert option.meeting == ()
    assert "no arm is shown to lose less than 0.1 points" in " ".join(option.statements)


def test_where_nothing_is_forgotten_nothing_is_repaired() -> None:
    (option,) = found_in(planted_mitigated(Change(0.3, 0.01), ARMS)).options
    assert "no forgetting is shown that a repair could undo" in option.statements[0]
    regained = option.arms[1].regained
    assert regained is not None
    assert regained.estimate is None
    assert regained.reason


def test_an_arm_that_diverged_is_left_out_and_named() -> None:
    found = found_in(planted_mitigated(PLAIN, ARMS, diverged=["kl"]))
    assert found.left_out == ("rank 16, kl",)
    assert "kl" not in arms_of(found)


def test_beyond_its_ends_the_line_goes_on() -> None:
    beyond = {
        "rate": ({"learning_rate_factor": 0.3}, Change(0.24, -0.06)),
        "better": ({"kl": {}}, Change(0.28, 0.03)),  # than the base itself, which gains nothing
        "worse": ({"weight_decay": 1.0}, Change(0.33, -0.15)),  # than the run as trained
    }
    arms = arms_of(found_in(planted_mitigated(PLAIN, beyond)))
    for name, above in {"better": 28.0 + 12.0, "worse": 33.0 - 37.5}.items():
        found = arms[name].above_rates
        assert found is not None
        assert found.estimate == pytest.approx(above)


def test_an_arm_on_the_line_is_seldom_told_apart() -> None:
    """Noise makes every item a draw of its own: a truth on the line, 120 times."""
    told = 0
    for place in range(120):
        arms = {
            f"rate {place}": ({"learning_rate_factor": 0.3}, Change(0.20, -0.05)),
            f"arm {place}": ({"kl": {}}, Change(0.25, -0.075)),
        }
        plain = Change(0.30, -0.10)
        found = arms_of(found_in(planted_mitigated(plain, arms, noise=1.0, seeds=(place,))))
        told += found[f"arm {place}"].is_told_apart
    assert told <= 12  # 5 % of 120 is 6; more than 12 has a chance of 0.005


def test_the_section_has_a_plane_a_table_and_a_file() -> None:
    section = mitigation_section([found_in(planted_mitigated(PLAIN, ARMS))])
    (figure,) = section.figures
    assert figure.drawing is not None
    assert "kl: gain +28.0 points (" in figure.description
    (titled,) = section.tables
    (group,) = titled.table.groups
    assert group.rows[0][0].value == "as trained"
    by_label = {row[0].value: row for row in group.rows}
    assert by_label["replay"][5].note == "not told apart"
    assert "93 %" in by_label["kl"][2].value
    lines = section.files["mitigations.csv"].splitlines()
    assert len(lines) == 1 + 6
