"""Whether an adapter survives being deployed: its forms against the adapter as trained."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.engine.models.devices import DTYPES, choose_device, provenance_on
from rankwise.engine.models.files import weights_bytes
from rankwise.engine.models.loading import load_frozen, load_tokenizer
from rankwise.engine.scoring.served import ServedModel
from rankwise.errors import ConfigError, ModelError
from rankwise.findings.deployment import (
    FormWeights,
    LossRule,
    field_changes,
    judged_form,
    judged_server,
)
from rankwise.findings.item_table import changed_answers
from rankwise.findings.stats.items import POINTS
from rankwise.records import quantities
from rankwise.records.deployment import (
    CheckReference,
    DeploymentCheck,
    Served,
    ServedItems,
    worst,
)
from rankwise.records.folder import BASE
from rankwise.records.forms import is_served
from rankwise.records.p_right import Line
from rankwise.records.results import ModelResults, left_out_warnings, missing_items
from rankwise.tasks.evaluation import ScoredModel, responses_of
from rankwise.tasks.judgement import Responses
from rankwise.tasks.questions import Advance
from rankwise.tasks.requests import PreparedTask
from rankwise.tasks.update_guard import probes
from rankwise.weights.audit import Audited
from rankwise.weights.forms import Form
from rankwise.weights.merging import Merged, merged_as
from rankwise.weights.session import (
    Samples,
    ScoreSettings,
    ScoringSession,
    comparable,
    cut_warnings,
    results_by,
)

ADAPTER = "adapter"
# Share by which two log-likelihoods of a whole text may differ and still be the same answer.
_ALIKE = 0.01
_FEWEST_TEXTS = 5
"""Texts of the base, where the adapter writes others, by which a server is said to ignore it."""


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


def check_deployment(
    found: Audited,
    question: Question,
    forms: Sequence[Form],
    advance: Advance = lambda _: None,
    *,
    servers: Sequence[str] = (),
) -> DeploymentCheck:
    """Put an adapter into each form, and compare that with the adapter beside its own base.

    Args:
        found: an adapter, with its base.
        question: what is asked.
        forms: at least one, or a server.
        servers: URLs of models that are served, each with the model's name behind ``#``.
        advance: receives the number of tokens read or written, for base, adapter and each form.

    Raises:
        ConfigError: a form has numbers that are not exact in the precision of scoring, or a URL is
            none.
        ModelError: the base cannot be loaded, the update is zero, or does not fit a form; a server
            does not answer, or cannot answer this.
        RecordError: a task has fewer than two items.
        UnchangedOutputsError: the adapter answers as the base does.
    """
    if not found.has_update:
        raise ModelError(f"the update of {found.target} is zero: there is nothing to deploy.")
    precision, folder = question.settings.resolved_precision, found.base.folder
    # their numbers would be rounded once more to be computed with
    dtype = DTYPES[precision]
    if rounded := [form.name for form in forms if dtype not in (torch.float32, form.dtype)]:
        problem = (
            f"--precision {precision} would round the weights of {', '.join(rounded)} once more; "
            "score these in float32"
        )
        raise ConfigError("check", [problem])
    tokenizer = load_tokenizer(folder)
    served = [ServedModel(each, tokenizer) for each in dict.fromkeys(servers)]
    probed = probes([request for task in question.tasks for request in task.requests])
    for server in served:
        server.probe(probed, needs_likelihoods=need_likelihoods(question.tasks))
    # whole, as its weights are changed
    model = load_frozen(folder, precision, choose_device())
    session = ScoringSession(model, tokenizer, advance)
    samples: Samples = {}
    base, adapter = session.results(question.tasks, BASE, {ADAPTER: found}, samples)
    warnings: list[str] = []
    scored: list[ModelResults] = []
    weights: list[FormWeights] = []
    for form in forms:
        with merged_as(model, form, found.updates) as merged:
            warnings += instead_warnings(form.name, merged)
            beside = {form.name: found} if form.is_beside else {}
            itself = None if form.is_beside else form.name
            (own,) = session.reopened().results(question.tasks, itself, beside, samples)
        scored.append(own)
        weights.append(merged.weights)
    for server in served:
        asked = [ScoredModel(server.form, server.form)]
        scored += results_by(server, asked, question.tasks, advance, samples)
        weights.append(FormWeights(0))
    scored = comparable([adapter, *scored])
    record = record_of(found, question, base, scored, samples, weights, warnings)
    for server in served:
        server.finish()
    return record


def need_likelihoods(tasks: Sequence[PreparedTask]) -> bool:
    """Whether any task is answered by log-likelihoods, and not by texts."""
    return any(task.loaded.output_type != "generate_until" for task in tasks)


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
    session = ScoringSession.of(found.base, question.settings.resolved_precision, advance)
    samples: Samples = {}
    scored = session.results(question.tasks, BASE, {ADAPTER: found}, samples)
    base, adapter = comparable(scored)
    weights = FormWeights(num_bytes(found, with_adapter=True))
    return record_of(found, question, base, [base, adapter], samples, [weights])


def instead_warnings(form: str, merged: Merged) -> list[str]:
    """That some matrices are stored in a simpler format than the form's."""
    if not merged.num_instead:
        return []
    return [
        f"{form}: {quantities.count(merged.num_instead)} of "
        f"{quantities.count(merged.num_matrices)} matrices have rows that are no whole number of "
        "blocks; they are stored in float16."
    ]


