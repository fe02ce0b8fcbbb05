"""From a config to a plan: which runs, on which examples, scored on which tasks.

Checks the config against tasks and model and collects every problem; loads no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch

from rankwise.engine.models.base_folder import BaseModel
from rankwise.engine.models.devices import DTYPES, STEP_TOKENS, Machine
from rankwise.engine.models.structure import model_skeleton
from rankwise.engine.models.variants import shares_a_pass
from rankwise.engine.training.memory import PassMemory, TrainingSetting
from rankwise.engine.training.micro_batches import training_lanes
from rankwise.errors import DataError
from rankwise.findings.stats.reference import MIN_SCORED
from rankwise.records.config.methods import FullConfig
from rankwise.records.config.mitigations import RowsConfig
from rankwise.records.config.objectives import GrpoConfig
from rankwise.records.config.study import StudyConfig
from rankwise.records.files import unless_damaged
from rankwise.records.fingerprints import fingerprint, study_fingerprint
from rankwise.records.folder import StudyFolder
from rankwise.records.results import MIN_ITEMS
from rankwise.records.study import (
    Decompositions,
    FirstItems,
    Method,
    PlannedRun,
    References,
    StudyRecord,
    StudyTasks,
    TaskEvaluation,
)
from rankwise.study.planning import checks
from rankwise.study.planning.chosen import Candidates, all_of, decided
from rankwise.study.planning.derived import (
    Others,
    largest_step,
    longest_other,
    other_examples,
    plan_mitigated,
)
from rankwise.study.planning.fitting import Room, earlier_full, full_training
from rankwise.study.planning.imports import imported_run
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import (
    StudyModel,
    found_teacher,
    refuse_scores,
    study_model,
)
from rankwise.study.planning.passes import plan_passes
from rankwise.study.planning.rank_patterns import with_pattern
from rankwise.study.planning.runs import (
    RunMaker,
    TargetLayers,
    Trainable,
    first_rows,
    plan_beside,
    plan_runs,
)
from rankwise.study.planning.tasks import TaskFinder, TaskPlan
from rankwise.study.references import num_answered, with_references
from rankwise.study.searches.policy import Decision, Measures
from rankwise.study.stages.graph import KINDS
from rankwise.study.stages.spectra import decompositions
from rankwise.study.stages.stage import PlannedTasks
from rankwise.study.times import training_work
from rankwise.tasks.item_order import in_random_order
from rankwise.tasks.judgement import check_judging
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.resolution import GENERAL
from rankwise.tasks.rewards import Rewards
from rankwise.tasks.training_rows import Example, TrainingRow, tokenise_rows

SCORING_REVISION = 4
"""A revision, as those in ``records.fingerprints``."""

_TEXTS = ("generate_until", "loglikelihood_rolling")
"""lm-eval's kinds of requests whose items are texts."""

Prepared = Mapping[str, PreparedTask]
"""Scored tasks by name."""


