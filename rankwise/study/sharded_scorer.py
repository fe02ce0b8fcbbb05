"""Scores of a base model that no device holds alone: several processes hold it together."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter

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
        TypeAdapter(tuple[_Models, list[Continuation]]), TypeAdapter(list[list[LogLikelihood]])
    ),
    "generate": Call(
        TypeAdapter(tuple[_Models, list[Prompt]]), TypeAdapter(list[list[Generation]])
    ),
}
"""By name; those that take time also tell how far they are."""


class ShardedScorer:
    """A base and adapters in processes of their own; see ``tasks.questions.Scorer``.

    ``close`` ends the processes.

    Attributes:
        is_open: whether they can be asked.
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
        self._started, self.is_open = Started(job, plan.record.base_devices), True
        self._numbers = itertools.count(1)

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
        self.is_open = False
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
        said: dict[str, Any] = {}
        while (event := self._started.next_event()) is not None:
            match event:
                case {"read": num_tokens}:
                    advance(num_tokens)
                case {"answered": _}:
                    found = call.answered.validate_json(answer.read_bytes())
                    question.unlink()
                    answer.unlink()
                    return found
                case {"refused": reason}:
                    raise ModelError(reason)
                case _:
                    said = {**event, **said}  # what failed first is the reason of the rest
        error = self._started.error(said)
        self.close()
        raise error
