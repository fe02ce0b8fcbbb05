"""A first study of users' own rows: judged by what fits them, as large as a time allows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rankwise.engine.models.base_folder import find_base_model
from rankwise.engine.models.loading import load_tokenizer
from rankwise.errors import DataError
from rankwise.records import quantities
from rankwise.records.config.own_rows import ColumnsConfig, JudgeName
from rankwise.records.config.study import BaseModelConfig, StudyConfig
from rankwise.records.files import in_words
from rankwise.records.json_reading import parse_json
from rankwise.records.p_right import P_RIGHT
from rankwise.records.study import Unit
from rankwise.records.study_file import margins_text
from rankwise.records.yaml_reading import dumped_yaml
from rankwise.study.budgets import SURE_SHARE, Fitted, largest_that_fits, planned_seconds
from rankwise.study.planning.plan import StudyPlan
from rankwise.tasks.own_rows import OwnRows, read_own_rows
from rankwise.tasks.user_data import ends_in_number

LONGEST_CHOICE, MOST_CHOICES, ROWS_PER_CHOICE = 50, 20, 5
"""Rows are a choice if their answers have at most so many characters, there are at most so many
distinct ones, and of each so many rows on average."""

NUMBERS_HELD_OUT = 200
"""Below so many held-out rows, written numbers tell too little, and the loss decides."""

HELD_OUT_SHARE, MOST_HELD_OUT = 0.3, 500
"""The share of the rows that is held out, and the most rows: of few rows, a verdict needs more than
training does."""

FEWEST_HELD_OUT = 100
"""With fewer held-out rows only large differences between ranks are seen."""

LARGE_FILE = 10 << 20
"""Bytes of a file that takes seconds to be read."""

RETENTION = ("capitals", "continents", "elements")
"""Bundled tasks of what a base knows."""


class Size(NamedTuple):
    """How large a study is.

    Attributes:
        ranks: of LoRA.
        num_rows: to train on, at most; None: all.
        epochs: how often each is read.
        num_items: of each task, at most; None: all.
        retention: bundled tasks of what the base knows.
        prose: whether the loss on bundled prose is measured.
        has_full: whether full fine-tuning is trained too.
        is_analysed: whether trained rows are scored, and heads, weights and next words compared.
        is_prompted: whether the base is asked with rows in its prompt too.
    """

    ranks: tuple[int, ...]
    num_rows: int | None
    epochs: int
    num_items: int | None
    retention: tuple[str, ...] = RETENTION
    prose: bool = True
    has_full: bool = False
    is_analysed: bool = False
    is_prompted: bool = False


SIZES = (
    Size((16,), 32, 1, 20, ("capitals",), prose=False),
    Size((8, 32), 40, 1, 24, ("capitals",), prose=False),
    Size((8, 32), 64, 1, 30, ("capitals",), prose=False),
    Size((8, 32), 100, 1, 40, ("capitals", "elements"), prose=False),
    Size((8, 32), 160, 1, 60, prose=False),
    Size((4, 16, 64), 160, 1, 80, prose=False),
    Size((4, 16, 64), 200, 2, 100),
    Size((4, 16, 64), 200, 2, 100, is_prompted=True),
    Size((4, 16, 64), 400, 2, 200, is_prompted=True),
    Size((4, 16, 64), 1000, 3, 200, has_full=True, is_analysed=True, is_prompted=True),
    Size((4, 16, 64), 4000, 3, 500, has_full=True, is_analysed=True, is_prompted=True),
    Size((4, 16, 64, 256), None, 3, None, has_full=True, is_analysed=True, is_prompted=True),
)
"""The sizes from small to large: first more ranks and items, then more rows, then what explains a
verdict."""


class Trial(NamedTuple):
    """Rows, and what they say about how to study them.

    Attributes:
        data: the file, absolute, or the data set at its commit.
        base_model: as a study file names it.
        own: the rows.
        has_chat_template: whether the model's tokenizer has one.
        judged_by: how held-out rows are scored.
        held_out_fraction: of the rows.
        columns: which column is what, if that was said.
    """

    data: Path
    base_model: str
    own: OwnRows
    has_chat_template: bool
    judged_by: JudgeName
    held_out_fraction: float
    columns: ColumnsConfig | None

    @property
    def num_held_out(self) -> int:
        """Rows that are scored and not trained on."""
        return max(1, round(self.held_out_fraction * len(self.own.rows)))


def recognised(
    data: Path, model: str, columns: ColumnsConfig | None, report: Callable[[str], None]
) -> Trial:
    """Read rows, and see how a model can be studied on them.

    Args:
        data: a file, or the name of a data set of the Hub.
        model: an embedded model, a folder or a hub name.
        columns: which column is what; None: as their names say.
        report: receives a line for each download and conversion.

    Raises:
        DataError: the rows cannot be read, or are too few.
        ModelError: the model cannot be had.
    """
    if os.path.isdir(Path(model).expanduser()):
        model = str(Path(model).expanduser().resolve())
    base = find_base_model(BaseModelConfig(name=model), report, weights=False)
    tokenizer = load_tokenizer(base.folder)
    has_chat = bool(tokenizer.chat_template)
    if os.path.exists(data):
        data = data.resolve()
        if (num_bytes := data.stat().st_size) > LARGE_FILE:
            report(f"reading {data.name} ({in_words(num_bytes)})")
    own = read_own_rows(data, tokenizer, chat_template=has_chat, columns=columns)
    count = len(own.rows)
    if count < 10:
        raise DataError(
            f"{own.raw.source} has {count} distinct rows, too few to train on some and score the "
            "others. Give it at least 10; 200 or more are useful."
        )
    fraction = float(f"{min(HELD_OUT_SHARE, MOST_HELD_OUT / count):.2g}")
    return Trial(
        data=data if own.raw.revision is None else Path(own.raw.source),
        base_model=model,
        own=own,
        has_chat_template=has_chat,
        judged_by=_judged_by([row.completion for row in own.rows], round(fraction * count)),
        held_out_fraction=fraction,
        columns=ColumnsConfig(**own.guessed) if own.needs_columns and own.guessed else columns,
    )


def _judged_by(answers: Sequence[str], num_held_out: int) -> JudgeName:
    distinct = set(answers)
    if (
        2 <= len(distinct) <= min(MOST_CHOICES, len(answers) // ROWS_PER_CHOICE)
        and max(map(len, distinct)) <= LONGEST_CHOICE
    ):
        return "choice"
    if all(map(_is_object, answers)):
        return "json"
    if num_held_out >= NUMBERS_HELD_OUT and all(map(ends_in_number, answers)):
        return "number"
    return "loss"


def _is_object(answer: str) -> bool:
    """Whether an answer is a JSON object, whose fields can be compared."""
    try:
        return isinstance(parse_json(answer), dict)
    except ValueError:
        return False


def settings_of(trial: Trial, size: Size, name: str, folder: Path | None = None) -> dict[str, Any]:
    """The study file's content; the file's path is relative to ``folder``, if that is given."""
    data = str(trial.data)
    if folder is not None and trial.data.is_absolute():
        data = os.path.relpath(trial.data, folder.resolve())
    columns = {} if trial.columns is None else {"columns": trial.columns.by_role}
    analysis = {} if size.is_analysed else {"spectra": False, "heads": False, "gauges": False}
    train = {
        "data": data,
        **columns,
        "held_out_fraction": trial.held_out_fraction,
        "judged_by": trial.judged_by,
        "max_examples": size.num_rows,
        "epochs": size.epochs,
        "batch_size": 8 if (size.num_rows or len(trial.own.rows)) > 200 else 4,
        "gradient_accumulation_steps": 1,
        "chat_template": trial.has_chat_template,
    }
    return {
        "name": name,
        "base_model": trial.base_model,
        "train": train,
        "methods": {
            "lora": {"ranks": [*size.ranks]},
            "full": {} if size.has_full else None,
            **({"prompt": {"shots": [2, 5]}} if size.is_prompted else {}),
        },
        "seeds": [0],
        "evaluation": {
            "retention": [*size.retention],
            "held_out_text": ["pydoc_topics"] if size.prose else [],
            "limit": size.num_items,
            "trained_format": False,
            "num_train_items": 100 if size.is_analysed else 0,
        },
        "analysis": analysis,
    }


def fitted(
    trial: Trial,
    name: str,
    budget_seconds: float,
    scored_per_second: float | None,
    plan: Callable[[StudyConfig], StudyPlan],
) -> Fitted[Size]:
    """The largest size whose plan fits into a time, or the smallest if none does.

    Args:
        trial: the rows.
        name: of the study.
        budget_seconds: the time.
        scored_per_second: tokens, on the machine that is here; None: as it is remembered.
        plan: makes the plan of a config.

    Raises:
        PlanError: the study cannot be planned at any size.
    """

    def planned(size: Size) -> StudyPlan:
        return plan(StudyConfig.model_validate(settings_of(trial, size, name)))

    return largest_that_fits(SIZES[::-1], planned, budget_seconds, scored_per_second)


class Enough(NamedTuple):
    """The smallest study that can answer the question, and the budget that holds it."""

    num_ranks: int
    num_held_out: int
    budget_seconds: float


def enough(
    trial: Trial,
    name: str,
    size: Size,
    scored_per_second: float | None,
    plan: Callable[[StudyConfig], StudyPlan],
) -> Enough | None:
    """What budget holds several ranks and 100 held-out rows; None where a study of this size does.

    Of fewer held-out rows all are enough.
    """
    rows = min(FEWEST_HELD_OUT, trial.num_held_out)

    def answers(of: Size) -> bool:
        return len(of.ranks) > 1 and (of.num_items is None or of.num_items >= rows)

    smallest = next(filter(answers, SIZES), None)
    if answers(size) or smallest is None:
        return None
    made = plan(StudyConfig.model_validate(settings_of(trial, smallest, name)))
    seconds = planned_seconds(made, scored_per_second) / SURE_SHARE
    num_held_out = min(smallest.num_items or trial.num_held_out, trial.num_held_out)
    return Enough(len(smallest.ranks), num_held_out, seconds)


def left_out(trial: Trial, size: Size) -> Iterator[str]:
    """What a study of this size does without, in words."""
    num_trained = len(trial.own.rows) - trial.num_held_out
    if size.num_rows is not None and size.num_rows < num_trained:
        yield f"{quantities.count(num_trained - size.num_rows)} of the rows to train on"
    if size.num_items is not None and size.num_items < trial.num_held_out:
        yield f"{quantities.count(trial.num_held_out - size.num_items)} held-out rows"
    if missing := [task for task in RETENTION if task not in size.retention]:
        yield f"retention on {quantities.listed(missing)}"
    if not size.prose:
        yield "the loss on plain prose"
    if not size.is_prompted:
        yield "rows in the prompt, in place of training"
    if not size.has_full:
        yield "full fine-tuning"
    if not size.is_analysed:
        yield "why: weights, heads and trained rows"
    yield "other seeds, which tell luck from rank"


def study_file_text(trial: Trial, settings: dict[str, Any], first_line: str) -> str:
    """A study file as text, with the margins that it is judged by."""
    content = dumped_yaml(settings)
    unit: Unit = "nats" if trial.judged_by == "loss" else "points"
    metric = P_RIGHT if trial.judged_by == "choice" else trial.judged_by
    return f"# {first_line}\n{content}{margins_text(unit, metric)}"
