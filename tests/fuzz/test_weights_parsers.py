"""Files of adapters, models, states and caches: whatever is in them, they are read or refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings

from rankwise.errors import RankwiseError
from tests.fuzz.weights_parsers import PARSERS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_returns_or_refuses(name: str) -> None:
    strategy, parse = PARSERS[name]

    @settings(
        max_examples=200,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(content=strategy)
    def holds(content: bytes) -> None:
        with contextlib.suppress(RankwiseError):
            parse(content)

    holds()


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
        try:
            parse(content)
        except RankwiseError:
            outcomes.add(False)
        else:
            outcomes.add(True)

    tried()
    assert outcomes == {False, True}
