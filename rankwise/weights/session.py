"""One model in memory that answers tasks: for studies, and for adapters that are in none."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from rankwise.engine.models.base_folder import BaseModel
from rankwise.engine.models.devices import (
    ResolvedPrecision,
    choose_device,
    give_back_memory,
    provenance_on,
    resolve_precision,
)
from rankwise.engine.models.loading import load_tokenizer
from rankwise.engine.models.placed import load_to_score
from rankwise.engine.models.structure import context_length, model_skeleton
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.served import ServedModel
from rankwise.errors import ConfigError, DataError, ModelError, TaskError
from rankwise.findings.pairs import accuracy_difference, pair_items, paired_test
from rankwise.records import quantities
from rankwise.records.audits import AuditScore
from rankwise.records.clusters import Ties, cluster_numbers, linked_clusters, ties_of
from rankwise.records.config.own_rows import OwnSetConfig
from rankwise.records.config.study import EvaluationConfig
from rankwise.records.config.training import Precision
from rankwise.records.folder import BASE
from rankwise.records.results import (
    JudgedItems,
    ModelResults,
    answered,
    judged_items,
    left_out_warnings,
    missing_items,
)
from rankwise.records.study import Provenance
from rankwise.tasks import requests
from rankwise.tasks.evaluation import ScoredModel, Scoring, evaluate, responses_of
from rankwise.tasks.judgement import Responses
from rankwise.tasks.questions import Advance, LogLikelihood
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.tasks.user_data import load_own_set
from rankwise.weights.audit import Audited, AuditScores, check_weights

CONFIDENCE = 0.95
"""The confidence of every interval here; a study has ``recommendation.confidence``."""


Samples = dict[tuple[str, str], list[dict[str, Any]]]
"""(model, task) -> a line for each item and filter, as lm-eval logs them."""


class ScoreSettings(NamedTuple):
    """Which tasks to score, and how; as in a study's ``evaluation`` section."""

    tasks: tuple[str, ...]
    tasks_path: tuple[Path, ...] = ()
    allow_task_code: bool = False
    own: Mapping[str, OwnSetConfig] = MappingProxyType({})
    num_fewshot: int | None = None
    limit: int | None = None
    chat_template: bool = False
    precision: Precision = "auto"

    @property
    def resolved_precision(self) -> ResolvedPrecision:
        """The precision of scoring on the device here."""
        return resolve_precision(self.precision, choose_device())

    def prepared(self, tokenizer: Any, model_config: Any) -> list[PreparedTask]:
        """Every named task, groups as their leaves, for a tokenizer and what its model reads.

        Behind them are the own sets, each by the task that decides.

        Raises:
            TaskError: as ``requests.prepared_tasks``; or a set has the name of a task.
            DataError: likewise, or the rows of a set cannot be scored.
        """
        length = context_length(model_config, tokenizer)
        settings = EvaluationConfig(
            num_fewshot=self.num_fewshot, limit=self.limit, chat_template=self.chat_template
        )
        allow_code = self.allow_task_code
        found = requests.prepared_tasks(
            self.tasks, self.tasks_path, tokenizer, length, settings, allow_code=allow_code
        )
        for name, own_set in self.own.items():
            if name in {task.name for task in found}:
                raise TaskError(f"there is a task named {name!r}; rename the set in the contract.")
            try:
                own = load_own_set(
                    name,
                    own_set,
                    tokenizer,
                    chat_template=self.chat_template,
                    max_length=length,
                    allow_code=allow_code,
                )
            except DataError as error:
                raise DataError(f"{name}: {error}") from error
            task, num_empty = own.tasks[0], own.read.num_without_answer
            if num_empty:
                left_out = f"{quantities.counted(num_empty, 'row')} without an answer left out"
                task = task._replace(warning="; ".join(filter(None, (left_out, task.warning))))
            found.append(requests.prepared_task(task, tokenizer, length, settings))
        return found


def prepared_tasks(audited: Audited, settings: ScoreSettings) -> list[PreparedTask]:
    """Every named task, groups as their leaves, tokenised for the base.

    Raises:
        ConfigError: a chat template is wanted and the base has none.
        ModelError: a checkpoint has no embeddings for some of the base's tokens.
        TaskError: as ``requests.prepared_tasks``.
        DataError: likewise.
    """
    tokenizer = load_tokenizer(audited.base.folder)
    if settings.chat_template and not tokenizer.chat_template:
        problem = f"--chat-template: the tokenizer of {audited.base.name} has none; leave it out"
        raise ConfigError("rankwise", [problem])
    skeleton: Any = model_skeleton(audited.base.folder)
    if audited.kind == "checkpoint":  # which reads the base's tokens, and may have more
        checkpoint: Any = model_skeleton(audited.target)
        of_base, size = (
            int(each.get_input_embeddings().weight.shape[0]) for each in (skeleton, checkpoint)
        )
        num_tokens = min(len(tokenizer), of_base)
        if size < num_tokens:
            raise ModelError(
                f"{audited.target} has vocab_size {size}, and the tokenizer of "
                f"{audited.base.name} {num_tokens} tokens: it cannot read its base's prompts. "
                "Leave --tasks out to analyse its weights alone."
            )
    return settings.prepared(tokenizer, skeleton.config)


