"""The interface between scoring and the engines: questions, answers, and ``Scorer``."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from typing import NamedTuple, Protocol

Advance = Callable[[int], None]


class Continuation(NamedTuple):
    """Tokens whose log-likelihood is wanted, after tokens that are only read.

    Attributes:
        context: token ids; at least one.
        continuation: token ids; at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """The tokens that the model reads: the last one is only predicted."""
        return (self.context + self.continuation)[:-1]


def shared_length(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """How many tokens both begin with; by bisection, since tuples are compared in C."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class LogLikelihood(NamedTuple):
    """A continuation's log-likelihood in nats, and whether greedy decoding would write it."""

    nats: float
    is_greedy: bool


MOST_NEW_TOKENS = 256
"""Tokens of an answer to a person's question, at most, unless another number is given."""


_OF_SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}


class GenerationSettings(NamedTuple):
    """How a prompt is continued.

    Attributes:
        max_new_tokens: maximum length.
        stops: strings that end the text; they are not part of it.
        options: further options of ``transformers.GenerationConfig``, sorted by name:
            ``do_sample``, ``temperature``, ``top_p`` ...
        plain_temperature: tokens are drawn from the model's whole distribution at this temperature,
            and of its generation config only the tokens count that end a text; None: all of it
            counts, changed by ``options``.
    """

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    options: tuple[tuple[str, float | int | bool], ...] = ()
    plain_temperature: float | None = None

    @property
    def changes_of_greedy(self) -> tuple[str, ...]:
        """The options by which a text is another than the likeliest token, one after another."""
        return tuple(name for name, _ in self.options if name not in _OF_SAMPLING)


class Prompt(NamedTuple):
    """Tokens to continue.

    Attributes:
        tokens: token ids; at least one.
        settings: how to continue them.
        draw: seed of a sampled text: with equal tokens and settings, equal draws give equal texts,
            whatever else is decoded at the same time.
    """

    tokens: tuple[int, ...]
    settings: GenerationSettings
    draw: int = 0


class Generation(NamedTuple):
    """The text that a model wrote; not finished if it was cut at the maximum length."""

    text: str
    is_finished: bool


class Scorer(Protocol):
    """A resident model and its attached adapters, which are scored together.

    In every call, ``models`` names adapters, and None is the resident model itself. Answers come
    model by model in that order, with one entry per item in the order of the items. A model's
    answers do not depend on the other models and items of the call.
    """

    @property
    def attached(self) -> Set[str]:
        """The names of the adapters that are attached."""
        ...

    def take_off(self, name: str) -> None:
        """Detach an adapter and free its memory."""
        ...

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations; ``advance`` receives the tokens read, for every item and model."""
        ...

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue prompts; ``advance`` receives the tokens read, and ``max_new_tokens``."""
        ...


class RightAnswer(NamedTuple):
    """A prompt and the beginning of its right answer.

    Attributes:
        task: name of the task.
        doc_id: the item's number.
        context: token ids that are read.
        continuation: token ids of the answer's beginning; at least one.
    """

    task: str
    doc_id: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """The tokens that the model reads: the last one is only predicted."""
        return (self.context + self.continuation)[:-1]