@dataclass(frozen=True)
class StudyPlan:
    """A study that can be run: its record, and what the stages need besides."""

    record: StudyRecord
    """What is written to ``study.json``."""
    base: BaseModel
    """The base model's name, folder and fingerprint."""
    tokenizer: Any
    device: torch.device
    examples: dict[str, tuple[Example, ...]]
    """Trained task -> its tokenised training examples."""
    order: dict[str, tuple[int, ...]]
    """Trained task -> the places of its examples; runs on fewer rows take the first."""
    tasks: dict[str, PreparedTask]
    """Every scored task by name, with its requests."""
    inputs: Mapping[str, Mapping[str, Any]]
    """Kind of stage -> trained task -> what the kind reads, by its ``Stage.inputs``."""
    rewards: Mapping[str, Rewards] = field(default_factory=dict[str, "Rewards"])
    """Trained task -> what the texts are worth that its runs learn from, where they write these."""
    teacher: BaseModel | None = None
    """Whose distributions the runs learn, where it is another model than the base."""
    others: Others = field(default_factory=dict[RowsConfig, tuple[Example, ...]])
    """The rows that arms against forgetting read beside those of the trained tasks."""
    planner: Planner | None = None
    """Plans the same study after other decisions of its search; None where nothing is trained."""
    num_workers: int = 1
    """The number of workers for which its passes are cut."""
    cards: tuple[torch.device, ...] = ()
    """The cards over which the layers of its models lie; empty: they are on ``device``."""

    def examples_of(self, run: PlannedRun) -> tuple[Example, ...]:
        """What a run is trained on; of an imported model, all rows of its trained task."""
        examples, number = self.examples[run.train_task], run.num_examples
        return first_rows(examples, self.order[run.train_task], number) if number else examples

    def task_of(self, model: PlannedRun | None, name: str) -> PreparedTask:
        """A task with the items that a model (None: the base) answers."""
        part = self.record.part_of(model, name)
        return self.tasks[name] if part is None else self.tasks[name].first(part.num_items)

    def in_part(self, share: float) -> StudyPlan:
        """The plan in which a share of each task's items is answered, base and models alike.

        They are the first of the random order, as under a smaller limit; so the next share adds
        items to these. Validation items are answered whole, and right answers are compared on all
        items at once. What is estimated from references keeps its share, with as many answers as
        these estimates need at least.

        Args:
            share: above 0, at most 1: the whole plan, which is returned as it is.
        """
        if share == 1.0:
            return self
        study = self.record
        whole = {name for source in study.tasks for name in study.validation_tasks(source)}
        tasks: dict[str, PreparedTask] = {}
        for name, task in self.tasks.items():
            number = max(math.ceil(share * task.num_items), MIN_ITEMS)
            is_part = name not in whole and number < task.num_items
            tasks[name] = task.first(number)._replace(limit=number) if is_part else task
        scored = {name: task.num_distinct_tokens for name, task in tasks.items()}
        parts: dict[str, FirstItems] = {}
        for name, part in study.references.parts.items():
            number = max(math.ceil(share * part.num_items), MIN_SCORED)
            if number < tasks[name].num_items:
                parts[name] = _first_items(study.config, study.precision, tasks[name], number)
        update: dict[str, Any] = {
            "share": share,
            "task_fingerprints": _task_fingerprints(study.config, study.precision, tasks),
            "scored_tokens": scored,
            "references": study.references.model_copy(update={"parts": parts}),
        }
        return replace(self, tasks=tasks, record=study.model_copy(update=update))

    @property
    def step_tokens(self) -> int:
        """The most tokens in one forward pass of scoring."""
        return self.record.config.evaluation.max_batch_tokens or STEP_TOKENS[self.device.type]

    def begins_with(
        self, earlier: TaskEvaluation, model_fingerprint: str, task: PreparedTask
    ) -> bool:
        """Whether an earlier scoring is that of fewer of the task's items and of nothing else.

        Or of all of them, under a limit that left none out and is another now. They are the first
        of the random order, or the first documents: studies from before there was that order are
        kept where every document is scored now.
        """
        num_items, study = earlier.num_examples, self.record
        is_finished = num_items == task.num_items and earlier.limit == task.limit
        if not 0 < num_items <= task.num_items or is_finished:
            return False
        for doc_ids in (in_random_order(task.doc_ids)[:num_items], range(num_items)):
            digest = task.digest_of(doc_ids)
            of_task = task_fingerprint(study.config, study.precision, task, digest, earlier.limit)
            if earlier.fingerprint == fingerprint([model_fingerprint, of_task]):
                return True
        return False


