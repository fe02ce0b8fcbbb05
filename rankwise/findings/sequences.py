"""What later tasks leave of an earlier one, where tasks are trained one after the other.

A run after the later ones is compared with the run on the earlier task that it comes from, on the
items of that task. Exploratory: the verdict on a task is about that task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rankwise.findings.comparison import Compared, compare
from rankwise.findings.options import DecidingTasks, Option, OptionGains, TrainTaskFinding
from rankwise.findings.shares import Share, share_of_gain
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.study import PlannedRun, State


class LeftOfTask(Compared):
    """What is left of an earlier task, on its in-domain items.

    ``against`` is the run on that task, so the ``lead`` is what all tasks since then changed there;
    ``gain`` is what is left over the base, and ``kept`` that as a share of the gain before.
    It ``keeps_enough`` where the change is shown to be above minus the margin.
    """

    earlier: str
    kept: Share
    keeps_enough: State


class TrainTaskSequence(TrainTaskFinding):
    """What a trained task, the later one, leaves of those before it, nearest first.

    ``margins`` are the acceptable losses by earlier task, in its unit: ε of retention, δ where
    there is none or the task is scored in nats.
    """

    margins: dict[str, float]
    rows: tuple[LeftOfTask, ...]

    @property
    def by_earlier(self) -> dict[str, list[LeftOfTask]]:
        """The rows of each earlier task."""
        earlier = dict.fromkeys(row.earlier for row in self.rows)
        return {task: [row for row in self.rows if row.earlier == task] for task in earlier}


def sequences(
    sources: Sequence[OptionGains], recommendation: StudyRecommendation
) -> tuple[TrainTaskSequence, ...]:
    """What every later task leaves of those before it; empty where none comes after another.

    Args:
        sources: the options of every trained task.
        recommendation: of the study, for the units in-domain.
    """
    of_part = {source.results.train_task: source for source in sources}
    judged = {part.train_task: part for part in recommendation.by_train_task}
    train = sources[0].results.study.config.train
    margins = {name: _margin(part) for name, part in judged.items()}
    found: list[TrainTaskSequence] = []
    for name, source in of_part.items():
        rows: list[LeftOfTask] = []
        for before in train.before(name) if train.sequence is not None else ():
            earlier = of_part.get(before.name)
            if earlier is not None:
                tasks = earlier.deciding_tasks(judged[before.name].unit)
                rows += _left_of(earlier, source, tasks, margins[before.name])
        if rows:
            own = {row.earlier: margins[row.earlier] for row in rows}
            its = source.found(TrainTaskSequence, margins=own, rows=tuple(rows))
            said = tuple(_statements(its))
            found.append(its.model_copy(update={"statements": said}))
    return tuple(found)


def _margin(part: Recommendation) -> float:
    if part.unit == "points" and part.epsilon_points is not None:
        return part.epsilon_points
    return part.delta


def _left_of(
    earlier: OptionGains, later: OptionGains, tasks: DecidingTasks, margin: float
) -> Iterator[LeftOfTask]:
    """Every option of a later task, and its arms against forgetting, on an earlier task."""
    arms, _ = later.of_role("mitigated")
    planned = {model.name: model for model in later.results.study.models}
    for option in (*later.options, *arms):
        start = _start_of(option, planned, earlier)
        if start is None:
            continue
        before = start._replace(label=f"{start.label} on {earlier.results.train_task}")
        row = compare(
            LeftOfTask,
            earlier,
            tasks,
            option,
            before,
            earlier=earlier.results.train_task,
            kept=share_of_gain(earlier, option.runs, start.runs, tasks.in_domain),
            keeps_enough="undecided",
        )
        assert row.lead is not None
        keeps: tuple[State, ...] = ("no", "undecided", "yes")
        yield row.model_copy(update={"keeps_enough": keeps[row.lead.sign(at=-margin) + 1]})


def _start_of(
    option: Option, planned: Mapping[str, PlannedRun], earlier: OptionGains
) -> Option | None:
    """The option of an earlier task from which the runs of a later one went on."""
    names: list[str] = []
    for record in option.records:
        run = record.planned
        while run.after is not None and run.train_task != earlier.results.train_task:
            run = planned[run.after.name]
        names.append(run.name)
    for start in earlier.options:
        if [run.name for run in start.runs] == names:
            return start
    return None


def _statements(found: TrainTaskSequence) -> Iterator[str]:
    for earlier, rows in found.by_earlier.items():
        for row in rows:
            assert row.lead is not None
            kept = row.kept.in_words
            left = (
                f"it keeps {kept} of its gain"
                if kept
                else "its gain was not shown to be above zero"
            )
            change = quantities.with_interval(row.lead, row.lead.unit)
            yield (
                f"{found.train_task}: since it was trained on {earlier}, {row.label} changed by "
                f"{change} there; {left}."
            )
        assert rows[0].lead is not None
        limit = quantities.amount(found.margins[earlier], rows[0].lead.unit)
        enough = [row.label for row in rows if row.keeps_enough == "yes"]
        which = "; ".join(enough) or "none"
        yield f"{found.train_task}: shown to lose at most {limit} of {earlier}: {which}."
