"""What a study shows beside its recommendations, a row for each finding; every table of a study.

A row says how a finding is made from the judged study, and the forms in which others see it. The
page has a section for each (``report.page``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from rankwise.findings.axes import TrainTaskAxes, axis_effects
from rankwise.findings.card import VerdictCard, verdict_card
from rankwise.findings.checkpoints import TrainTaskCheckpoints, checkpoints
from rankwise.findings.deployment import DeployedRun, deployed_runs, deployment_rows
from rankwise.findings.gauges import TrainTaskGauges, gauges
from rankwise.findings.heads import TrainTaskHeads, effect_rows, head_findings, head_rows
from rankwise.findings.mechanisms import (
    TrainTaskMechanisms,
    agreement_rows,
    mechanisms,
)
from rankwise.findings.mitigations import TrainTaskMitigations, mitigations
from rankwise.findings.models import ModelSummary, summarise
from rankwise.findings.options import OptionGains, option_gains
from rankwise.findings.prompting import TrainTaskPrompting, prompting
from rankwise.findings.repairs import repair_rows
from rankwise.findings.retention import TrainTaskRetention, retention_groups
from rankwise.findings.rows import Row, RowsOf, each_of, flat
from rankwise.findings.signatures.found import failure_signatures
from rankwise.findings.signatures.signature import Signature
from rankwise.findings.slices import TrainTaskSlices, slices
from rankwise.findings.transfer import Transfer, transfer, transfer_rows
from rankwise.findings.tuning import TrainTaskRates, search_rows, tuned_rates
from rankwise.findings.variants import TrainTaskVariants, variants_beside_lora
from rankwise.findings.weights import TrainTaskWeights, spectrum_rows, weight_findings
from rankwise.records.base import VersionedRecord
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.repairs import AdapterRepair
from rankwise.records.results import StudyResults, TrainTaskResults


class JudgedStudy(NamedTuple):
    """A study and its verdict, as findings are made from them, and the findings made so far."""

    results: StudyResults
    recommendation: StudyRecommendation
    sources: tuple[OptionGains, ...]
    made: dict[str, Any]


class Finding(NamedTuple):
    """How a finding is made, and its forms.

    Attributes:
        compute: from the judged study.
        tables: by name, the rows of CSV, Parquet and data frames.
        lines: sentences of what was found of a trained task, for the terminal; what has some is in
            ``--json`` too.
    """

    compute: Callable[[JudgedStudy], Any]
    tables: Mapping[str, RowsOf] = MappingProxyType({})
    lines: Callable[[Any], Iterable[str]] | None = None


def _each(find: Callable[[OptionGains], Any], **tables: RowsOf) -> Finding:
    """A finding of every trained task that has one; tables are named with hyphens."""
    return _judged(lambda source, _: find(source), **tables)


def _judged(find: Callable[..., Any], *reads: str, **tables: RowsOf) -> Finding:
    """Such a finding that also rests on the trained task's verdict, and on findings before it."""

    def compute(of: JudgedStudy) -> tuple[Any, ...]:
        parts = zip(of.sources, of.recommendation.by_train_task, strict=True)
        made = (
            find(source, part, *(_of_task(of.made[name], part.train_task) for name in reads))
            for source, part in parts
        )
        return tuple(one for one in made if one is not None)

    return Finding(compute, {name.replace("_", "-"): rows for name, rows in tables.items()})


def _of_task(found: Iterable[Any], train_task: str) -> Any:
    return next((one for one in found if one.train_task == train_task), None)


def _statements(found: Iterable[Any]) -> Iterator[str]:
    return (statement for of_task in found for statement in of_task.statements)


