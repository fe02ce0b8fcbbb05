"""What scoring asks of whatever holds the models: one interface, several engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

Advance = Callable[[int], None]


class Continuation(NamedTuple):
    """Tokens whose log-likelihood is asked, behind tokens that are only read.

    Attributes:
        context: token ids; at least one.
        continuation: token ids; at least one.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """What the model reads: the last token is only predicted."""
        return (self.context + self.continuation)[:-1]


class LogLikelihood(NamedTuple):
    """Of one continuation, in nats, and whether greedy decoding would have written it."""

    nats: float
    is_greedy: bool


class GenerationSettings(NamedTuple):
    """How a prompt is continued.

    Attributes:
        max_new_tokens: where it is cut off.
        stops: strings that end it; they are not part of the text.
        options: what else ``transformers.GenerationConfig`` is told, by name and sorted:
            ``do_sample``, ``temperature``, ``top_p`` ...
    """

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    options: tuple[tuple[str, float | int | bool], ...] = ()


class Prompt(NamedTuple):
    """Tokens to continue.

    Attributes:
        tokens: token ids; at least one.
        settings: how.
        draw: of a sampled text: with equal tokens and settings, equal draws give equal texts,
            whoever else is decoded at the time.
    """

    tokens: tuple[int, ...]
    settings: GenerationSettings
    draw: int = 0


class Generation(NamedTuple):
    """What a model wrote behind a prompt; not finished if it was cut off at the longest length."""

    text: str
    is_finished: bool


class Scorer(Protocol):
    """A resident model and the adapters that were put on it; they are asked together.

    In every call, ``models`` names adapters, and None is the resident model as it is. Answers
    come model by model in that order, each with one entry per item in the order of the items.
    What a model answers does not depend on the other models and items of the call.
    """

    def put_on(self, name: str, folder: Path) -> None:
        """Make an adapter known, from a folder in PEFT's layout.

        Raises:
            ModelError: it cannot be read, does not fit, or needs what the engine cannot do.
        """
        ...

    def take_off(self, name: str) -> None:
        """Forget an adapter and give its memory back."""
        ...

    def log_likelihoods(
        self,
        models: Sequence[str | None],
        items: Sequence[Continuation],
        advance: Advance = lambda _: None,
    ) -> list[list[LogLikelihood]]:
        """Score continuations; ``advance`` is told of tokens read, items times models in all."""
        ...

    def generate(
        self,
        models: Sequence[str | None],
        prompts: Sequence[Prompt],
        advance: Advance = lambda _: None,
    ) -> list[list[Generation]]:
        """Continue prompts; ``advance`` is told of tokens read and of ``max_new_tokens``."""
        ...


class RightAnswer(NamedTuple):
    """What a model reads and what it should say next.

    Attributes:
        task: in which it was asked.
        doc_id: of the item.
        context: token ids that are read.
        continuation: token ids of the answer's beginning; at least one.
    """

    task: str
    doc_id: int
    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def tokens_read(self) -> tuple[int, ...]:
        """The last token is only predicted."""
        return (self.context + self.continuation)[:-1]
