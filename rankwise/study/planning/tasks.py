"""The tasks of a study, and the validation items by which runs and checkpoints are chosen.

Items of the trained task come from its training split: rows that are not trained on because of
``train.max_examples`` where there are enough, else rows that are held out for it. Items of other
tasks come from a split of theirs that is not scored.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from rankwise.errors import DataError, TaskError
from rankwise.records import quantities
from rankwise.records.config.study import ENDING_SUFFIX, StudyConfig
from rankwise.records.config.training import TrainedPart
from rankwise.records.grouping import grouped
from rankwise.records.own_data import OwnData
from rankwise.records.results import MIN_ITEMS
from rankwise.records.study import RELATIONS, PromptedTask, Relation, StudyTasks
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import StudyModel
from rankwise.tasks.columns import OPTIONS
from rankwise.tasks.formats import TrainedFormat, in_trained_format, trained_format
from rankwise.tasks.overlap import find_overlap
from rankwise.tasks.requests import PreparedTask, prepare_task, prepared_task
from rankwise.tasks.resolution import GENERAL, LoadedTask, Unloaded, load_tasks, tasks_of_general
from rankwise.tasks.training_rows import (
    TrainingRow,
    num_documents,
    task_rows,
    trained_items,
    validation_items,
    with_documents,
    with_examples,
)
from rankwise.tasks.user_data import (
    UserData,
    behind_rows,
    ending_items,
    load_own_set,
    load_user_data,
)

CHOSEN_BY: tuple[Relation, ...] = ("in_domain", "retention")
"""The relations that a search looks at."""

MOST_HELD_OUT = 0.25
"""The largest share of the training rows that is held out: held-out rows are not learned."""

_SEED = 20260103
"""Fixed, so that the same rows are held out whenever a study is planned."""


def _chosen(loaded: LoadedTask, places: Sequence[int], number: int) -> list[int]:
    """Some of the places at random, always the same, in order."""
    rng = random.Random(f"{_SEED} {loaded.name}")
    return sorted(rng.sample(list(places), min(number, len(places))))


Leaves = dict[Relation, dict[str, LoadedTask]]


class TaskPlan(NamedTuple):
    """What a study trains on and scores.

    Attributes:
        rows: trained task -> the rows to train on.
        order: trained task -> their places; runs on fewer rows take the first. Those of a group
            come in turn, so that it gives equal shares whatever their number.
        scored: which tasks are scored, and why; goes into the study's record.
        prepared: every task that is scored, with its requests.
        own_data: what was read of users' own rows to train on; None without them.
        own_sets: what was read of those that are scored only.
        clusters: task of own rows -> the column that clusters its items.
    """

    rows: dict[str, list[TrainingRow]]
    order: dict[str, tuple[int, ...]]
    scored: StudyTasks
    prepared: list[PreparedTask]
    own_data: OwnData | None
    own_sets: Mapping[str, OwnData]
    clusters: Mapping[str, str]


class _Source(NamedTuple):
    """One thing to train on: how it asks, and what is scored for it.

    Attributes:
        name: of the trained task.
        task: as lm-eval knows it, or the name of own rows.
        rows: what each of its leaf tasks gives to train on.
        format: in which it is trained.
        leaves: the scored tasks of each relation.
        trained: those leaf tasks of which trained rows are scored too, as tasks made of them.
        asked: task in-domain -> the leaf task whose rows are examples of what it asks.
        left: of own rows, task in-domain that decides -> it, asked of all rows that are not scored.
        earlier: the in-domain tasks of what it goes on from, in a sequence.
        rows_before: what was trained on before, by a name for each.
    """

    name: str
    task: str
    rows: dict[str, list[TrainingRow]]
    format: TrainedFormat
    leaves: Leaves
    trained: dict[str, LoadedTask]
    asked: Mapping[str, str]
    left: Mapping[str, LoadedTask] = MappingProxyType({})
    earlier: Mapping[str, LoadedTask] = MappingProxyType({})
    rows_before: Mapping[str, list[TrainingRow]] = MappingProxyType({})


class _SourcePlan(NamedTuple):
    """What a study trains on for one trained task, and what it scores for it.

    Attributes:
        rows: as in ``TaskPlan``, and so is ``order``.
        tasks: relation -> the scored tasks that decide.
        formats: task -> name under which it is also scored in the training format.
        trained: task -> name of the task made of the rows that are trained on.
        ending: name of the task that scores only how the rows end; None: there is none.
        validation: relation -> task -> name of the task made of its validation items.
        prompted: its tasks with rows in the prompt.
        overlaps: scored task -> number of its items that are in the rows.
    """

    rows: list[TrainingRow]
    order: tuple[int, ...]
    tasks: dict[Relation, tuple[str, ...]]
    formats: dict[str, str]
    trained: dict[str, str]
    ending: str | None
    validation: dict[Relation, dict[str, str]]
    prompted: tuple[PromptedTask, ...]
    overlaps: dict[str, int]


class TaskFinder:
    """Finds, loads and prepares every task of a study, each name once.

    Args:
        config: of the study.
        model: whose tokenizer is used.
        issues: gets every problem and warning.
        begun_with: the tasks of the set ``general`` that the study has already.
    """

    def __init__(
        self,
        config: StudyConfig,
        model: StudyModel,
        issues: Issues,
        begun_with: Collection[str] = (),
    ) -> None:
        self.config, self.model, self.begun_with = config, model, begun_with
        self.issues, self.problems, self.warnings = issues, issues.problems, issues.warnings
        self._has_chat = config.train.chat_template and model.has_chat_template
        self._loaded: dict[str, tuple[LoadedTask, ...]] = {}
        self._unloaded: dict[str, Unloaded] = {}
        self._done: dict[str, PreparedTask | None] = {}
        self._own: UserData | None = None
        self._own_sets: dict[str, OwnData] = {}
        self._clusters: dict[str, str | None] = {}
        self._rows: dict[str, dict[str, list[TrainingRow]]] = {}

    def plan(self) -> TaskPlan:
        """Incomplete where there are problems."""
        sources = self._sources()
        parts = {source.name: self._part(source) for source in sources}
        leaves = [t for s in sources for tasks in s.leaves.values() for t in tasks.values()]
        if others := {name for part in parts.values() for name in part.formats.values()}:
            self.warnings.append(
                "evaluation: models are scored in a format other than their training format; "
                f"besides the standard format, which decides, also as {', '.join(sorted(others))}"
            )
        groups = grouped((group, task.name) for task in leaves for group in task.groups)
        prepared = [task for task in self._done.values() if task is not None]
        scored = StudyTasks(
            tasks={name: part.tasks for name, part in parts.items()},
            trained_formats={name: part.formats for name, part in parts.items()},
            trained_items={name: part.trained for name, part in parts.items()},
            ending_items={name: part.ending for name, part in parts.items() if part.ending},
            validation_items={n: part.validation for n, part in parts.items() if part.validation},
            prompted={name: part.prompted for name, part in parts.items() if part.prompted},
            earlier={source.name: tuple(source.earlier) for source in sources if source.earlier},
            replayable=self._replayable(sources),
            overlaps={name: part.overlaps for name, part in parts.items()},
            groups={group: tuple(dict.fromkeys(its)) for group, its in groups.items()},
            domains=self._domains(leaves),
        )
        return TaskPlan(
            {name: part.rows for name, part in parts.items()},
            {name: part.order for name, part in parts.items()},
            scored,
            prepared,
            None if self._own is None else self._own.read,
            self._own_sets,
            {
                task: column
                for task, column in self._clusters.items()
                if column is not None and _tells(prepared, task, column)
            },
        )

    def _part(self, source: _Source) -> _SourcePlan:
        """Prepare what is scored for a trained task, and choose the rows to train on."""
        evaluation, formats = self.config.evaluation, dict[str, str]()
        for relation, tasks in source.leaves.items():
            for loaded in tasks.values():
                task = self._prepared(relation, loaded)
                if task is None or not evaluation.trained_format:
                    continue
                other = self._in_trained_format(relation, task, source.format)
                if other is not None:
                    formats[task.name] = other.name
        kept, clean, overlaps = self._without_overlap(source)
        has_validation = self.config.has_validation_items
        validation = self._validation_items(source, kept) if has_validation else {}
        rows = [source.rows[leaf][place] for leaf in kept for place in kept[leaf]]
        self._warn_of_too_few(source.name, len(rows))
        trained = self._trained_items(source, kept)
        ending = self._ending(source, rows[: evaluation.num_train_items])
        prompted: tuple[PromptedTask, ...] = ()
        if self.config.methods.prompt is not None:
            shown = {leaf: sorted({*kept[leaf]} & {*clean[leaf]}) for leaf in kept}
            prompted = tuple(self._prompted(source, shown))
        return _SourcePlan(
            rows=rows,
            order=_in_turn([len(places) for places in kept.values()]),
            tasks={relation: tuple(tasks) for relation, tasks in source.leaves.items()},
            formats=formats,
            trained=trained,
            ending=ending,
            validation=validation,
            prompted=prompted,
            overlaps=overlaps,
        )

    def _ending(self, source: _Source, rows: Sequence[TrainingRow]) -> str | None:
        """The name of the task that scores how some rows end; None where it would say nothing."""
        train = self.config.train
        # both answers of a pair end alike, so DPO teaches nothing of their end; own texts end as
        # the model ends them
        if len(rows) < MIN_ITEMS or train.dpo is not None or train.written is not None:
            return None
        loaded = ending_items(source.task, rows)
        task = self._prepared("in_domain", loaded, num_first=len(rows))
        return None if task is None else task.name

    def _warn_of_too_few(self, name: str, num_rows: int) -> None:
        """Warn where more than one of several numbers of rows comes to all that there are."""
        numbers = sorted(each for each in self.config.train.max_examples if each >= num_rows)
        if len(numbers) > 1:
            same = quantities.listed(list(map(str, numbers)))
            self.warnings.append(
                f"train.max_examples: {name} has {num_rows} rows to train on, so {same} come to "
                "the same"
            )

    def _domains(self, leaves: list[LoadedTask]) -> dict[str, str]:
        """What the config says of a task or of one of its groups, else what its file says."""
        said = self.config.evaluation.domains
        domains: dict[str, str] = {}
        for task in leaves:
            named = [said[name] for name in (task.name, *task.groups) if name in said]
            domain = named[0] if named else task.domain
            if domain is not None:
                domains[task.name] = domain
        known = {name for task in leaves for name in (task.name, *task.groups)}
        for name in said.keys() - known:
            self.problems.append(f"evaluation.domains: no task or group {name!r} is scored")
        return domains

    def _prepared(
        self, relation: Relation, loaded: LoadedTask, *, num_first: int | None = None
    ) -> PreparedTask | None:
        """Each name once, however many trained tasks are scored on it.

        ``num_first``: score this many documents, the first of the file.
        """
        if loaded.name not in self._done:
            self._done[loaded.name] = None
            with self.issues.of(f"evaluation.{relation}"):
                self._done[loaded.name] = prepared_task(
                    loaded,
                    self.model.tokenizer,
                    self.model.max_length,
                    self.config.evaluation,
                    limit=num_first,
                    doc_ids=None if num_first is None else range(num_first),
                )
        return self._done[loaded.name]

    def _in_trained_format(
        self, relation: Relation, task: PreparedTask, trained: TrainedFormat
    ) -> PreparedTask | None:
        rewritten = in_trained_format(
            task.loaded, trained, chat_template=task.chat_template, num_fewshot=task.num_fewshot
        )
        if rewritten is None:
            return None
        try:
            if isinstance(rewritten, str):
                raise TaskError(rewritten)
            if rewritten.name not in self._done:
                self._done[rewritten.name] = prepare_task(
                    rewritten,
                    self.model.tokenizer,
                    max_length=self.model.max_length,
                    num_fewshot=0,
                    limit=self.config.evaluation.limit,
                    chat_template=trained.chat_template,
                )
            return self._done[rewritten.name]
        except (TaskError, DataError) as error:
            self.warnings.append(
                f"evaluation.{relation}: scored in its standard format only, which is not the one "
                f"of the training; {error}"
            )
            return None

    def _sources(self) -> list[_Source]:
        """What is trained on, each with the leaf tasks of each relation."""
        config, train = self.config, self.config.train
        wanted: dict[Relation, list[str]] = {
            relation: list(getattr(config.evaluation, relation)) for relation in RELATIONS
        }
        names = dict.fromkeys([*train.tasks, *itertools.chain(*wanted.values())])
        of_set: dict[str, None] = {}
        if GENERAL in wanted["retention"]:
            del names[GENERAL]
            of_set = dict.fromkeys(tasks_of_general())
        try:
            loaded = load_tasks(
                [*(names | of_set)], config.tasks_path, allow_code=config.allow_task_code
            )
        except TaskError as error:
            self.problems.append(str(error))
            loaded, of_set = {}, {}
        for name, its in loaded.items():
            if isinstance(its, Unloaded):
                self._unloaded[name] = its
            else:
                self._loaded[name] = its
        if of_set:
            self._loaded[GENERAL] = self._general(of_set, names)
        leaves: Leaves = {r: self._leaves(r, listed) for r, listed in wanted.items()}
        named = {task.name for tasks in self._loaded.values() for task in tasks}
        self._add_own_sets(leaves, named)
        for relation, other in itertools.combinations(RELATIONS, 2):
            for name in leaves[relation].keys() & leaves[other].keys():
                self.problems.append(
                    f"evaluation: {name!r} is in {relation} and in {other}; name it once"
                )
        if train.data is not None:
            return [self._user_source(leaves)]
        key = "task" if train.sequence is None else "sequence"
        for index, name in enumerate(train.tasks):
            if name in self._unloaded:
                place = f"[{index}]" if len(train.tasks) > 1 else ""
                self.problems.append(f"train.{key}{place}: {self._unloaded[name]}")
        trained = {name: self._loaded.get(name, ()) for name in train.tasks}
        return [self._task_source(part, trained, leaves) for part in train.parts]

    def _general(self, of_set: Iterable[str], named: Iterable[str]) -> tuple[LoadedTask, ...]:
        """The tasks of the set that can be loaded here and are not named otherwise."""
        missing = [name for name in of_set if name in self._unloaded]
        known = {task.name for name in named for task in self._loaded.get(name, ())}
        if missing:
            lost = [name for name in missing if name in self.begun_with]
            names = lost or missing
            why = "cannot be loaded here" + (", and the study has it already" if lost else "")
            (self.problems if lost else self.warnings).append(
                f"evaluation.retention: of {GENERAL}, {quantities.listed(names)} {why} "
                f"({self._unloaded[names[0]]})"
            )
        return tuple(
            task._replace(groups=(*task.groups, GENERAL))
            for name in of_set
            for task in self._loaded.get(name, ())
            if task.name not in known
        )

    def _task_source(
        self, part: TrainedPart, trained: Mapping[str, tuple[LoadedTask, ...]], leaves: Leaves
    ) -> _Source:
        name = part.task
        own, split = trained[name], self.config.train.split_of(name)
        mine: Leaves = {relation: dict(tasks) for relation, tasks in leaves.items()}
        self._exclude_trained(name, own, mine)
        # what it was trained on before has another relation to it: ``StudyTasks.earlier``
        before = [each.task for each in self.config.train.before(part.name)]
        earlier = {
            task.name: task
            for other in before
            for task in trained[other]
            if task.name not in mine["in_domain"] and not self._is_spent(other, task)
        }
        for relation in ("out_of_domain", "retention"):
            mine[relation] = {t: its for t, its in mine[relation].items() if t not in earlier}
        for other, tasks in trained.items():
            if other not in (name, *before):
                known = mine["in_domain"].keys() | mine["retention"].keys()
                mine["out_of_domain"] |= {
                    task.name: task
                    for task in tasks
                    if task.name not in known and not self._is_spent(other, task)
                }
        rows = self._task_rows(name, own)
        rows_before = {
            f"{other}/{leaf}": its
            for other in before
            for leaf, its in self._task_rows(other, trained[other]).items()
        }
        asked = {task: task for task in mine["in_domain"] if task in rows}
        seen = {task.name: trained_items(task, split) for task in own if task.name in asked}
        form = trained_format(own, self._has_chat)
        return _Source(
            part.name,
            name,
            rows,
            form,
            mine,
            seen,
            asked,
            earlier=earlier,
            rows_before=rows_before,
        )

    def _add_own_sets(self, leaves: Leaves, named: Collection[str]) -> None:
        """The sets of ``evaluation.own``; ``named`` are the names of other tasks."""
        settings = self.config.evaluation
        for name, own_set in settings.own.items():
            with self.issues.of(f"evaluation.own.{name}"):
                own = load_own_set(
                    name,
                    own_set,
                    self.model.tokenizer,
                    chat_template=settings.chat_template and self.model.has_chat_template,
                    max_length=self.model.max_length,
                    allow_code=self.config.allow_task_code,
                )
                known = {*named, *(task for tasks in leaves.values() for task in tasks)}
                if taken := [task.name for task in own.tasks if task.name in known]:
                    self.problems.append(
                        f"evaluation.own.{name}: there is a task named {taken[0]!r}; rename the set"
                    )
                if own_set.role == "retention" and own_set.judged_by[0] == "loss":
                    self.problems.append(
                        f"evaluation.own.{name}: retention is judged in points, and a loss is in "
                        "nats; judge by choice or by what is written, or set role: out_of_domain"
                    )
                leaves[own_set.role] |= {task.name: task for task in own.tasks}
                self._own_sets[name] = own.read
                self._clusters |= {task.name: own.read.cluster for task in own.tasks}
                self.warnings += _warnings(f"evaluation.own.{name}", own.tasks)

    def _user_source(self, leaves: Leaves) -> _Source:
        train = self.config.train
        (source,) = train.sources
        try:
            data = self._own = load_user_data(
                train,
                self.model.tokenizer,
                chat_template=self._has_chat,
                max_length=self.model.max_length,
                allow_code=self.config.allow_task_code,
            )
        except (DataError, TaskError) as error:
            self.problems.append(f"train.data: {error}")
            return _Source(source, source, {}, TrainedFormat(None, False), leaves, {}, {})
        held_out = {task.name: task for task in data.tasks}
        for name in held_out.keys() & self.config.evaluation.own.keys():
            self.problems.append(
                f"evaluation.own.{name}: the rows of train.data are scored as {name!r}; rename it"
            )
        leaves["in_domain"] = held_out | leaves["in_domain"]
        self._clusters |= {task.name: data.read.cluster for task in data.tasks}
        self.warnings += [*_lost_unsaid(data), *_warnings("train.data", data.tasks)]
        rows, seen = {data.name: data.training}, {data.name: data.trained_items}
        asked = dict.fromkeys(held_out, data.name)
        return _Source(source, source, rows, data.format, leaves, seen, asked, data.left)

    def _leaves(self, relation: Relation, listed: Sequence[str]) -> dict[str, LoadedTask]:
        leaves: dict[str, LoadedTask] = {}
        for index, name in enumerate(listed):
            if name in self._unloaded:
                self.problems.append(f"evaluation.{relation}[{index}]: {self._unloaded[name]}")
            leaves |= {task.name: task for task in self._loaded.get(name, ())}
        if relation == "held_out_text":
            for task in leaves.values():
                if task.output_type != "loglikelihood_rolling":
                    self.problems.append(
                        f"evaluation.held_out_text: {task.name!r} is {task.output_type}, not prose "
                        "(loglikelihood_rolling); move it to another list"
                    )
        return leaves

    def _exclude_trained(self, name: str, trained: tuple[LoadedTask, ...], leaves: Leaves) -> None:
        """What is trained on is in-domain, unless its scored items are those trained on."""
        spent = {task.name for task in trained if self._is_spent(name, task)}
        for relation in ("out_of_domain", "retention"):
            for task in trained:
                if leaves[relation].pop(task.name, None) is not None:
                    self.warnings.append(
                        f"evaluation.{relation}: {task.name!r} is trained on and was left out"
                    )
        for task in sorted(spent & leaves["in_domain"].keys()):
            self.problems.append(
                f"evaluation.in_domain: {task!r} is trained on the split that it is scored on; "
                "name tasks whose items were not trained on"
            )
        if not leaves["in_domain"]:
            leaves["in_domain"] = {t.name: t for t in trained if t.name not in spent}
            if trained and not leaves["in_domain"]:
                self.problems.append(
                    f"evaluation.in_domain: the split {self._trained_split(name, trained[0])!r} of "
                    f"{name!r} is trained on and cannot be scored; name tasks that it should help"
                )

    def _replayable(self, sources: Iterable[_Source]) -> tuple[str, ...]:
        """As ``StudyTasks`` says; none where the objective takes no arm that replays rows."""
        train = self.config.train
        if train.dpo is not None or train.written is not None:
            return ()
        found = [task for source in sources for task in source.leaves["out_of_domain"].values()]
        trained = {task.name for name in train.tasks for task in self._loaded.get(name, ())}
        return tuple(
            dict.fromkeys(
                task.name
                for task in found
                if task.name not in trained
                and task.task.has_training_docs()
                and task.task.config.training_split != _scored_split(task)
            )
        )

    def _is_spent(self, name: str, task: LoadedTask) -> bool:
        """Whether the items that it scores are those trained on under that name."""
        return self._trained_split(name, task) == _scored_split(task)

    def _trained_split(self, name: str, task: LoadedTask) -> str | None:
        return self.config.train.split_of(name) or task.task.config.training_split

    def _task_rows(
        self, name: str, trained: tuple[LoadedTask, ...]
    ) -> dict[str, list[TrainingRow]]:
        """Rows of every trained task, in equal shares where there is a limit; read once."""
        train = self.config.train
        if name in self._rows:
            return self._rows[name]
        rows = self._rows[name] = dict[str, list[TrainingRow]]()
        for index, task in enumerate(trained):
            given = sum(map(len, rows.values()))
            left = None if train.most_examples is None else train.most_examples - given
            share = None if left is None else math.ceil(left / (len(trained) - index))
            if share == 0:
                break
            with self.issues.of("train.task" if train.sequence is None else "train.sequence"):
                rows[task.name] = task_rows(
                    task,
                    self.model.tokenizer,
                    chat_template=self._has_chat,
                    max_examples=share,
                    split=train.split_of(name),
                )
        return rows

    def _trained_items(self, source: _Source, kept: Mapping[str, list[int]]) -> dict[str, str]:
        """The items of at most ``num_train_items`` trained rows a task, and of no others."""
        names: dict[str, str] = {}
        for name, loaded in source.trained.items():
            rows = kept[name][: self.config.evaluation.num_train_items]
            if len(rows) < MIN_ITEMS:
                continue  # no standard error
            if rows[-1] != len(rows) - 1:
                loaded = with_documents(loaded, rows)
            task = self._prepared("in_domain", loaded, num_first=len(rows))
            names |= {} if task is None else {name: task.name}
        return names

    def _validation_items(
        self, source: _Source, kept: dict[str, list[int]]
    ) -> dict[Relation, dict[str, str]]:
        """Relation -> {task: its validation items}; rows that are held out are taken from kept."""
        found: dict[Relation, dict[str, str]] = {}
        drawn: dict[str, list[int]] = {}
        for relation in CHOSEN_BY:
            tasks = source.leaves[relation]
            # what each task has at most, two at least; rows that are asked in two ways count once
            leaves = {source.asked.get(name, name) for name in tasks}
            most = max(math.ceil(self.config.search.validation_items / max(len(leaves), 1)), 2)
            for loaded in tasks.values():
                if source.left and loaded.name in source.asked.keys() - source.left.keys():
                    continue  # a loss beside points decides nothing
                with self.issues.of("search"):
                    held_out = self._held_out(source, loaded, kept, drawn, most)
                    if held_out is None:
                        lacks = (
                            "too few rows to hold validation items out"
                            if loaded.name in source.asked
                            else "no split besides the scored one"
                        )
                        self.warnings.append(
                            f"search: {loaded.name} has {lacks}, so runs are chosen without it"
                        )
                        continue
                    items, number = held_out
                    prepared = self._prepared(relation, items, num_first=number)
                    if prepared is not None:
                        found.setdefault(relation, {})[loaded.name] = prepared.name
        if not found.get("in_domain"):
            self.problems.append(
                f"search: {source.name} has too few rows to hold validation items out; give it "
                "more rows, or search nothing (no search.policy, learning_rate.tune, "
                "score_checkpoints or stop)"
            )
        return found

    def _held_out(
        self,
        source: _Source,
        loaded: LoadedTask,
        kept: dict[str, list[int]],
        drawn: dict[str, list[int]],
        number: int,
    ) -> tuple[LoadedTask, int] | None:
        """The validation items of a task, and how many; None where there are fewer than two.

        Of a task that is trained on they are rows behind those that were read, else some of the
        rows that are kept; of another one they are of a split that is not scored. ``drawn`` has
        the rows of each leaf: what is asked in two ways is asked of the same ones.
        """
        leaf = source.asked.get(loaded.name)
        if leaf is not None:
            is_own = loaded.name in source.left
            split = "test" if is_own else self.config.train.split_of(source.task)
            asks = source.left[loaded.name] if is_own else loaded
            if leaf not in drawn:
                rows = kept[leaf]
                free = range(len(source.rows[leaf]), num_documents(asks, split))
                if len(free) >= number:
                    drawn[leaf] = _chosen(asks, free, number)
                else:
                    most = int(MOST_HELD_OUT * len(rows))
                    drawn[leaf] = _chosen(asks, rows, min(number, most)) if most > 1 else []
                    kept[leaf] = sorted({*rows} - {*drawn[leaf]})
            items = validation_items(asks, split, drawn[leaf])
            return (items, len(drawn[leaf])) if len(drawn[leaf]) > 1 else None
        config = loaded.task.config
        scored = config.test_split or config.validation_split
        for split in (config.validation_split, config.training_split):
            if split is None or split == scored or split not in loaded.task.dataset:
                continue
            size = num_documents(loaded, split)
            if size > 1:
                chosen = _chosen(loaded, range(size), number)
                return validation_items(loaded, split, chosen), len(chosen)
        return None

    def _prompted(self, source: _Source, rows: Mapping[str, list[int]]) -> Iterator[PromptedTask]:
        """The trained tasks in-domain, with some of these rows before each question.

        Rows with a scored item are in no prompt. A draw of fewer rows is the beginning of that of
        more.
        """
        section = self.config.methods.prompt
        assert section is not None
        # the rows are the examples
        settings = self.config.evaluation.model_copy(update={"num_fewshot": None})
        in_domain = source.leaves["in_domain"]
        own = [(in_domain[task], leaf) for task, leaf in source.asked.items()]
        if not own:
            self.problems.append(
                f"methods.prompt: no task in-domain is trained on under {source.name}, so that its "
                "rows are no examples of what is asked; leave it out"
            )
        for (loaded, leaf), shots in itertools.product(own, section.shots):
            places = rows[leaf]
            if shots > len(places):
                self.problems.append(
                    f"methods.prompt.shots: {shots} rows of {leaf} are wanted, and "
                    f"{len(places)} are trained on without a scored item in them"
                )
                continue
            for seed in self.config.seeds if shots else (None,):
                drawn = random.Random(f"{leaf} prompt {seed}")
                chosen = drawn.sample(places, len(places))[:shots]
                draw = "" if seed is None else f"-s{seed}"
                # a task that is trained on by itself and in a group has other rows in each
                is_alone = self.config.train.data or source.task == loaded.name
                group = "" if is_alone else f"-{source.task}"
                name = f"{loaded.name}@prompt-{shots}{draw}{group}"
                with self.issues.of("methods.prompt"):
                    prompted = self._behind_rows(source, loaded, chosen, name)
                    task = self._done[name] = prepared_task(
                        prompted, self.model.tokenizer, self.model.max_length, settings
                    )
                    # tokens before the answer of an item; options have the same before them
                    lengths = {each.instance: len(each.context) for each in task.requests}
                    by_item = {task.instances[i].doc_id: length for i, length in lengths.items()}
                    yield PromptedTask(
                        task=loaded.name,
                        name=name,
                        shots=shots,
                        seed=seed,
                        context_tokens=sum(by_item.values()) / len(by_item),
                    )

    def _behind_rows(
        self, source: _Source, loaded: LoadedTask, rows: Sequence[int], name: str
    ) -> LoadedTask:
        """A task of a name with some rows before each question."""
        if self._own is None:
            return with_examples(loaded, self.config.train.split_of(source.task), rows, name)
        shown = [self._own.training[place] for place in rows]
        is_chat, bos = self._own.format.chat_template, self.model.tokenizer.bos_token or ""
        return behind_rows(loaded, shown, name, is_chat=is_chat, bos=bos)

    def _without_overlap(
        self, source: _Source
    ) -> tuple[dict[str, list[int]], dict[str, list[int]], dict[str, int]]:
        """The rows to train on, by leaf task; all that hold no scored item; how many are held."""
        names = [name for tasks in source.leaves.values() for name in tasks]
        names += [name for name in source.earlier if name not in names]
        scored = [task for name in names if (task := self._done[name]) is not None]
        overlap = find_overlap({**source.rows, **source.rows_before}, scored, self.model.tokenizer)
        drops = self.config.train.drop_overlapping
        clean = {leaf: overlap.other_rows[leaf] for leaf in source.rows}
        kept = clean if drops else {leaf: overlap.all_rows[leaf] for leaf in source.rows}
        if overlap.num_rows and not any(kept.values()):
            self.problems.append(
                f"train.drop_overlapping: of {source.name} {overlap}, and no row is left to train "
                "on; train on other rows or score other items"
            )
        elif overlap.num_rows:
            what = "they are left out" if drops else (
                "scores on these show memorisation; set train.drop_overlapping=true to "
                "train without them"
            )  # fmt: skip
            self.warnings.append(f"train: of {source.name} {overlap}; {what}")
        num_items = dict.fromkeys(overlap.num_items, 0) if drops else overlap.num_items
        return kept, clean, num_items


def _tells(prepared: Sequence[PreparedTask], task: str, column: str) -> bool:
    """Whether a column has several values in the items of a task, and in what is made of it."""
    of_task = [each for each in prepared if each.name.partition("@")[0] == task]
    return all(
        len({instance.doc.get(column) for instance in each.instances}) > 1
        for each in of_task
        if not each.name.endswith(ENDING_SUFFIX)
    )


def _in_turn(sizes: Sequence[int]) -> tuple[int, ...]:
    """The places of lists that stand one behind the other: the first of each, the second ..."""
    ends = list(itertools.accumulate(sizes))
    places = (range(end - size, end) for size, end in zip(sizes, ends, strict=True))
    turns = itertools.chain.from_iterable(itertools.zip_longest(*places))
    return tuple(place for place in turns if place is not None)


def _warnings(place: str, tasks: Iterable[LoadedTask]) -> list[str]:
    return [f"{place}: {task.warning}" for task in tasks if task.warning is not None]


def _lost_unsaid(data: UserData) -> Iterator[str]:
    """What a user would miss in rows that can be read: options, and prompts that are empty."""
    for read in data.read.columns:
        for name in OPTIONS:
            if name in read.unread:
                yield (
                    f"train.data: column {name!r} of {quantities.counted(read.num_rows, 'row')} is "
                    "not read; write the options into the prompt"
                )
    num_empty = sum(not row.prompt.strip() for row in data.training)
    if num_empty and all(read.convention != "text" for read in data.read.columns):
        yield (
            f"train.data: {num_empty} of {len(data.training)} training rows have an empty prompt; "
            "give one or drop them"
        )


def _scored_split(task: LoadedTask) -> str | None:
    return task.task.config.test_split or task.task.config.validation_split