FINDINGS: Mapping[str, Finding] = {
    "signatures": Finding(
        lambda of: tuple(itertools.chain(*_judged(failure_signatures).compute(of))),
        {"signatures": lambda found, _: map(flat, found)},
        lambda found: (f"{one.title}: {one.statement}" for one in found),
    ),
    "rates": Finding(lambda of: tuned_rates(of.results), {"search": search_rows}),
    "prompting": _judged(prompting, prompting=each_of("rows"))._replace(lines=_statements),
    "checkpoints": _judged(checkpoints, checkpoints=each_of("points")),
    "transfer": Finding(lambda of: transfer(of.sources), {"transfer": transfer_rows}),
    "retention": _each(retention_groups, retention=each_of("groups.changes", "subjects.changes")),
    "slices": _each(slices, slices=each_of("rows"))._replace(lines=_statements),
    "gauges": _each(gauges, gauges=each_of("models")),
    "axes": _judged(axis_effects, axes=each_of("axes.effects", "points")),
    "mitigations": _judged(mitigations, mitigations=each_of("arms")),
    "repairs": Finding(
        lambda of: tuple(run.adapter_repair for run in of.results.runs if run.adapter_repair),
        {"repairs": repair_rows},
    ),
    "deployed": Finding(
        lambda of: deployed_runs(of.results, of.recommendation),
        {"deployment": deployment_rows},
        lambda found: itertools.chain(*(run.lines for run in found)),
    ),
    "variants": _judged(variants_beside_lora, variants=each_of("rows")),
    "mechanisms": _judged(
        mechanisms,
        mechanism_gaps=each_of("gaps"),
        mechanism_pairs=each_of("matched.pairs"),
        mechanism_agreement=agreement_rows,
    ),
    "weights": _each(weight_findings, weights=spectrum_rows),
    "heads": _each(head_findings, heads=head_rows, head_effects=effect_rows),
    "cards": _judged(verdict_card, "axes", "prompting"),
}
"""Every finding by its name, that of its field in ``StudyFindings``: in the order in which they are
made and stand on the page."""


class StudyFindings(VersionedRecord, has_texts=True):
    """``findings.json``: what ``FINDINGS`` have made.

    All but ``signatures``, ``repairs``, ``deployed`` and ``transfer`` have an entry for each
    trained task that has such a thing. ``repairs`` has one for each repaired run, ``deployed`` for
    each that was checked in forms; ``transfer`` is None where nothing is tested out of the trained
    domain.
    """

    signatures: tuple[Signature, ...] = ()
    rates: tuple[TrainTaskRates, ...] = ()
    prompting: tuple[TrainTaskPrompting, ...] = ()
    checkpoints: tuple[TrainTaskCheckpoints, ...] = ()
    transfer: Transfer | None = None
    retention: tuple[TrainTaskRetention, ...] = ()
    slices: tuple[TrainTaskSlices, ...] = ()
    gauges: tuple[TrainTaskGauges, ...] = ()
    axes: tuple[TrainTaskAxes, ...] = ()
    mitigations: tuple[TrainTaskMitigations, ...] = ()
    repairs: tuple[AdapterRepair, ...] = ()
    deployed: tuple[DeployedRun, ...] = ()
    variants: tuple[TrainTaskVariants, ...] = ()
    mechanisms: tuple[TrainTaskMechanisms, ...] = ()
    weights: tuple[TrainTaskWeights, ...] = ()
    heads: tuple[TrainTaskHeads, ...] = ()
    cards: tuple[VerdictCard, ...] = ()

    @property
    def with_lines(self) -> dict[str, tuple[Any, ...]]:
        """The findings with ``lines``, by name: people read these beside a verdict."""
        return {name: getattr(self, name) for name, its in FINDINGS.items() if its.lines}

    def card_lines(self, card: VerdictCard) -> Iterator[str]:
        """What stands below the rows of a card, in the terminal and on the page."""
        if card.remark:
            yield card.remark
        signs = Counter(s.title for s in self.signatures if s.train_task == card.train_task)
        if signs:
            named = ", ".join(f"{title} ({number})" for title, number in signs.items())
            yield f"To check: {named}."
        yield from (
            f"- {line}"
            for run in self.deployed
            if run.train_task == card.train_task
            for line in run.lines
        )

    def lines(self, train_task: str) -> Iterator[str]:
        """What the terminal says of a trained task beside its verdict."""
        for name, found in self.with_lines.items():
            to_lines = FINDINGS[name].lines
            assert to_lines is not None
            yield from to_lines(one for one in found if one.train_task == train_task)