def plan_study(
    config: StudyConfig,
    report: Callable[[str], None] = lambda _: None,
    *,
    folder: StudyFolder | None = None,
    machine: Machine | None = None,
    num_workers: int = 1,
) -> StudyPlan:
    """Plan a study; a base model or data set that is not here yet is fetched.

    Of a study that is searched, it plans what the search begins with.

    Args:
        config: a checked config.
        report: receives a line for each download and conversion.
        folder: where the study goes on, if it does: full fine-tuning keeps what it took there, and
            what is trained there needs no memory.
        machine: to plan for; None: the one that is here, which alone can run the plan.
        num_workers: that share the study, each on such a machine.

    Raises:
        PlanError: with every problem found, or because the base model cannot be had.
        ModelError: its tokenizer or config cannot be used.
    """
    issues, earlier = Issues(), None
    with unless_damaged():
        earlier = folder and folder.read_if_there(folder.study_file, StudyRecord)
    refuse_scores(earlier)
    model = study_model(config, report, machine)
    begun_with = () if earlier is None else earlier.groups.get(GENERAL, ())
    parts = _parts(config, model, report, issues, begun_with)
    issues.refuse(config.name, model.base.name)
    clusters = {**parts.tasks.clusters, **config.evaluation.clusters}
    evaluation = config.evaluation.model_copy(update={"clusters": clusters})
    config = config.model_copy(update={"evaluation": evaluation})
    train = config.train
    lengths = {example.num_inputs for rows in parts.examples.values() for example in rows}
    is_taught = train.written is not None and train.written.is_distilled
    setting = TrainingSetting(
        device=model.machine.device,
        precision=model.precision,
        longest=max(*lengths, longest_other(config, parts.others)),
        shortest=min(lengths),
        examples_per_step=largest_step(config),
        base_precision=train.base_precision,
        dropout=train.dropout,
        is_held=any(arm.kl is not None for arm in config.mitigations) or is_taught,
        max_lanes=training_lanes(train, model.machine.device),
        beside_bytes=_beside_bytes(config, model, parts.teacher),
    )
    adapted = dict.fromkeys(name for to in parts.layers.values() for name in to.shapes)
    memory = PassMemory(model.skeleton, setting, list(adapted))
    if num_workers > 1:  # each has a device of its own
        model = model._replace(machine=model.machine._replace(num_cards=1))
    before = earlier_full(folder, earlier, model.base.fingerprint)
    full = full_training(config, memory, model.machine, before)
    if full is not None:
        named = {"full": FullConfig.model_validate(full.model_dump())}
        methods = config.methods.model_copy(update=named)
        config = config.model_copy(update={"methods": methods})
        memory = memory.changed(full=full)
    base = Trainable(model, parts.layers, memory)
    planner = _planner(config, base, parts, issues, folder, num_workers)
    issues.refuse(config.name, model.base.name)
    return planner.plan()


class _Parts(NamedTuple):
    """What is tokenised once, however often a study is planned."""

    tasks: TaskPlan
    examples: dict[str, tuple[Example, ...]]
    layers: Mapping[tuple[str, ...], TargetLayers]
    others: Others
    rewards: dict[str, Rewards]
    teacher: BaseModel | None


def _parts(
    config: StudyConfig,
    model: StudyModel,
    report: Callable[[str], None],
    issues: Issues,
    begun_with: Collection[str],
) -> _Parts:
    """The parts of a plan; incomplete where there are problems."""
    checks.check_model(config, model, issues)
    checks.check_settings(config, issues)
    layers = checks.target_layers(config, model, issues)
    layers = with_pattern(config.methods.lora, model, layers, issues)
    tasks = TaskFinder(config, model, issues, begun_with).plan()
    examples = {
        train_task: _examples(train_task, rows, config, model, issues)
        for train_task, rows in tasks.rows.items()
    }
    rewards = _rewards(config, model, examples, issues)
    others = {} if issues.problems else other_examples(config, model, tasks, issues)
    checks.check_tasks(config, tasks.prepared, tasks.scored, issues)
    # a metric that does not exist is a problem already
    for task in () if issues.problems else tasks.prepared:
        with issues.of("evaluation"):
            check_judging(task, config.evaluation.scored_by(task.name))
    for train_task, task_examples in examples.items():
        checks.check_warmup(config, train_task, len(task_examples), issues)
    teacher = None
    with issues.of("train.objective.sdft.teacher"):
        teacher = found_teacher(config, model, report)
    return _Parts(tasks, examples, layers, others, rewards, teacher)


