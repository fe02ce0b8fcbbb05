"""One comparison: what models gain, keep, lead by and cost, as planted."""

from __future__ import annotations

import pytest

from rankwise.findings.comparison import Compared, Group, compare
from rankwise.findings.options import option_gains
from tests.planted.results import planted_study


def test_gain_retention_leads_and_cost_are_as_planted() -> None:
    results = planted_study(seeds=(0, 1))
    (source,) = option_gains(results)
    options = {option.label: option for option in source.options}
    tasks = source.deciding_tasks("points")
    found = compare(Compared, source, tasks, options["rank 16"], options["rank 4"])
    assert (found.label, found.rank, found.kind, found.against) == ("rank 16", 16, 16, "rank 4")
    assert found.gain.estimate == pytest.approx(30.0)
    assert found.lead is not None
    assert found.lead.estimate == pytest.approx(10.0)
    assert found.retention is not None
    assert found.retention.unit == "points"
    runs = options["rank 16"].records
    assert (found.num_seeds, found.num_tokens) == (2, runs[0].num_tokens)
    assert found.train_seconds == sum(run.train_seconds for run in runs)


def test_the_base_gains_nothing_over_itself() -> None:
    (source,) = option_gains(planted_study())
    base = Group("base", None, (source.results.base,))
    found = compare(Compared, source, source.deciding_tasks("points"), base)
    assert (found.gain.estimate, found.gain.lower, found.gain.upper) == (0.0, 0.0, 0.0)
    assert (found.against, found.lead, found.train_seconds) == ("base", None, 0.0)
