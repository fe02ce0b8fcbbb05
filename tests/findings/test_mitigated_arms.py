"""Arms against forgetting: better, worse and neither than lower rates, as planted."""

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
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows

PLAIN = Change(0.30, -0.10)
ARMS: dict[str, tuple[dict[str, Any], Change]] = {
    "rate x 0.1": ({"learning_rate_factor": 0.1}, Change(0.12, -0.02)),
    "rate x 0.3": ({"learning_rate_factor": 0.3}, Change(0.24, -0.06)),
    # between the run as trained and the first lower rate: gains more than that, forgets more
    "replay": ({"replay": {"share": 0.1}}, Change(0.27, -0.08)),
    # at the retention of the lowest rate; gains more and forgets less than the one above it
    "kl": ({"kl": {}}, Change(0.28, -0.02)),
    # between the lowest rate and the base: gains less than that, forgets less
    "decay": ({"weight_decay": 1.0}, Change(0.01, -0.01)),
    "half": ({"weight_decay": 0.5}, Change(0.05, -0.09)),
}
# arm -> the lower rate that it is set against, the leads in gain and retention, and what they show
LEADS = {
    "kl": ("rate x 0.3", 4.0, 4.0, "better"),
    "replay": ("rate x 0.3", 3.0, -2.0, "not shown"),
    "decay": ("rate x 0.1", -11.0, 1.0, "not shown"),
    "half": ("rate x 0.3", -19.0, -3.0, "worse"),
}


def found_in(results: StudyResults) -> TrainTaskMitigations:
    (source,), (part,) = option_gains(results), recommend(results).by_train_task
    found = mitigations(source, part)
    assert found is not None
    return found


def arms_of(found: TrainTaskMitigations) -> Mapping[str, Arm]:
    assert {arm.option for arm in found.arms} == {"rank 16"}
    return {arm.label: arm for arm in found.arms}


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_each_arm_is_where_it_was_planted_against_the_line(seeds: tuple[int, ...]) -> None:
    arms = arms_of(found_in(planted_mitigated(PLAIN, ARMS, seeds=seeds)))
    assert list(arms) == ["as trained", "rate x 0.3", "rate x 0.1", "kl", "replay", "decay", "half"]
    for name, (_, change) in ARMS.items():
        assert arms[name].gain.estimate == pytest.approx(100 * change.gain)
        kept = arms[name].retention
        assert kept is not None
        assert kept.estimate == pytest.approx(100 * change.retention)
        assert arms[name].gain.num_seeds == len(seeds)
    for name, (rate, gain, retention, dominance) in LEADS.items():
        arm = arms[name]
        assert (arm.against, arm.dominance) == (rate, dominance)
        assert arm.lead is not None
        assert arm.retention_lead is not None
        assert arm.lead.estimate == pytest.approx(gain)
        assert arm.retention_lead.estimate == pytest.approx(retention)
    for name in ("as trained", "rate x 0.3", "rate x 0.1"):
        assert (arms[name].lead, arms[name].dominance) == (None, None)


def test_shares_of_gain_and_of_loss() -> None:
    arms = arms_of(found_in(planted_mitigated(PLAIN, ARMS)))
    kept, regained = arms["kl"].kept_gain, arms["kl"].regained
    assert kept is not None
    assert regained is not None
    assert kept.estimate == pytest.approx(0.28 / 0.30)
    assert regained.estimate == pytest.approx(0.8)
    assert arms["as trained"].kept_gain is None
    assert arms["as trained"].regained is None


def test_statements_name_what_is_better_worse_and_tied(sentence: Sentences) -> None:
    found = found_in(planted_mitigated(PLAIN, ARMS, epsilon=4.0))
    said = " ".join(found.statements)
    sentence(said, names=("rank 16", "kl", "rate x 0.3", "+4.0", "−19.0", "less than 4.0 points"))
    assert {arm.label for arm in found.arms if arm.keeps_enough} == {"kl", "decay", "rate x 0.1"}


def test_none_meets_a_constraint_that_none_meets(sentence: Sentences) -> None:
    found = found_in(planted_mitigated(PLAIN, ARMS, epsilon=0.1))
    assert not any(arm.keeps_enough for arm in found.arms)
    sentence(" ".join(found.statements), names=("0.1",))


def test_where_nothing_is_forgotten_nothing_is_repaired(sentence: Sentences) -> None:
    found = found_in(planted_mitigated(Change(0.3, 0.01), ARMS))
    sentence(found.statements[0])
    regained = found.arms[1].regained
    assert regained is not None
    assert regained.estimate is None
    assert regained.reason


def test_an_arm_that_diverged_is_left_out_and_named() -> None:
    found = found_in(planted_mitigated(PLAIN, ARMS, diverged=["kl"]))
    assert found.left_out == ("rank 16, kl",)
    assert "kl" not in arms_of(found)


def test_an_arm_that_is_a_lower_rate_in_disguise_is_not_better() -> None:
    """On a curve of rates that bends, 8 points above the line from the only rate to the base."""
    arms = {
        "rate": ({"learning_rate_factor": 0.3}, Change(0.20, -0.05)),
        "kl": ({"kl": {}}, Change(0.12, -0.01)),
    }
    found = found_in(planted_mitigated(PLAIN, arms))
    arm = arms_of(found)["kl"]
    assert arm.lead is not None
    assert arm.retention_lead is not None
    assert arm.lead.estimate == pytest.approx(-8.0)
    assert arm.retention_lead.lower > 0.0
    assert arm.dominance == "not shown"


def test_without_a_lower_rate_no_arm_is_judged(sentence: Sentences) -> None:
    found = found_in(planted_mitigated(PLAIN, {"kl": ({"kl": {}}, Change(0.30, -0.01))}))
    assert arms_of(found)["kl"].dominance is None
    said = " ".join(found.statements)
    sentence(said, names=("16",))


def test_an_arm_that_does_what_a_rate_does_is_seldom_better_or_worse() -> None:
    """Noise makes every item a draw of its own: an arm as good as the rate, 120 times."""
    told = 0
    for place in range(120):
        arms = {
            f"rate {place}": ({"learning_rate_factor": 0.3}, Change(0.20, -0.05)),
            f"arm {place}": ({"kl": {}}, Change(0.20, -0.05)),
        }
        plain = Change(0.30, -0.10)
        found = arms_of(found_in(planted_mitigated(plain, arms, noise=1.0, seeds=(place,))))
        told += found[f"arm {place}"].dominance != "not shown"
    assert told <= 2  # both leads: 0.125 % of 120 are expected; more than 2 has a chance of 0.001


def test_the_section_has_a_plane_a_table_and_a_file() -> None:
    results = planted_mitigated(PLAIN, ARMS)
    part = found_in(results)
    section = mitigation_section([part])
    (figure,) = section.figures
    assert figure.drawing is not None
    assert "kl: gain +28.0 points (" in figure.drawing.words
    (titled,) = section.tables
    (group,) = titled.table.groups
    assert group.rows[0][0].value == "as trained"
    by_label = {row[0].value: row for row in group.rows}
    assert [by_label["kl"][5].value, by_label["kl"][6].note] == ["rate x 0.3", "better"]
    assert "93 %" in by_label["kl"][2].value
    assert len(csv_rows("mitigations", results, mitigations=[part])) == 7