def _beside_bytes(
    config: StudyConfig, model: StudyModel, teacher: BaseModel | None
) -> dict[Method, int]:
    """By method, the bytes of a teacher, or of the base that is held beside full fine-tuning."""
    own, width = config.train.written, DTYPES[model.precision].itemsize
    if teacher is not None:
        skeleton: Any = model_skeleton(teacher.folder)
        weights = width * sum(parameter.numel() for parameter in skeleton.parameters())
        return {"lora": weights, "full": weights}
    is_held = own is not None and (own.is_distilled or (isinstance(own, GrpoConfig) and own.beta))
    return {"full": width * model.num_parameters} if is_held else {}


def _rewards(
    config: StudyConfig,
    model: StudyModel,
    examples: Mapping[str, Sequence[Example]],
    issues: Issues,
) -> dict[str, Rewards]:
    """Trained task -> what texts are worth; empty where nothing is rewarded."""
    grpo = config.train.written
    found: dict[str, Rewards] = {}
    if not isinstance(grpo, GrpoConfig):
        return found
    for source, rows in examples.items():
        asked = [example.asks for example in rows if example.asks is not None]
        with issues.of("train.objective"):
            allowed = config.allow_task_code
            columns = config.train.columns
            found[source] = Rewards(grpo.rewards, asked, columns=columns, allow_code=allowed)
    return found


@dataclass(frozen=True)
class Planner:
    """Plans one study, as often as its search decides anew; tokenises nothing again."""

    unchosen: StudyPlan
    """The plan before anything is chosen: what no decision changes."""
    issues: Issues
    """Every problem and warning so far; a plan adds its own to a copy."""
    runs: tuple[PlannedRun, ...]
    """The runs of the study file; empty where there is a search."""
    beside: tuple[PlannedRun, ...]
    """What is trained beside the runs."""
    imported: tuple[PlannedRun, ...]
    """Models that were trained elsewhere."""
    candidates: Mapping[str, Candidates]
    """Trained task -> what its search may ask for; empty where there is no search."""
    room: Room
    """The room that the models have."""

    def plan(self, decisions: Mapping[str, Sequence[Decision]] | None = None) -> StudyPlan:
        """The study's plan after these decisions of its search, by trained task.

        None: the search begins; a study that is not searched has no others.

        Raises:
            PlanError: the study cannot be run; with every problem found.
        """
        unchosen, record, room = self.unchosen, self.unchosen.record, self.room
        config = record.config
        if config.is_searched:
            begin = {of: (c.policy(Measures())({}),) for of, c in self.candidates.items()}
            chosen = decided(self.candidates, decisions or begin)
        else:
            chosen = all_of(config, self.runs, self.beside)
        mitigated = plan_mitigated(config, chosen.runs, unchosen.others)
        issues = Issues(list(self.issues.problems), list(self.issues.warnings))
        others = (*chosen.others, *mitigated, *self.beside)
        trained = [*chosen.runs, *others]
        by_peft = sorted({run.variant for run in trained if run.variant and not shares_a_pass(run)})
        if config.train.written is not None and by_peft:
            issues.problems.append(
                f"methods.variants: {', '.join(by_peft)} cannot be trained on own texts; leave "
                "them out"
            )
        room.check_memory(trained, issues)
        room.check_scoring([*trained, *self.imported], issues)
        issues.refuse(config.name, unchosen.base.name)

        def work_of(models: Sequence[PlannedRun]) -> float:
            """The work of training them, and of scoring them."""
            scored = sum(record.tokens_of(model, record.tasks_of(model)) for model in models)
            return training_work(models) + scored

        passes = [
            planned
            for models in (*chosen.together, mitigated)
            for planned in plan_passes(
                models,
                room.memory,
                config.train,
                available_bytes=room.available,
                num_devices=unchosen.num_workers,
                work_of=work_of,
            )
        ]
        models = {
            "models": (*chosen.runs, *self.imported, *others),
            "passes": tuple(passes),
            "warnings": tuple(issues.warnings),
        }
        record = with_references(record.model_copy(update=models))
        return replace(unchosen, record=record, planner=self)


