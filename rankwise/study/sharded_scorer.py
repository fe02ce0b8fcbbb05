"""Scores of a base model that no device holds alone: several processes hold it together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter

from rankwise.engine.models.base import fetch_weights
from rankwise.errors import ModelError
from rankwise.study.planning.plan import StudyPlan
from rankwise.study.started import Started
from rankwise.tasks.questions import Advance, Continuation, Generation, LogLikelihood, Prompt


class Call(NamedTuple):
    """A method of ``Scorer``, as JSON.

    Attributes:
        asked: its arguments.
        answered: what it returns.
    """

    asked: TypeAdapter[Any]
    answered: TypeAdapter[Any]


_Models = Sequence[str | None]
CALLS: Mapping[str, Call] = {
    "put_on": Call(TypeAdapter(tuple[str, Path]), TypeAdapter(None)),
    "take_off": Call(TypeAdapter(tuple[str]), TypeAdapter(None)),
    "log_likelihoods": Call(
        TypeAdapter(tuple[_Models, list[Continuation]]),
        # of a model that has diverged they need not be finite
        TypeAdapter(list[list[LogLikelihood]], config=ConfigDict(ser_json_inf_nan="constants")),
    ),
    "generate": Call(
        TypeAdapter(tuple[_Models, list[Prompt]]), TypeAdapter(list[list[Generation]])
    ),
}
"""By name; those that take time also tell how far they are."""


class ShardedScorer:
    """A base and adapters in processes of their own; see ``tasks.questions.Scorer``.

    ``close`` ends the processes.
    """

    def __init__(self, plan: StudyPlan) -> None:
        """Start one process for each of the devices that hold the base together."""
        job = {
            "does": "scoring",
            "base": [plan.base.name, str(fetch_weights(plan.base)), plan.base.fingerprint],
            "device": plan.device.type,
            "precision": plan.record.precision,
            "max_batch_tokens": plan.step_tokens,
        }
        self._started = Started(job, plan.record.base_devices)
        self._numbers = itertools.count(1)

    @property
    def is_open(self) -> bool:
        """Whether the processes can be asked."""
        return self._started.is_open

    def put_on(self, name: str, folder: Path) -> None:
        self._answer("put_on", (name, folder))

    def take_off(self, name: str) -> None:
        self._answer("take_off", (name,))

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        return self._answer("log_likelihoods", (models, list(items)), advance)

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        return self._answer("generate", (models, list(prompts)), advance)

    def close(self) -> None:
        """End the processes, and wait until their memory is free."""
        self._started.close()

    def _answer(self, name: str, asked: tuple[Any, ...], advance: Advance = lambda _: None) -> Any:
        """What the processes answer.

        Raises:
            ModelError: they refuse it; or one has failed, with its last lines.
            MemoryError: a device has too little memory.
        """
        call, number = CALLS[name], next(self._numbers)
        question, answer = (self._started.folder / f"{number}-{kind}" for kind in ("asked", "said"))
        question.write_bytes(call.asked.dump_json(asked))
        self._started.say(json.dumps([name, str(question), str(answer)]))
        for event in self._started.events():
            match event:
                case {"read": num_tokens}:
                    advance(num_tokens)
                case {"answered": file, "refused": reason} if file == str(answer):
                    question.unlink()
                    if reason is not None:
                        raise ModelError(reason)
                    found = call.answered.validate_json(answer.read_bytes())
                    answer.unlink()
                    return found
                case _:  # also of a question that was not waited for
                    pass
        raise AssertionError("it answers until it is closed")
