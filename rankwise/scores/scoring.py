"""What a model scored on a task, item by item: the one form of tables and logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rankwise.records.study import Unit
from rankwise.scores.models import ScoredModel


class Item(NamedTuple):
    """One answer: where it stands, and a line as lm-eval logs it, with the score in it."""

    place: str
    line: dict[str, Any]


def answered(
    metric: str,
    value: float,
    *,
    prompt: Any = None,
    target: Any = None,
    answer: Any = None,
) -> dict[str, Any]:
    """An answer as lm-eval would log it, without its document; what is None is not in it."""
    line: dict[str, Any] = {"filter": "none", "metrics": [metric], metric: value}
    if prompt is not None:
        line["arguments"] = {"gen_args_0": {"arg_0": str(prompt)}}
    if target is not None:
        line["target"] = str(target)
    if answer is not None:
        line |= {"resps": [[str(answer)]], "filtered_resps": [str(answer)]}
    return line


class Scoring(NamedTuple):
    """One model on one task.

    Attributes:
        model: with what columns say of it.
        task: its name.
        metric: under which the score stands in a line.
        items: by what identifies them in all models; ``Item.line`` lacks ``doc_id``.
        unit: of the score; None: by the values of all models.
        higher_is_better: None: nobody says.
        filter: of the lines.
        output_type: lm-eval's name for the kind of request.
        decides: the metric that decides, if not ``metric``; None: that, or p(right) with options.
    """

    model: ScoredModel
    task: str
    metric: str
    items: dict[Any, Item]
    unit: Unit | None = None
    higher_is_better: bool | None = None
    filter: str = "none"
    output_type: str = "generate_until"
    decides: str | None = None


class Given(NamedTuple):
    """Everything that was read.

    Attributes:
        scorings: in the order in which they were found.
        files: name -> sha256.
        columns: role -> column of the tables among them.
        base: the model that stands first where the first is the base; None: its name says it.
        notes: what is worth knowing.
    """

    scorings: list[Scoring]
    files: Mapping[str, str]
    columns: Mapping[str, str] = {}
    base: str | None = None
    notes: tuple[str, ...] = ()
