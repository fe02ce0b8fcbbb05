"""The strategies for files of adapters, models and states make good files and bad ones."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from rankwise.errors import RankwiseError
from tests.fuzz.weights_parsers import PARSERS
from tests.support.checked import forget_calls


@pytest.mark.parametrize("name", PARSERS)
def test_some_examples_are_read_and_some_refused(name: str) -> None:
    """A strategy that only made garbage, or only good files, would show nothing."""
    if name in ("digests.json", "a kept decomposition"):
        pytest.skip("never refused: made again")
    strategy, parse = PARSERS[name]
    outcomes: set[bool] = set()

    @settings(
        max_examples=150,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=strategy)
    def tried(content: bytes) -> None:
        forget_calls()
        try:
            parse(content)
        except RankwiseError:
            outcomes.add(False)
        else:
            outcomes.add(True)

    tried()
    assert outcomes == {False, True}
