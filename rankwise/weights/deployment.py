"""Whether an adapter survives being deployed: its forms against the adapter as trained."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from rankwise.engine.models import base as models
from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.devices import (
    DTYPES,
    ResolvedPrecision,
    choose_device,
    give_back_memory,
    provenance_on,
    resolve_precision,
)
from rankwise.engine.models.files import weights_files
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ConfigError, ModelError
from rankwise.findings.deployment import FormWeights, LossRule, judged_form
from rankwise.findings.stats.items import POINTS
from rankwise.records import quantities
from rankwise.records.deployment import CheckReference, DeploymentCheck, JudgedForm, worst
from rankwise.records.folder import BASE
from rankwise.records.results import ModelResults
from rankwise.tasks.evaluation import ScoredModel, evaluate
from rankwise.tasks.questions import Advance
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.audit import Audited
from rankwise.weights.audit_scores import ScoreSettings, cut_warning, model_results
from rankwise.weights.forms import Form
from rankwise.weights.merging import Merged, merged_as

ADAPTER = "adapter"


class Question(NamedTuple):
    """What is asked of every form.

    Attributes:
        tasks: prepared for the base, at least one.
        settings: with which they were prepared.
        rule: how much may be lost.
    """

    tasks: Sequence[PreparedTask]
    settings: ScoreSettings
    rule: LossRule

    def num_tokens(self, num_models: int) -> int:
        """That so many models read and write."""
        return num_models * sum(task.num_tokens for task in self.tasks)


def check_deployment(
    found: Audited, question: Question, forms: Sequence[Form], advance: Advance = lambda _: None
) -> DeploymentCheck:
    """Merge an adapter into each form, and compare that with the adapter beside its base.

    Args:
        found: an adapter, with its base.
        question: what is asked.
        forms: at least one.
        advance: receives the number of tokens read or written, for base, adapter and each form.

    Raises:
        ConfigError: a form has numbers that are not exact in the precision of scoring.
        ModelError: the base cannot be loaded, the update is zero, or does not fit a form.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: the adapter answers as the base does.
    """
    if all(update.frobenius_norm == 0 for update in found.updates.values()):
        raise ModelError(f"the update of {found.target} is zero: there is nothing to deploy.")
    _refuse_rounded(forms, resolve_precision(question.settings.precision, choose_device()))
    scored = _Scored(found, question, advance)
    base, adapter = scored.base_and_adapter()
    warnings: list[str] = []
    judged: list[JudgedForm] = []
    for form in forms:
        with merged_as(scored.base_model, form, found.updates) as merged:
            warnings += instead_warnings(form.name, merged)
            own = scored.alone(form.name)
        judged.append(judged_form(adapter, own, merged.weights, question.rule))
    return scored.record("adapter", base, judged, warnings)


def check_retention(
    found: Audited, question: Question, advance: Advance = lambda _: None
) -> DeploymentCheck:
    """Compare an adapter as trained with its base.

    Args:
        found: an adapter, with its base.
        question: what is asked.
        advance: receives the number of tokens read or written, for base and adapter.

    Raises:
        ModelError: the base cannot be loaded.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: an adapter with a non-zero update answers as the base does.
    """
    scored = _Scored(found, question, advance)
    base, adapter = scored.base_and_adapter()
    weights = FormWeights(_num_bytes(found, with_adapter=True))
    judged = judged_form(base, adapter, weights, question.rule)
    return scored.record("base", base, [judged], [])


def instead_warnings(form: str, merged: Merged) -> list[str]:
    """That some matrices are stored in a simpler format than the form's."""
    if not merged.num_instead:
        return []
    return [
        f"{form}: {quantities.count(merged.num_instead)} of "
        f"{quantities.count(merged.num_matrices)} matrices have rows that are no whole number of "
        "blocks; they are stored in float16."
    ]


class _Scored:
    """The base in memory, and what it scores with an adapter, and in other weights."""

    def __init__(self, found: Audited, question: Question, advance: Advance) -> None:
        self._found, self._question, self._advance = found, question, advance
        self._device = choose_device()
        self._precision: ResolvedPrecision = resolve_precision(
            question.settings.precision, self._device
        )
        folder = found.base.folder
        self.base_model: nn.Module = models.load_frozen(folder, self._precision, self._device)
        self._tokenizer = models.load_tokenizer(folder)

    def base_and_adapter(self) -> tuple[ModelResults, ModelResults]:
        """Both, in one pass."""
        scorer = self._scorer()
        scorer.put_on(ADAPTER, self._found.target)
        if any(update.frobenius_norm > 0 for update in self._found.updates.values()):
            refuse_unapplied(scorer, [ADAPTER], probes(self._question.tasks[0].requests))
        both = [ScoredModel(BASE, BASE), ScoredModel(ADAPTER, ADAPTER, ADAPTER)]
        base, adapter = self._results(scorer, both)
        return base, adapter

    def alone(self, name: str) -> ModelResults:
        """The model as its weights are now."""
        (own,) = self._results(self._scorer(), [ScoredModel(name, name)])
        return own

    def record(
        self,
        reference: CheckReference,
        base: ModelResults,
        judged: Sequence[JudgedForm],
        warnings: Sequence[str],
    ) -> DeploymentCheck:
        """What was found, with what it was found by."""
        found, question = self._found, self._question
        cut = [cut_warning(task) for task in question.tasks if task.num_truncated]
        return DeploymentCheck(
            base=found.base.name,
            base_fingerprint=found.base.fingerprint,
            adapter=str(found.target),
            reference=reference,
            reference_bytes=_num_bytes(found, with_adapter=reference == "adapter"),
            base_scores={
                task: (POINTS if items.unit == "points" else 1.0) * statistics.fmean(items.values)
                for task, items in base.items.items()
            },
            confidence=question.rule.confidence,
            precision=self._precision,
            forms=tuple(judged),
            warnings=(*found.warnings, *cut, *warnings),
            verdict=worst([form.verdict for form in judged]),
            provenance=provenance_on(self._device),
        )

    def _scorer(self) -> ResidentScorer:
        give_back_memory(self._device)
        return ResidentScorer(self.base_model, self._tokenizer)

    def _results(self, scorer: ResidentScorer, scored: Sequence[ScoredModel]) -> list[ModelResults]:
        by_task = [
            evaluate(scorer, scored, task, metric=None, advance=self._advance)
            for task in self._question.tasks
        ]
        return [model_results(of_model) for of_model in zip(*by_task, strict=True)]


def _refuse_rounded(forms: Sequence[Form], precision: ResolvedPrecision) -> None:
    """Refuse forms whose numbers would be rounded once more to be computed with."""
    dtype = DTYPES[precision]
    rounded = [form.name for form in forms if dtype not in (torch.float32, form.dtype)]
    if rounded:
        problem = (
            f"--precision {precision} would round the weights of {', '.join(rounded)} once more; "
            "score these in float32"
        )
        raise ConfigError("check", [problem])


def _num_bytes(found: Audited, *, with_adapter: bool) -> int:
    """Of the files of weights."""
    files = weights_files(found.base.folder)
    files += [found.target / WEIGHTS_FILE] * with_adapter
    return sum(path.stat().st_size for path in files)