def study_findings(results: StudyResults, recommendation: StudyRecommendation) -> StudyFindings:
    """All findings of a finished study; the recommendation is made before."""
    judged = JudgedStudy(results, recommendation, option_gains(results, recommendation), {})
    for name, finding in FINDINGS.items():
        judged.made[name] = finding.compute(judged)
    return StudyFindings(**judged.made)


def finding_tables(findings: StudyFindings, results: StudyResults) -> dict[str, list[Row]]:
    """The rows of every table of the findings that has any, by the table's name."""
    tables = {
        table: list(rows_of(found, results))
        for name, finding in FINDINGS.items()
        if (found := getattr(findings, name)) is not None
        for table, rows_of in finding.tables.items()
    }
    return {table: rows for table, rows in tables.items() if rows}


_PLAN = ("method", "rank", "alpha", "scaling", "learning_rate", "seed", "target_modules",
         "num_trainable_parameters", "trainable_share")  # fmt: skip
_RUN = ("num_steps", "num_tokens", "train_seconds", "peak_memory_bytes")
_SUMMARY = ("in_domain", "gain", "out_of_domain", "out_of_domain_change", "retention",
            "retention_change", "held_out_loss", "forgetting")  # fmt: skip
_EVALUATION = ("task", "task_version", "num_fewshot", "chat_template", "chance")


def study_tables(
    results: StudyResults, recommendation: StudyRecommendation, findings: StudyFindings
) -> dict[str, list[Row]]:
    """The rows of every table that has any, by the table's name, all trained tasks together."""
    tables: dict[str, list[Row]] = {}
    for part in recommendation.by_train_task:
        own = results.of(part.train_task)
        for name, rows in task_tables(own, part, summarise(own, part)).items():
            tables.setdefault(name, []).extend({"train_task": part.train_task, **r} for r in rows)
    return tables | finding_tables(findings, results)


def task_tables(
    results: TrainTaskResults, recommendation: Recommendation, summaries: Sequence[ModelSummary]
) -> dict[str, list[Row]]:
    """The rows of every table of a trained task that has any, by the table's name.

    ``runs`` has one row for each model, ``differences`` one for each run and task, ``formats`` the
    same for tasks that were also scored in the format of the training, ``ranks`` what each rank was
    judged on, ``scores`` every metric of every model and task as lm-evaluation-harness defines it.
    """
    tables: dict[str, Iterable[Row]] = {
        "runs": _run_rows(summaries),
        "differences": map(flat, recommendation.comparisons),
        "formats": map(flat, recommendation.format_effects),
        "ranks": map(flat, recommendation.verdicts),
        "scores": (
            flat(
                score,
                model=model.name,
                **{name: getattr(evaluation, name) for name in _EVALUATION},
                decides=score == evaluation.decision,
            )
            for model in (results.base, *results.runs)
            for evaluation in model.evaluations.values()
            for score in evaluation.metrics
        ),
    }
    return {name: listed for name, rows in tables.items() if (listed := list(rows))}


def _run_rows(summaries: Sequence[ModelSummary]) -> Iterator[Row]:
    """One row for each model, flat: its settings, its means with their bounds, its cost."""
    for summary in summaries:
        run, worst = summary.run, summary.worst_retention
        row: dict[str, Any] = {"run": summary.name, "status": "base" if run is None else run.status}
        row |= {name: None if run is None else getattr(run.planned, name) for name in _PLAN}
        row["recommended"] = summary.is_recommended
        row |= {name: getattr(summary, name) for name in _SUMMARY}
        row["worst_retention_task"] = None if worst is None else worst.task
        row["worst_retention_change"] = None if worst is None else worst.difference
        row |= {name: None if run is None else getattr(run, name) for name in _RUN}
        yield flat(row.items())