def record_of(
    found: Audited,
    question: Question,
    base: ModelResults,
    scored: Sequence[ModelResults],
    samples: Samples,
    weights: Sequence[FormWeights],
    warnings: Sequence[str] = (),
) -> DeploymentCheck:
    """What was found, with what it was found by.

    ``scored`` has the reference, which is the base or the adapter as trained, and then the forms,
    all with the same items.
    """
    ours, *forms = scored
    confidence = question.rule.confidence
    reference: CheckReference = "base" if ours is base else "adapter"

    def read(model: str, task: str) -> Sequence[Line]:
        return samples[model, task]

    judged = [
        judged_form(ours, form, its, question.rule)
        for form, its in zip(forms, weights, strict=True)
    ]
    judged = [
        judged_server(each, _served(each.form, [*ours.items], samples))
        if is_served(each.form)
        else each
        for each in judged
    ]
    fields = [field_changes(ours, form, confidence) for form in forms]
    changed = [changed_answers(ours, form, read) for form in forms]
    return DeploymentCheck(
        base=found.base.name,
        base_fingerprint=found.base.fingerprint,
        adapter=str(found.target),
        reference=reference,
        reference_bytes=num_bytes(found, with_adapter=reference == "adapter"),
        base_scores={
            task: (POINTS if items.unit == "points" else 1.0) * statistics.fmean(items.values)
            for task, items in base.items.items()
        },
        confidence=confidence,
        precision=question.settings.resolved_precision,
        forms=tuple(judged),
        fields=tuple(itertools.chain.from_iterable(fields)),
        changed=tuple(itertools.chain.from_iterable(changed)),
        warnings=(
            *found.warnings,
            *cut_warnings(question.tasks),
            *left_out_warnings(missing_items(scored)),
            *warnings,
        ),
        verdict=worst([form.verdict for form in judged]),
        provenance=provenance_on(choose_device()),
    )


def _served(form: str, tasks: Sequence[str], samples: Samples) -> Served:
    models = (BASE, ADAPTER, form, ADAPTER)
    return served_beside(tasks, lambda task: [responses_of(samples[each, task]) for each in models])


def served_beside(
    tasks: Sequence[str], read: Callable[[str], Sequence[Mapping[int, Sequence[Responses]]]]
) -> Served:
    """A server's answers beside those of base and adapter, which are scored here.

    Where the base was scored in another precision than the adapter, its rounding is in both sums
    of the share. It is about that of the adapter, which was scored in both, and is taken out.

    Args:
        tasks: that all of them answered.
        read: of a task, by item: the answers of the base, of the adapter, of the server, and of the
            adapter once more, in the precision of the base.
    """
    by_task: list[ServedItems] = []
    moved = kept = away = as_adapter = as_base = changed = 0.0
    for task in tasks:
        base, ours, its, rounded = read(task)
        differ, largest = list[int](), list[float]()
        for doc_id, served in its.items():
            of_item = (base[doc_id], ours[doc_id], served, rounded[doc_id])
            before, after, answers, again = map(_flat, of_item)
            if isinstance(answers[0], str):
                changed += after != before
                as_adapter += answers == after != before
                as_base += answers == before != after
            else:
                numbers = zip(*map(_nats, (before, after, answers, again)), strict=True)
                for b, a, s, r in numbers:
                    noise = (a - r) ** 2
                    moved += (a - b) ** 2 - noise
                    kept += (s - b) * (a - b) - noise
                    away += (s - b) ** 2 - noise
                    largest.append(abs(s - a))
            if _differ(after, answers):
                differ.append(doc_id)
        by_task.append(
            ServedItems(
                task=task,
                num_examples=len(its),
                differ=tuple(sorted(differ)),
                largest_nats=max(largest, default=None),
            )
        )
    share, ignores = None, False
    if moved > 0:
        share = kept / moved
        ignores = share < 0.5 and away <= moved
    elif as_adapter + as_base:
        share = as_adapter / (as_adapter + as_base)
        # a text that is neither's is no sign of the base, and a near tie or two are none either
        ignores = as_base >= max(_FEWEST_TEXTS, changed / 2.0)
    return Served(tasks=tuple(by_task), adapter_share=share, ignores_adapter=ignores)


def _flat(responses: Sequence[Responses]) -> list[Any]:
    """An item's texts, (nats, is greedy) of its options, or the nats of its text."""
    return [*itertools.chain.from_iterable(responses)]


def _nats(answers: Sequence[Any]) -> list[float]:
    return [each[0] if isinstance(each, tuple) else each for each in answers]


def _differ(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether these are other answers: another text or option, or another number by over 1 %."""
    if isinstance(ours[0], str):
        return list(ours) != list(theirs)
    before, after = _nats(ours), _nats(theirs)
    if len(before) > 1:
        return before.index(max(before)) != after.index(max(after))
    if isinstance(ours[0], tuple):
        return ours[0][1] != theirs[0][1]
    return abs(after[0] - before[0]) > _ALIKE * abs(before[0])


def num_bytes(found: Audited, *, with_adapter: bool) -> int:
    """The bytes of the files of weights."""
    adapter = (found.target / WEIGHTS_FILE).stat().st_size if with_adapter else 0
    return weights_bytes(found.base.folder) + adapter
