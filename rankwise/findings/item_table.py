"""Item by item: what was asked, what is right, and what every model answered.

For a reader who wants to see what was learnt and forgotten. No finding rests on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rankwise.findings.models import seeded_labels
from rankwise.findings.pairs import run_record, trained
from rankwise.records.axes import Kind
from rankwise.records.deployment import ChangedAnswer
from rankwise.records.folder import BASE
from rankwise.records.p_right import Line, highest, option_nats, requests_of, right_options
from rankwise.records.results import ModelResults, StudyResults
from rankwise.records.study import Relation

MOST_LETTERS = 4_000
"""Letters that are kept of an answer, and of a prompt: its end, where the question stands."""

ReadSamples = Callable[[str, str], Sequence[Line]]
"""The lines of a model on a task, as lm-eval logs them.

Raises:
    RecordError: there are none, or they are not those that were scored.
"""


class ShownModel(NamedTuple):
    """A column: the base first, then runs in the order of their ranks, full fine-tuning last."""

    label: str
    kind: Kind
    name: str = BASE
    """Name of the run."""


class ShownTask(NamedTuple):
    """A task that is scored right or wrong, with the relation it has to the trained task."""

    name: str
    relation: Relation


class ShownItem(NamedTuple):
    """An item.

    Attributes:
        task: its place in the tasks.
        doc_id: of lm-eval.
        prompt: what was asked; empty without texts.
        right: the right answer; empty where it is not known.
        options: to choose from; empty for generations.
    """

    task: int
    doc_id: int
    prompt: str
    right: str
    options: tuple[str, ...]


class Answers(NamedTuple):
    """A model's answers, in the order of the items.

    Attributes:
        is_right: None where it was not asked.
        margins: the right option's log-likelihood less the best other's, in nats; None where the
            item has no options, or its right one is not known.
        answers: the place of the option that was chosen, else the text.
        comes_back: right where the item was asked as in the training, and wrong here.
    """

    is_right: list[bool | None]
    margins: list[float | None]
    answers: list[int | str | None]
    comes_back: list[bool]


class ItemTable(NamedTuple):
    """All items of the tasks whose items are right or wrong, with the answers of every model."""

    models: list[ShownModel]
    tasks: list[ShownTask]
    items: list[ShownItem]
    answers: list[Answers]


class ItemRow(NamedTuple):
    """A model's answer to an item, beside the base's.

    Attributes:
        task: that was scored.
        relation: of the task to the trained task.
        doc_id: of lm-eval.
        model: the run's name, or "base".
        label: what tells it from the others, such as "rank 16".
        base_is_right: whether the untouched base was.
        is_right: whether the model was.
        margin_nats: as in ``Answers``.
        answer: the option that was chosen, or the text.
        right: the right answer; empty where it is not known.
        prompt: what was asked.
    """

    task: str
    relation: Relation
    doc_id: int
    model: str
    label: str
    base_is_right: bool
    is_right: bool
    margin_nats: float | None
    answer: str
    right: str
    prompt: str


def item_rows(table: ItemTable) -> Iterator[ItemRow]:
    """Every answer of every model, item by item; models that were not asked have no row."""
    base = table.answers[0]
    for model, answers in zip(table.models, table.answers, strict=True):
        for place, item in enumerate(table.items):
            is_right, said = answers.is_right[place], answers.answers[place]
            if is_right is None:
                continue
            task = table.tasks[item.task]
            yield ItemRow(
                task=task.name,
                relation=task.relation,
                doc_id=item.doc_id,
                model=model.name,
                label=model.label,
                base_is_right=bool(base.is_right[place]),
                is_right=is_right,
                margin_nats=answers.margins[place],
                answer=_in_words(item, said),
                right=item.right,
                prompt=item.prompt,
            )


def changed_answers(
    reference: ModelResults, form: ModelResults, read: ReadSamples
) -> Iterator[ChangedAnswer]:
    """The items that only one of two models gets right, by task; lost ones come first.

    Tasks whose items are neither right nor wrong have none.

    Raises:
        RecordError: samples cannot be read.
    """
    for task in [task for task, items in reference.items.items() if items.unit == "points"]:
        before, after = (Answers([], [], [], []) for _ in range(2))
        table = ItemTable([], [], [], [before, after])
        _add(table, 0, [reference, form], task, None, read, with_texts=True)
        places = range(len(table.items))
        changed = [place for place in places if before.is_right[place] != after.is_right[place]]
        for place in sorted(changed, key=lambda place: bool(after.is_right[place])):
            item = table.items[place]
            yield ChangedAnswer(
                form=form.name,
                task=task,
                doc_id=item.doc_id,
                prompt=item.prompt,
                right=item.right,
                reference_answer=_in_words(item, before.answers[place]),
                form_answer=_in_words(item, after.answers[place]),
                is_lost=bool(before.is_right[place]),
            )


def item_table(
    results: StudyResults, read: ReadSamples, *, with_texts: bool = True
) -> ItemTable | None:
    """The items of every trained task; None where no task's items are right or wrong.

    Args:
        results: of the study.
        read: its samples.
        with_texts: without, prompts and answers are left out.

    Raises:
        RecordError: samples cannot be read.
    """
    runs = list(trained(results.runs))
    plans = {run.name: run_record(run).planned for run in runs}
    runs.sort(key=lambda run: (not plans[run.name].rank, plans[run.name].rank or 0, run.name))
    labels = seeded_labels([plans[run.name] for run in runs])
    several = len(results.by_train_task) > 1
    models = [ShownModel(results.study.base_label, "base")]
    for run in runs:
        plan = plans[run.name]
        after = f", trained on {plan.train_task}" if several else ""
        models.append(ShownModel(f"{labels[run.name]}{after}", plan.rank or "full", run.name))
    table = ItemTable(models, [], [], [Answers([], [], [], []) for _ in models])
    seen: set[str] = set()
    for part in results.by_train_task:
        for relation, tasks in part.tasks.items():
            for task in tasks:
                base = results.base.items.get(task)
                if task in seen or base is None or base.unit != "points":
                    continue
                seen.add(task)
                place = len(table.tasks)
                table.tasks.append(ShownTask(task, relation))
                formats = part.trained_formats.get(task)
                _add(table, place, [results.base, *runs], task, formats, read, with_texts)
    return table if table.items else None


def _add(
    table: ItemTable,
    place: int,
    models: Sequence[ModelResults],
    task: str,
    trained_format: str | None,
    read: ReadSamples,
    with_texts: bool,
) -> None:
    """The items of one task, and every model's answers to them."""
    base = models[0].items[task].by_accuracy
    lines = _lines(read, models[0], task)
    right = right_options([lines[doc_id] for doc_id in base.doc_ids])
    # options are ordered here by their log-likelihoods, as acc orders them and acc_norm does not
    is_ordered = base.metric == "acc"
    for number, doc_id in enumerate(base.doc_ids):
        if not with_texts:
            table.items.append(ShownItem(place, doc_id, "", "", ()))
            continue
        line = lines[doc_id]
        requests, nats = requests_of(line), option_nats(line)
        prompt = str(requests[0][0])[-MOST_LETTERS:] if requests else ""
        options = tuple(str(each[-1]).strip()[:MOST_LETTERS] for each in requests[: len(nats)])
        known = [options[at] for at in (right[number] if right else ()) if at < len(options)]
        answer = " / ".join(known) if nats else _text(line.get("target"))
        table.items.append(ShownItem(place, doc_id, prompt, answer, options))
    for model, answers in zip(models, table.answers, strict=True):
        is_right_on, back = _right_in(model, task), _right_in(model, trained_format)
        own = lines if model is models[0] or not is_right_on else _lines(read, model, task)
        for number, doc_id in enumerate(base.doc_ids):
            is_right, margin, said = is_right_on.get(doc_id), None, None
            if is_right is not None and (nats := option_nats(own[doc_id])):
                said = highest(nats) if is_ordered else None
                margin = _margin(nats, right[number]) if is_ordered and right else None
            elif is_right is not None and with_texts:
                said = _text(own[doc_id].get("filtered_resps"))
            answers.is_right.append(is_right)
            answers.margins.append(margin)
            answers.answers.append(said)
            answers.comes_back.append(is_right is False and back.get(doc_id, False))


def _lines(read: ReadSamples, model: ModelResults, task: str) -> Mapping[int, Line]:
    wanted = model.evaluations[task].decision_filter
    return {
        int(line["doc_id"]): line for line in read(model.name, task) if line["filter"] == wanted
    }


def _right_in(model: ModelResults, task: str | None) -> dict[int, bool]:
    """Item that was answered -> whether it is right: of several draws, most."""
    if task is None or task not in model.items:
        return {}
    items = model.items[task].by_accuracy
    items = items.scored or items
    values = items.plain or items.values
    return {doc: value > 0.5 for doc, value in zip(items.doc_ids, values, strict=True)}


def _margin(nats: Sequence[float], right: Iterable[int]) -> float | None:
    places = {place for place in right if place < len(nats)}
    others = [value for place, value in enumerate(nats) if place not in places]
    if not places or not others:
        return None
    return max(nats[place] for place in places) - max(others)


def _in_words(item: ShownItem, said: int | str | None) -> str:
    """The text of an answer; an option whose text is not known is its place."""
    if isinstance(said, int) and said < len(item.options):
        return item.options[said]
    return "" if said is None else str(said)


def _text(value: Any) -> str:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return str(value)[:MOST_LETTERS]
