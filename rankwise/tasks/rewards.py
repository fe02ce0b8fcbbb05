"""What the texts are worth that a model learns from by reinforcement: checks, and users' functions.

A group is the texts of one model to one row; those of a step stand one group after another.
"""

from __future__ import annotations

import inspect
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rankwise.errors import DataError, RewardError, TaskError
from rankwise.records.config.objectives import Reward, RewardConfig
from rankwise.records.config.own_rows import ColumnsConfig
from rankwise.records.fields import MOST
from rankwise.tasks.answer_checks import Check, checker
from rankwise.tasks.code_guard import REMEDY
from rankwise.tasks.columns import label_of, recognise
from rankwise.tasks.own_code import named_function, number_given, timed
from rankwise.tasks.own_rows import turns_of
from rankwise.tasks.task_files import task_code
from rankwise.tasks.training_rows import AskedRow

Scale = Literal["group", "batch", "none"]

NO_SPREAD = 1e-4
"""Added to the standard deviation by which advantages are divided, as TRL has it."""

_EQUAL = 1e-8
"""Rewards that differ by less are equal: their weighted sums are rounded."""

_Numbers = list[float | None]


class Rewards:
    """What texts are worth, by each reward of a study file.

    Attributes:
        names: of the rewards, each another: of the check, or of the function.
        weights: of the rewards.
        content: all that the numbers depend on besides the rows and the texts, wherever files lie.

    Args:
        rewards: as the study file has them.
        rows: all that are asked, whose right answers the checks must be able to judge.
        columns: which column is what, where the study file says so: functions get the row's prompt.
        allow_code: whether a reward may be a user's function.

    Raises:
        DataError: code is not allowed; a right answer cannot be judged; a check has no such metric;
            a function gets no prompt, since no column of a row is one.
        TaskError: a function's file fails, or it does not take what TRL gives to it.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        rows: Sequence[AskedRow],
        *,
        columns: ColumnsConfig | None = None,
        allow_code: bool = False,
    ) -> None:
        right = {f"training row {place} (from 0)": _right(row) for place, row in enumerate(rows)}
        settings = [
            each if isinstance(each, RewardConfig) else RewardConfig(check=each) for each in rewards
        ]
        self._judges: list[_Checked | _Function] = []
        for each in settings:
            if each.code is None:
                check = checker(each.check or each, right, "rewards")
                self._judges.append(_checked(each, check, right))
            elif not allow_code:
                raise DataError(f"rewards: {each.code} is code. {REMEDY}")
            else:
                self._judges.append(_Function.of(each.code, RowReader.of(rows, columns)))
        self.weights = tuple(each.weight for each in settings)
        self.names = tuple(_distinct([judge.name for judge in self._judges]))
        self.content = json.dumps(
            [*zip((judge.content for judge in self._judges), self.weights, strict=True)]
        )

    def __call__(
        self, rows: Sequence[AskedRow], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> list[_Numbers]:
        """What each text is worth by each reward; None: the reward says nothing of it.

        Args:
            rows: the row that each text answers.
            texts: without their end.
            tokens: of each text.

        Returns:
            [reward][text].

        Raises:
            RewardError: a function fails, takes too long, or gives what are no numbers.
        """
        return [judge(rows, texts, tokens) for judge in self._judges]

    def judged(
        self,
        rows: Sequence[AskedRow],
        texts: Sequence[str],
        tokens: Sequence[Sequence[int]],
        *,
        group_size: int,
        scale: Scale,
    ) -> tuple[list[float], dict[str, Any]]:
        """The advantage of each text of a step, and the fields of ``StepRewards``.

        Args:
            rows: the row that each text answers; those to one row stand together.
            texts: without their end.
            tokens: of each text.
            group_size: texts to a row.
            scale: of what the standard deviation is taken; see ``advantages``.

        Raises:
            RewardError: as a call.
        """
        rewards = self(rows, texts, tokens)
        totals, values = advantages(rewards, self.weights, group_size, scale)
        return values, StepRewards.of(totals, rewards, self.names, group_size)._asdict()


def _right(row: AskedRow) -> str:
    return row.completion.strip()


def _kind(config: RewardConfig) -> str:
    return "json" if config.regex is None else "regex"


def _distinct(names: Sequence[str]) -> Iterator[str]:
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name}_{seen[name]}"


@dataclass(frozen=True)
class _Checked:
    """A check, of whose numbers that called ``metric`` decides; None: the first."""

    name: str
    check: Check
    metric: str | None

    @property
    def content(self) -> str:
        return " ".join(filter(None, (self.check.content, self.metric)))

    def __call__(
        self, rows: Sequence[AskedRow], texts: Sequence[str], _: Sequence[Sequence[int]]
    ) -> _Numbers:
        pairs = zip(rows, texts, strict=True)
        numbers = (self.check(text.strip(), {"completion": _right(row)}) for row, text in pairs)
        return [each[self.metric or next(iter(each))] for each in numbers]


def _checked(config: RewardConfig, check: Check, right: Mapping[str, str]) -> _Checked:
    """A check with the number that is wanted of it."""
    name = config.check or _kind(config)
    if config.metric is not None:
        numbers = dict.fromkeys(
            number for text in right.values() for number in check(text, {"completion": text})
        )
        if config.metric not in numbers:
            known = ", ".join(numbers)
            raise DataError(f"rewards: {name} has no number {config.metric}; name one of {known}.")
    return _Checked(config.metric or name, check, config.metric)


class RowReader(NamedTuple):
    """Reads rows as TRL gives them to a function.

    Attributes:
        names: of all columns that a row has; what a row lacks is None.
        wanted: the columns that the study file names.
        label: the column that is the label of each row's text.
    """

    names: tuple[str, ...]
    wanted: ColumnsConfig | None
    label: str | None

    @classmethod
    def of(cls, rows: Sequence[AskedRow], wanted: ColumnsConfig | None) -> RowReader:
        """For these rows.

        Raises:
            DataError: one has no prompt.
        """
        contents = [json.loads(row.row) for row in rows]
        names = tuple(dict.fromkeys(itertools.chain.from_iterable(contents)))
        reader = cls(names, wanted, label_of(contents))
        for place, content in enumerate(contents):
            try:
                reader.prompt(content)
            except DataError as error:
                raise DataError(f"rewards: training row {place} (from 0) {error}.") from error
        return reader

    def prompt(self, content: Mapping[str, Any]) -> Any:
        """A text, or the turns of a conversation: the row's ``prompt``, or what is read as one."""
        if self.wanted is None and "prompt" in content:
            column = "prompt"
        else:
            reading = recognise(content, self.wanted, label=self.label)
            if (column := reading.column("messages")) is not None:
                return turns_of(content[column], column)[:-1]
            column = reading.column("prompt")
        value = "" if column is None else content[column]
        is_turns = isinstance(value, list) and value and isinstance(value[0], dict)
        return turns_of(value, str(column)) if is_turns else value

    def given(
        self, rows: Sequence[AskedRow], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """What TRL's trainer calls a reward with; its state is None, and nothing is logged."""
        contents = [json.loads(row.row) for row in rows]
        prompts = [self.prompt(content) for content in contents]
        columns = {name: [content.get(name) for content in contents] for name in self.names}
        ours = {"prompt", "completion", "completion_ids"}
        return {name: values for name, values in columns.items() if name not in ours} | {
            "prompts": prompts,
            "completions": [
                [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text
                for prompt, text in zip(prompts, texts, strict=True)
            ],
            "completion_ids": [list(each) for each in tokens],
            "trainer_state": None,
            "log_extra": _log_nothing,
            "log_metric": _log_nothing,
        }


def _log_nothing(*_: object) -> None:
    """In place of what TRL logs for a function."""


@dataclass(frozen=True)
class _Function:
    """A user's function in TRL's signature; errors name it as ``where``.

    One that names ``completion`` gets the rows' right answers too, which TRL does not pass.
    """

    name: str
    where: str
    content: str
    function: Callable[..., Any]
    read: RowReader
    knows_right: bool

    @classmethod
    def of(cls, code: str, read: RowReader) -> _Function:
        name = code.rpartition(":")[2]
        function, where, content = named_function(code, "rewards")
        if inspect.iscoroutinefunction(function):
            raise TaskError(f"{where} is async; define it with def, without async.")
        remedy = "Let it take prompts, completions and columns of the rows, and end with **kwargs."
        with task_code(f"{where} cannot be called as TRL does", remedy):
            takes = inspect.signature(function)
            made = cls(name, where, content, function, read, "completion" in takes.parameters)
            takes.bind(**made.given((), (), ()))
        return made

    def given(
        self, rows: Sequence[AskedRow], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> dict[str, Any]:
        """What the function is called with."""
        given = self.read.given(rows, texts, tokens)
        return given | {"completion": [*map(_right, rows)]} if self.knows_right else given

    def __call__(
        self, rows: Sequence[AskedRow], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> _Numbers:
        try:
            return self._numbers(rows, texts, tokens)
        except TaskError as error:
            if error.__cause__ is not None and len(texts) > 1:  # it raised: find on which text
                for row, text, ids in zip(rows, texts, tokens, strict=True):
                    self([row], [text], [ids])
            raise RewardError(str(error)) from error

    def _numbers(
        self, rows: Sequence[AskedRow], texts: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> _Numbers:
        named = [self._named(row, text) for row, text in zip(rows, texts, strict=True)]
        all_named = f"{self.where} on {named[0]}{f' and {len(named) - 1} more' * (len(named) > 1)}"
        with task_code(f"{all_named} fails", "Correct it."), timed(all_named):
            values = list(self.function(**self.given(rows, texts, tokens)))
            if len(values) != len(texts):
                raise TaskError(
                    f"{all_named} gives {len(values)} rewards; give one for each of {len(texts)} "
                    "texts, or None for it."
                )
            wanted = f"a number from {-MOST:g} to {MOST:g}"
            return [
                number_given(value, f"{self.where} on {name}", -MOST, MOST, wanted)
                for name, value in zip(named, values, strict=True)
            ]

    def _named(self, row: AskedRow, text: str) -> str:
        prompt = self.read.prompt(json.loads(row.row))
        shown = prompt[-1]["content"] if isinstance(prompt, list) and prompt else prompt
        return f"the text {text[:60]!r} to {str(shown)[:60]!r}"


def advantages(
    rewards: Sequence[Sequence[float | None]],
    weights: Sequence[float],
    group_size: int,
    scale: Scale,
) -> tuple[_Numbers, list[float]]:
    """The total of each text, and by how much it is better than its group, as TRL has them.

    A total is the weighted sum of the rewards that say something of a text. An advantage is its
    difference to the mean of the group, divided by the unbiased standard deviation of the group, or
    of all texts, plus ``NO_SPREAD``.

    Args:
        rewards: [reward][text].
        weights: of the rewards.
        group_size: texts to a row, which stand together.
        scale: of what the standard deviation is taken; ``none``: nothing is divided.

    Returns:
        Totals (None where no reward says anything), and advantages (0 there).
    """
    totals = [_total(each, weights) for each in zip(*rewards, strict=True)]
    of_all = _deviation(totals)
    found: list[float] = []
    for group in _groups(totals, group_size):
        mean = _mean(group) or 0.0
        deviation = of_all if scale == "batch" else _deviation(group)
        divisor = 1.0 if scale == "none" else deviation + NO_SPREAD
        found += [0.0 if total is None else (total - mean) / divisor for total in group]
    return totals, found


def _total(rewards: Sequence[float | None], weights: Sequence[float]) -> float | None:
    parts = [w * reward for w, reward in zip(weights, rewards, strict=True) if reward is not None]
    return math.fsum(parts) if parts else None


def _groups(totals: Sequence[float | None], size: int) -> Iterator[Sequence[float | None]]:
    return (totals[begin : begin + size] for begin in range(0, len(totals), size))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _deviation(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return statistics.stdev(known) if len(known) > 1 else 0.0


class StepRewards(NamedTuple):
    """What the texts of a step were worth.

    Attributes:
        reward: the mean total; None: no text has one.
        rewards: the mean of each reward by its name; None: it said nothing.
        no_spread_share: of the groups, whose totals do not differ: nothing is learned there.
    """

    reward: float | None
    rewards: Mapping[str, float | None]
    no_spread_share: float

    @classmethod
    def of(
        cls,
        totals: Sequence[float | None],
        rewards: Sequence[Sequence[float | None]],
        names: Sequence[str],
        group_size: int,
    ) -> StepRewards:
        """Of one model's texts of a step, at least one.

        Args:
            totals: of each text, as ``advantages`` gives them.
            rewards: [reward][text].
            names: of the rewards.
            group_size: texts to a row, which stand together.
        """
        groups = _groups(totals, group_size)
        known = ([each for each in group if each is not None] for group in groups)
        spreads = [max(group, default=0.0) - min(group, default=0.0) for group in known]
        return cls(
            reward=_mean(totals),
            rewards={name: _mean(each) for name, each in zip(names, rewards, strict=True)},
            no_spread_share=statistics.fmean(spread <= _EQUAL for spread in spreads),
        )
