"""Scores a run in a form in which it is deployed, on the study's own items."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING

from torch import nn

from rankwise.engine.models import base as models
from rankwise.engine.models.devices import provenance_on
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.errors import ModelError
from rankwise.findings.deployment import FormWeights
from rankwise.records.deployment import FormRecord
from rankwise.records.fingerprints import scoring_fingerprint
from rankwise.records.forms import AS_TRAINED, model_in_form
from rankwise.records.study import PlannedRun, TaskEvaluation
from rankwise.study.context import StudyContext
from rankwise.study.planning.plan import metric_of
from rankwise.study.work.scoring import base_answers
from rankwise.tasks.evaluation import ScoredModel, evaluate
from rankwise.tasks.update_guard import probes, refuse_unapplied
from rankwise.weights.deployment import ADAPTER, instead_warnings
from rankwise.weights.forms import find_forms
from rankwise.weights.lowrank import read_updates
from rankwise.weights.merging import merged_as

if TYPE_CHECKING:
    from rankwise.study.stages.form import CheckForm


def check_form(context: StudyContext, stage: CheckForm, run: PlannedRun) -> None:
    """Put a run into a form, and score that in float32; tasks that are scored stay so.

    Raises:
        ModelError: the adapter is more than plain LoRA, its update is zero or does not fit the
            form, or what the form needs is not here.
        StorageError: a record cannot be written.
    """
    folder, provenance = context.folder, provenance_on(context.plan.device)
    updates = read_updates(folder.weights(run))
    if all(update.frobenius_norm == 0 for update in updates.values()):
        raise ModelError(f"the update of {run.name} is zero: there is nothing to deploy.")
    weights, warnings = FormWeights(0), list[str]()
    with _float32_base(context) as base:
        if stage.form == AS_TRAINED:
            scorer = _scorer(context, base)
            scorer.put_on(ADAPTER, folder.weights(run))
            refuse_unapplied(scorer, [ADAPTER], probes(context.plan.tasks[stage.tasks[0]].requests))
            try:
                seconds = _score(context, stage, run, scorer, ADAPTER)
            finally:
                scorer.take_off(ADAPTER)
        else:
            (form,) = find_forms([stage.form])
            with merged_as(base, form, updates) as merged:
                seconds = _score(context, stage, run, _scorer(context, base), None)
            weights, warnings = merged.weights, instead_warnings(form.name, merged)
    record = FormRecord(
        fingerprint=stage.fingerprint_of(run),
        model=run.name,
        form=stage.form,
        num_bytes=weights.num_bytes,
        delta=weights.delta,
        modules=weights.modules,
        warnings=tuple(warnings),
        score_seconds=seconds,
        provenance=provenance,
    )
    folder.write(stage.path_of(folder, run), record)


@contextlib.contextmanager
def _float32_base(context: StudyContext) -> Generator[nn.Module]:
    """The base, whose weights may be changed within the block and are put back by who does."""
    plan, held = context.plan, context.models
    if plan.record.precision == "float32":
        held.release()
        yield held.base()
        return
    held.release(base=True)
    yield models.load_frozen(models.fetch_weights(plan.base), "float32", plan.device)


def _scorer(context: StudyContext, base: nn.Module) -> ResidentScorer:
    plan = context.plan
    return ResidentScorer(base, plan.tokenizer, max_batch_tokens=plan.step_tokens)


def _score(
    context: StudyContext,
    stage: CheckForm,
    run: PlannedRun,
    scorer: ResidentScorer,
    adapter: str | None,
) -> float:
    """Score what is not scored yet; the seconds of all tasks."""
    plan, folder, study = context.plan, context.folder, context.study
    name = model_in_form(run.name, stage.form)
    own = stage.weights_in_form(study, run, stage.form)
    seconds = 0.0
    for task in stage.tasks:
        prepared, wanted = plan.task_of(run, task), scoring_fingerprint(study, run, task, own)
        work = float(study.tokens_of(run, [task]))
        record = folder.finished(folder.evaluation_file(name, task), TaskEvaluation, wanted)
        if record is None:
            per_token = work / max(prepared.num_tokens, 1)
            (scoring,) = evaluate(
                scorer,
                [ScoredModel(name, wanted, adapter)],
                prepared,
                metric=metric_of(study.config, task),
                advance=lambda num, share=per_token: context.tell.advanced(num * share),
                of_base=base_answers(folder, prepared),
            )
            record = scoring.record.model_copy(update={"provenance": provenance_on(plan.device)})
            folder.write_evaluation(record, scoring.samples)
        else:
            context.tell.skipped(work)
        seconds += record.score_seconds
    return seconds
