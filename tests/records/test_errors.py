"""Errors: also a standard one, whole after pickling, and readable."""

from __future__ import annotations

import difflib
import itertools
import pickle
import random
from collections.abc import Iterator

import pytest

from rankwise import errors
from rankwise.errors import (
    ConfigError,
    PlanError,
    RankwiseError,
    RecordError,
    StageFailedError,
    StorageError,
    closest,
)
from tests.support.sentences import Sentences

STANDARD = {
    "ConfigError": ValueError,
    "PlanError": ValueError,
    "RecordError": ValueError,
    "NewerRecordError": ValueError,
    "StudyChangedError": ValueError,
    "StudyLockedError": BlockingIOError,
    "WorkerLostError": ChildProcessError,
    "StorageError": OSError,
    "HubError": OSError,
    "ModelError": OSError,
    "BeyondLoraError": OSError,
    "TaskError": LookupError,
    "RewardError": ValueError,
    "DataError": ValueError,
    "DivergedError": ArithmeticError,
    "OutOfMemoryError": MemoryError,
    "StageFailedError": RuntimeError,
    "UnchangedOutputsError": AssertionError,
}
WITH_FIELDS = {
    "ConfigError": ("study.yaml", ["a: 1", "b: 2"]),
    "PlanError": ("study", "tiny", ["a: 1"], ["w"]),
    "StageFailedError": (["base: scoring a failed: why"],),
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:password@host/x is none", "https://***@host/x is none"),
        ("https:/user:password@host/x", "https:/***@host/x"),  # as a path has it
        ("'s3://key:pass/wo@rd@bucket'", "'s3://***@bucket'"),
        ("https://password@host and me@home", "https://***@host and me@home"),
        ("gs://b/x?X-Signature=password&n=1 no", "gs://b/x?*** no"),
        ("https://huggingface.co/org/name@rev", "https://huggingface.co/org/name@rev"),
        ("org/name:config@rev/split, a@b, C:/x@y", "org/name:config@rev/split, a@b, C:/x@y"),
    ],
)
def test_no_error_tells_a_password(text: str, shown: str) -> None:
    assert str(RecordError(text)) == shown
    assert str(StorageError(text)) == shown
    config, plan = ConfigError(text, [text]), PlanError("study", text, [text], [text])
    for error in (config, plan, StageFailedError([text])):
        assert "password" not in f"{error} {error!r} {error.args} {vars(error)}"
    assert (config.problems, plan.warnings) == ((shown,), (shown,))


def children() -> dict[str, type[RankwiseError]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, RankwiseError) and value != RankwiseError
    }


def test_every_error_is_in_the_table_below() -> None:
    assert children().keys() == STANDARD.keys()


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_each_is_also_a_standard_error(name: str) -> None:
    error = children()[name]
    assert issubclass(error, STANDARD[name])
    with pytest.raises(STANDARD[name]):
        raise error(*WITH_FIELDS.get(name, ("what happened. What to do.",)))


@pytest.mark.parametrize("name", sorted(STANDARD))
def test_each_is_the_same_after_pickling(name: str) -> None:
    before = children()[name](*WITH_FIELDS.get(name, ("what happened. What to do.",)))
    after = pickle.loads(pickle.dumps(before))
    assert type(after) is type(before)
    assert str(after) == str(before)
    assert vars(after) == vars(before)


def test_pickling_keeps_fields() -> None:
    config = pickle.loads(pickle.dumps(ConfigError("study.yaml", ["a: 1", "b: 2"])))
    assert (config.source, config.problems) == ("study.yaml", ("a: 1", "b: 2"))
    plan = pickle.loads(pickle.dumps(PlanError("s", "m", ["p"], ["w", "v"])))
    assert (plan.source, plan.base_model, plan.problems, plan.warnings) == (
        "s",
        "m",
        ("p",),
        ("w", "v"),
    )


def test_messages_of_config_errors(sentence: Sentences) -> None:
    sentence(str(ConfigError("f.yaml", ["x: bad"])), "f.yaml", names=("f.yaml",))
    sentence(str(ConfigError("f.yaml", ["x", "y"])), "second", names=("f.yaml",))


def test_messages_of_plan_errors(sentence: Sentences) -> None:
    sentence(str(PlanError("s", "m", ["p", "q"])), "first")
    sentence(str(PlanError("s", "m", ["p"], ["w"])), "second")


def test_the_closest_of_a_few_names_is_that_of_difflib() -> None:
    draw = random.Random(0)
    names = ["".join(draw.choices("abcd", k=draw.randint(1, 8))) for _ in range(400)]
    for name in names[:100]:
        expected = difflib.get_close_matches(name, names[100:], n=1)
        assert [closest(name, names[100:])] == (expected or [None])


def test_the_closest_of_names_without_end_is_found_in_bounded_time() -> None:
    """Comparing two names takes the square of their letters, and files have any number of them."""
    drawn: list[int] = []

    def endless() -> Iterator[str]:
        for number in itertools.count():
            drawn.append(number)
            yield f"arc_{number}"

    assert closest("arc_7", endless()) == "arc_7"
    assert len(drawn) <= 20_000
    long = "ab" * 50_000
    assert closest(long, [long[:-1]] * 10) is None
    assert closest("abc", [long, "abd"]) == "abd"