def _planner(
    config: StudyConfig,
    base: Trainable,
    parts: _Parts,
    issues: Issues,
    folder: StudyFolder | None,
    num_workers: int,
) -> Planner:
    """The planner of a study.

    Args:
        config: of the study; what ``methods.full`` takes is settled.
        base: the model, and how it is trained.
        parts: what is tokenised.
        issues: gets every problem and warning.
        folder: where the study goes on.
        num_workers: see ``plan_study``.
    """
    imported = tuple(_imported(config, base, parts.examples, issues))
    teacher = None if parts.teacher is None else parts.teacher.fingerprint
    judges = {source: rewards.content for source, rewards in parts.rewards.items()}
    makers: dict[str, RunMaker] = {}
    for part in config.train.parts:
        makers[part.name] = RunMaker(
            config,
            base,
            part,
            parts.examples[part.name],
            parts.tasks.order[part.name],
            judges.get(part.name, teacher),
            None if part.after is None else makers[part.after],
        )
    runs = () if config.is_searched else plan_runs(config, makers.values())
    beside = plan_beside(config, makers.values())
    searched = makers if config.is_searched else {}
    candidates = {source: Candidates(config, maker) for source, maker in searched.items()}
    ends = [end for each in candidates.values() for end in each.ends]
    room = Room.of(base, config, folder, [*runs, *ends, *beside])
    room.check_over_cards([*runs, *ends, *beside], issues)
    if folder is None or not folder.study_file.exists():
        # what a search may come to; once it has begun, some of that is ruled out
        room.check_memory(ends, issues)
    cards = room.cards if room.is_over_cards else ()
    has_full = bool(config.methods.full) or "full" in {run.method for run in imported}
    unchosen = _unchosen(config, base.model, parts, has_full=has_full)
    unchosen = replace(unchosen, num_workers=num_workers, cards=cards)
    return Planner(unchosen, issues, runs, beside, imported, candidates, room)


def _unchosen(
    config: StudyConfig, model: StudyModel, parts: _Parts, *, has_full: bool
) -> StudyPlan:
    """The plan before anything is chosen: what no decision changes.

    ``has_full``: whether a model is fully fine-tuned, here or elsewhere.
    """
    tasks = parts.tasks
    prepared = {task.name: task for task in tasks.prepared}
    planned = PlannedTasks(
        config,
        model.precision,
        tasks.scored.tasks,
        prepared,
        model.tokenizer,
        model.vocab_size,
        has_full,
    )
    inputs = {kind.kind: its for kind in KINDS if (its := kind.inputs(planned))}
    record = StudyRecord(
        **dict(tasks.scored),
        fingerprint=study_fingerprint(config),
        config=config,
        base_model_fingerprint=model.base.fingerprint,
        precision=model.precision,
        task_fingerprints=_task_fingerprints(config, model.precision, prepared),
        inputs={
            kind: {source: read for source, (_, read) in its.items()}
            for kind, its in inputs.items()
        },
        num_parameters=model.num_parameters,
        decompositions=_decompositions(config, model, parts.layers),
        scored_tokens={name: task.num_distinct_tokens for name, task in prepared.items()},
        references=References(
            parts=_answered_in_part(config, model.precision, tasks.scored, prepared)
        ),
        models=(),
        warnings=(),
        own_data=tasks.own_data,
        own_sets=dict(tasks.own_sets),
        provenance=model.machine.provenance,
    )
    return StudyPlan(
        record=record,
        base=model.base,
        tokenizer=model.tokenizer,
        device=model.machine.device,
        examples=parts.examples,
        order=tasks.order,
        tasks=prepared,
        inputs={
            kind: {source: data for source, (data, _) in its.items()}
            for kind, its in inputs.items()
        },
        others=parts.others,
        rewards=parts.rewards,
        teacher=parts.teacher,
    )


def _decompositions(
    config: StudyConfig, model: StudyModel, layers: Mapping[tuple[str, ...], TargetLayers]
) -> Decompositions:
    """Of every matrix that any run adapts; empty where weights are not analysed."""
    if not config.analysis.spectra:
        return Decompositions()
    shapes = {name: shape for each in layers.values() for name, shape in each.shapes.items()}
    return decompositions(model.machine, shapes.values(), model.num_parameters)