def cut_warnings(tasks: Sequence[PreparedTask]) -> tuple[str, ...]:
    """That some of the items of tasks are not read whole, or their right answers not written."""
    warned = [f"{task.name}: {task.loaded.warning}." for task in tasks if task.loaded.warning]
    cut = [
        f"{task.name}: {quantities.counted(task.num_truncated, 'item')} of "
        f"{quantities.count(task.num_items)} are longer than the model reads and lose their left "
        "end."
        for task in tasks
        if task.num_truncated
    ]
    return *warned, *cut


class ScoringSession:
    """A model in memory that answers tasks: as it is, and with adapters on it.

    Whatever is scored goes through one: the stages of a study, forms, checks, repairs, audits, and
    a model that a Trainer trains.

    Attributes:
        model: it; who changes its weights scores them by ``reopened``, and puts them back.
        tokenizer: its base's.
        scorer: asks it, and has the adapters that are on it.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        advance: Advance = lambda _: None,
        *,
        step_tokens: int | None = None,
        max_lanes: int = 1,
    ) -> None:
        """Take a model that is loaded, or in the middle of its training.

        Args:
            model: in eval mode.
            tokenizer: of its base.
            advance: receives the number of tokens read or written, ``num_tokens`` per task and
                model.
            step_tokens: the most of one forward pass; None: ``STEP_TOKENS``.
            max_lanes: parts of the continuations that are read side by side, on a CPU.

        Raises:
            ModelError: the model cannot be scored.
        """
        self.model, self.tokenizer, self._advance = model, tokenizer, advance
        self._step_tokens, self._max_lanes = step_tokens, max_lanes
        self.scorer = ResidentScorer(
            model, tokenizer, max_batch_tokens=step_tokens, max_lanes=max_lanes
        )

    @classmethod
    def of(
        cls,
        base: BaseModel,
        precision: ResolvedPrecision,
        advance: Advance = lambda _: None,
        *,
        weights: Path | None = None,
    ) -> ScoringSession:
        """Load a base, or the model of another folder that reads the base's tokens.

        Raises:
            ModelError: it cannot be loaded or scored.
        """
        model = load_to_score(weights or base.folder, precision, choose_device())
        return cls(model, load_tokenizer(base.folder), advance)

    def reopened(self) -> ScoringSession:
        """The same model, whose weights have changed: whether it can be read is tried again."""
        give_back_memory(choose_device())
        return ScoringSession(
            self.model,
            self.tokenizer,
            self._advance,
            step_tokens=self._step_tokens,
            max_lanes=self._max_lanes,
        )

    @cached_property
    def provenance(self) -> Provenance:
        """What produces its scores."""
        return provenance_on(next(self.model.parameters()).device)

    def score(
        self,
        models: Sequence[ScoredModel],
        task: PreparedTask,
        *,
        metric: str | None = None,
        advance: Advance | None = None,
    ) -> list[Scoring]:
        """Score models on a task together, as ``tasks.evaluation.evaluate`` says.

        ``advance`` takes the place of the session's own.
        """
        return evaluate(self.scorer, models, task, metric=metric, advance=advance or self._advance)

    def results(
        self,
        tasks: Sequence[PreparedTask],
        name: str | None,
        adapters: Mapping[str, Audited] = MappingProxyType({}),
        samples: Samples | None = None,
    ) -> list[ModelResults]:
        """The model by a name, and then each adapter on it by its own, all in one pass.

        Without a name the model itself is not scored.

        ``samples`` receives the lines of each model on each task, as lm-eval logs them; those of
        the base may be there already.

        Raises:
            ModelError: an adapter does not fit.
            RecordError: a score is not finite.
            UnchangedOutputsError: an adapter with a non-zero update answers as the model does.
        """
        for each, audited in adapters.items():
            assert audited.adapter is not None
            self.scorer.put_on(each, audited.adapter)
            if audited.has_update:
                refuse_unapplied(self.scorer, [each], probes(tasks[0].requests))
        scored = [ScoredModel(each, each, each) for each in adapters]
        if name is not None:
            scored.insert(0, ScoredModel(name, name))
        found = results_by(self.scorer, scored, tasks, self._advance, samples)
        for each in adapters:
            self.scorer.take_off(each)
        return found


def results_by(
    scorer: ResidentScorer | ServedModel,
    scored: Sequence[ScoredModel],
    tasks: Sequence[PreparedTask],
    advance: Advance,
    samples: Samples | None = None,
) -> list[ModelResults]:
    """The results of models of any scorer; see ``ScoringSession.results``."""
    by_task: list[list[Scoring]] = []
    for task in tasks:
        of_base: dict[int, tuple[Responses, ...]] | None = None
        if task.loaded.is_against_base and samples and (BASE, task.name) in samples:
            of_base = responses_of(samples[BASE, task.name])
        by_task.append(
            evaluate(scorer, scored, task, metric=None, advance=advance, of_base=of_base)
        )
    if samples is not None:
        for scoring in itertools.chain.from_iterable(by_task):
            samples[scoring.record.model, scoring.record.task] = scoring.samples
    return [_results(of_model, tasks) for of_model in zip(*by_task, strict=True)]


def _results(scorings: Sequence[Scoring], tasks: Sequence[PreparedTask]) -> ModelResults:
    """One model's scorings, at least one, by the metric that decides each.

    Items are clustered as a study's are: by what they ask or share, and by the column of own data.
    """
    judged: dict[str, JudgedItems] = {}
    documents: dict[str, dict[int, Any]] = {}
    ties: dict[str, Sequence[Ties]] = {}
    named: dict[str, Sequence[int]] = {}
    for each, task in zip(scorings, tasks, strict=True):
        lines = [s for s in each.samples if s["filter"] == each.record.decision_filter]
        judged[task.name] = judged_items(each.record, lines)
        of_task = documents[task.name] = {int(line["doc_id"]): line["doc"] for line in lines}
        ties[task.name] = ties_of(lines)
        column, numbered = task.loaded.cluster, answered(each.record, lines)
        if column is not None and len({line["doc"][column] for line in numbered}) > 1:
            named[task.name] = cluster_numbers(of_task, column, "columns.cluster", task.name)
    clusters = {
        task: dict(zip(documents[task], numbers, strict=True))
        for task, numbers in linked_clusters(ties, named).items()
        if numbers is not None
    }
    return ModelResults.of(scorings[0].record.model, None, judged).in_clusters(clusters)


def comparable(models: Sequence[ModelResults]) -> list[ModelResults]:
    """The models without the items that a check gave one of them no number for."""
    missing = missing_items(models)
    return [model.without_items(missing) for model in models]


ADAPTED = "adapted"


def audit_scores(
    audited: Audited,
    tasks: Sequence[PreparedTask],
    settings: ScoreSettings,
    advance: Advance = lambda _: None,
) -> AuditScores:
    """Score base and adapted model: an adapter together with the base, a checkpoint after it.

    Args:
        audited: adapter or checkpoint, with its base.
        tasks: from ``prepared_tasks``; at least one.
        settings: the same as there.
        advance: receives the number of tokens read or written; ``num_tokens`` per task and model.

    Raises:
        ModelError: a model cannot be loaded, or ``audit`` would refuse its weights.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: an adapter with a non-zero update answers as the base does.
    """
    check_weights(audited)
    precision, answers_as_base = settings.resolved_precision, False

    def alone(name: str) -> tuple[ModelResults, list[LogLikelihood]]:
        """A whole model's results, and its answers to a few texts that tell it from others."""
        weights = audited.base.folder if name == BASE else audited.target
        session = ScoringSession.of(audited.base, precision, advance, weights=weights)
        (own,) = session.results(tasks, name)
        (probed,) = session.scorer.log_likelihoods([None], probes(tasks[0].requests))
        return own, probed

    if audited.kind == "adapter":
        session = ScoringSession.of(audited.base, precision, advance)
        base, adapted = session.results(tasks, BASE, {ADAPTED: audited})
    else:
        (base, before), (adapted, after) = alone(BASE), alone(ADAPTED)
        answers_as_base = before == after
    base, adapted = comparable([base, adapted])
    give_back_memory(choose_device())
    return AuditScores(
        scores=tuple(_score(task, base, adapted) for task in tasks),
        confidence=CONFIDENCE,
        precision=precision,
        warnings=(*cut_warnings(tasks), *left_out_warnings(missing_items([base, adapted]))),
        answers_as_base=answers_as_base,
    )


def _score(task: PreparedTask, first: ModelResults, second: ModelResults) -> AuditScore:
    pair = pair_items(first, second, task.name)
    test = paired_test(pair, CONFIDENCE)
    items = first.items[task.name]
    own = paired_test(pair_items(first, second, task.name, by_accuracy=True), CONFIDENCE)
    root = math.sqrt(len(pair.base))
    return AuditScore(
        task=task.name,
        task_version=task.loaded.version,
        metric=items.metric,
        filter=first.evaluations[task.name].decision_filter,
        unit=items.unit,
        higher_is_better=items.higher_is_better,
        num_fewshot=task.num_fewshot,
        chat_template=task.chat_template,
        limit=task.limit,
        base_stderr=float(pair.base.std(ddof=1)) / root,
        adapted_stderr=float(pair.adapted.std(ddof=1)) / root,
        **test.values(AuditScore, own),
        accuracy=items.accuracy and accuracy_difference(items.accuracy.metric, test, own),
    )