def _answered_in_part(
    config: StudyConfig, precision: str, scored: StudyTasks, prepared: Prepared
) -> dict[str, FirstItems]:
    """What most runs answer of the tasks that models are compared on.

    Texts are written and read whole: they differ in length, and few of them say little.
    """
    reference = config.evaluation.reference
    # a task of a sequence is compared before and after others, so it is answered whole
    if reference is None or config.is_searched or config.train.sequence is not None:
        return {}
    names = [name for of in scored.tasks.values() for its in of.values() for name in its]
    names += [name for of in scored.trained_formats.values() for name in of.values()]
    parts: dict[str, FirstItems] = {}
    for name in dict.fromkeys(names):
        task = prepared[name]
        number = num_answered(task.num_items, reference.share)
        if number is None or task.loaded.output_type in _TEXTS:
            continue
        parts[name] = _first_items(config, precision, task, number)
    return parts


def task_fingerprint(
    config: StudyConfig, precision: str, task: PreparedTask, digest: str, limit: int | None
) -> str:
    """The fingerprint of everything that scores on a task depend on, besides the model."""
    return fingerprint(
        {
            "scoring_revision": SCORING_REVISION,
            "precision": precision,
            "task": task.name,
            "task_version": task.loaded.version,
            "requests": digest,
            "limit": limit,
            "metric": config.evaluation.scored_by(task.name),
        }
    )


def _task_fingerprints(
    config: StudyConfig, precision: str, tasks: Mapping[str, PreparedTask]
) -> dict[str, str]:
    return {
        name: task_fingerprint(config, precision, task, task.digest, task.limit)
        for name, task in tasks.items()
    }


def _first_items(
    config: StudyConfig, precision: str, task: PreparedTask, number: int
) -> FirstItems:
    """The first ``number`` of a task's items, which most runs answer."""
    part = task.first(number)
    return FirstItems(
        num_items=number,
        num_all=task.num_items,
        num_tokens=part.num_distinct_tokens,
        fingerprint=task_fingerprint(config, precision, part, part.digest, part.limit),
    )


def _imported(
    config: StudyConfig, base: Trainable, train_tasks: Iterable[str], issues: Issues
) -> list[PlannedRun]:
    """Models that were trained elsewhere, among the runs of one trained task."""
    runs: list[PlannedRun] = []
    known = list(train_tasks)
    for index, imported in enumerate(config.methods.imported):
        place = f"methods.imported[{index}]"
        if imported.train_task is None and len(known) > 1:
            issues.problems.append(
                f"{place}: several tasks are trained on; say among whose runs it is judged "
                f"with train_task ({', '.join(known)})"
            )
            continue
        with issues.of(place):
            run, warnings = imported_run(imported, base, imported.train_task or known[0])
            if any(run.name == other.name for other in runs):
                issues.problems.append(f"{place}: the same model is imported twice")
            issues.warnings.extend(f"{place}: {warning}" for warning in warnings)
            runs.append(run)
    return runs


def _examples(
    name: str, rows: Sequence[TrainingRow], config: StudyConfig, model: StudyModel, issues: Issues
) -> tuple[Example, ...]:
    try:
        examples = tokenise_rows(rows, model.tokenizer, config.train, model.max_length)
    except DataError as error:
        issues.problems.append(f"train: of {name}, {error}")
        return ()
    truncated = sum(example.is_truncated for example in examples)
    if truncated:
        issues.warnings.append(
            f"train.max_length: {truncated} of {len(examples)} prompts are longer and are "
            "truncated on the left"
        )
    merged = [row for row, example in zip(rows, examples, strict=True) if example.is_merged]
    if merged:
        issues.warnings.append(
            f"train: in {len(merged)} of {len(examples)} rows of {name} the tokenizer merges the "
            f"end of the prompt with the beginning of the answer ({merged[0].prompt[-20:]!r} with "
            f"{merged[0].completion[:20]!r}); as in lm-eval's scoring, that part of the "
            "answer is not trained. Begin the answers with a space"
        )
    return tuple(examples)
