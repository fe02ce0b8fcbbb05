"""The reference paper's claims on a finished study: supported, contradicted, or undecided.

    python -m benchmarks.claims DIR

The paper is arXiv:2512.15634. A claim that speaks of all ranks or tasks is contradicted by one
that is shown to be otherwise; one that says that something can happen is supported by one case.
The intervals of one claim's comparisons hold together (Bonferroni), since one of them decides.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from rankwise.findings.options import Option, OptionGains, option_gains
from rankwise.findings.pairs import interval_of
from rankwise.findings.recommendation import recommend
from rankwise.findings.statements import TRANSFER_ALARM_SHARE, score_range
from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.folder import StudyFolder
from rankwise.records.recommendation import Recommendation, StudyRecommendation
from rankwise.records.study import Interval, State, Unit
from rankwise.study.reading import read_results

Verdict = Literal["supported", "contradicted", "undecided", "not tested"]

REASONING = frozenset({"reasoning", "mathematics"})
RECALL = frozenset({"knowledge", "recall", "medicine", "law"})
PRAISED_RANKS = range(32, 65)
"""The paper's: rank 32-64."""
STRONG = 0.5
"""A base is strong if it is right in this part, at least, of what chance leaves to be known."""


_STATES: dict[int, State] = {1: "yes", 0: "undecided", -1: "no"}


class Claim(Record):
    """One claim with the numbers that speak for or against it.

    ``evidence`` has one sentence for each comparison that was made, or why none could be.
    ``margin`` is the δ on which the verdict rests, in words; None where it rests on none.
    """

    name: str
    statement: str
    verdict: Verdict
    evidence: tuple[str, ...]
    margin: str | None = None

    @property
    def judgement(self) -> str:
        """The verdict with its margin: contradicted at δ = 14.3 points."""
        return self.verdict if self.margin is None else f"{self.verdict} at {self.margin}"


class _Case(NamedTuple):
    """One comparison: whether it agrees with the claim, its numbers, and the δ it rests on."""

    state: State
    text: str
    margins: tuple[str, ...] = ()


class _Part:
    """A trained task with its tasks by relation and its options in the study's order.

    Differences are in accuracy, of which the paper speaks; p(right) may have decided.
    """

    def __init__(self, source: OptionGains, recommendation: Recommendation) -> None:
        self.source = source.by_accuracy
        self.recommendation = recommendation
        self.results = self.source.results
        self.name = source.results.train_task
        self.in_domain = self.source.tasks("in_domain", recommendation.unit)
        self.retention = self.source.tasks("retention")
        self.options = self.source.in_study_order(self.source.options)
        self.lora = tuple(option for option in self.options if option.rank is not None)
        self.full = tuple(option for option in self.options if option.rank is None)

    @property
    def domains(self) -> frozenset[str]:
        """The domains of its in-domain tasks; empty if a task has none."""
        found = [self.results.study.domains.get(t) for t in self.results.tasks["in_domain"]]
        return frozenset(d for d in found if d is not None) if None not in found else frozenset()

    @property
    def margin(self) -> str:
        """δ = 5.0 points of accuracy, as the differences are; p(right) may have decided."""
        unit = self.recommendation.unit
        of = " of accuracy" if unit == "points" else ""
        return f"δ = {quantities.amount(self.recommendation.delta, unit)}{of}"

    def is_of(self, domains: frozenset[str]) -> bool:
        """Whether all its in-domain tasks are in these domains."""
        return bool(self.domains) and self.domains <= domains

    def bound(
        self, option: Option, other: Option | None, tasks: Sequence[str], num_together: int
    ) -> Interval:
        """A difference with its interval; of several together each is wider (Bonferroni)."""
        confidence = 1.0 - (1.0 - self.recommendation.confidence) / num_together
        values = (
            [self.source.gains(option.runs, task) for task in tasks]
            if other is None
            else self.source.leads(option.runs, other.runs, tasks)
        )
        return interval_of(self.source.estimate(values, tasks), confidence)


def paper_claims(
    sources: Sequence[OptionGains], recommendation: StudyRecommendation
) -> tuple[Claim, ...]:
    """Judge every claim of the paper that scores can judge."""
    parts = list(map(_Part, sources, recommendation.by_train_task))
    return (
        _claim(
            "rank-32-64-matches-full",
            "Rank 32 to 64 matches or beats full fine-tuning on reasoning tasks.",
            True,
            list(_matches_full(parts)),
            "it needs a reasoning task that is trained on with a rank from 32 to 64 and with full "
            "fine-tuning",
        ),
        _claim(
            "recall-is-flat",
            "Recall tasks are nearly flat in rank.",
            True,
            list(_recall_is_flat(parts)),
            "it needs a recall task that is trained on with two ranks",
        ),
        _claim(
            "lora-retains-more",
            "LoRA retains more than full fine-tuning.",
            True,
            list(_retains_more(parts)),
            "it needs retention tasks, LoRA and full fine-tuning",
        ),
        _claim(
            "no-rank-is-best-everywhere",
            "No rank is best everywhere.",
            True,
            list(_no_best_rank(parts)),
            "it needs two trained tasks and two ranks",
        ),
        _claim(
            "strong-base-gets-worse",
            "A base that is already strong can get worse by fine-tuning.",
            False,
            list(_gets_worse(parts)),
            f"it needs a base that is right in {100 * STRONG:.0f} % or more of what chance leaves, "
            "on a task that is trained on",
        ),
        _claim(
            "transfer-can-cost-10-percent",
            "Training on one domain (medicine) can lose 10 % on another (mathematics).",
            False,
            list(_transfer_costs(parts)),
            "it needs an out-of-domain task that is scored in points",
        ),
    )


def claims_of(folder: StudyFolder) -> tuple[Claim, ...]:
    """Judge them on the study of a folder, which is only read.

    Raises:
        RecordError: the folder holds no study, or nothing is scored in it.
    """
    results = read_results(folder)
    recommendation = recommend(results, folder.read_looks())
    return paper_claims(option_gains(results, recommendation), recommendation)


def _claim(name: str, statement: str, for_all: bool, cases: list[_Case], needs: str) -> Claim:
    states = {case.state for case in cases}
    by_one, by_all = ("no", "yes") if for_all else ("yes", "no")
    decided = by_one if by_one in states else by_all if states == {by_all} else None
    verdict: Verdict = "undecided" if cases else "not tested"
    if decided is not None:
        verdict = "supported" if decided == "yes" else "contradicted"
    evidence = tuple(case.text for case in cases) or (f"Not tested: {needs}.",)
    its = (margin for case in cases if case.state == decided for margin in case.margins)
    margin = quantities.listed(list(dict.fromkeys(its))) or None
    return Claim(name=name, statement=statement, verdict=verdict, evidence=evidence, margin=margin)


def _matches_full(parts: Sequence[_Part]) -> Iterable[_Case]:
    """One case a task: at least one of the praised ranks is not worse than full by delta."""
    tested = [
        (part, full, praised)
        for part in parts
        if part.is_of(REASONING)
        for full in part.full
        if (praised := [option for option in part.lora if option.rank in PRAISED_RANKS])
    ]
    together = sum(len(praised) for *_, praised in tested)
    for part, full, praised in tested:
        delta, unit = part.recommendation.delta, part.recommendation.unit
        bounds = [part.bound(option, full, part.in_domain, together) for option in praised]
        signs = {bound.sign(at=-delta) for bound in bounds}
        state: State = "yes" if 1 in signs else "no" if signs == {-1} else "undecided"
        numbers = "; ".join(
            f"{option.label} {_signed(bound, unit)}"
            for option, bound in zip(praised, bounds, strict=True)
        )
        yield _Case(
            state,
            f"{part.name}: in-domain against {full.label}: {numbers}; it matches if not worse "
            f"by δ = {quantities.amount(delta, unit)}.",
            (part.margin,),
        )


def _recall_is_flat(parts: Sequence[_Part]) -> Iterable[_Case]:
    """One case a task: every two ranks within delta of each other, all at once."""
    tested = [
        (part, list(combinations(part.lora, 2)))
        for part in parts
        if part.is_of(RECALL) and len(part.lora) > 1
    ]
    together = sum(len(pairs) for _, pairs in tested)
    for part, pairs in tested:
        delta, unit = part.recommendation.delta, part.recommendation.unit
        bounds = [
            (first, second, part.bound(second, first, part.in_domain, together))
            for first, second in pairs
        ]
        state: State = "undecided"
        if all(-delta < bound.lower and bound.upper < delta for *_, bound in bounds):
            state = "yes"
        elif any(bound.sign(at=delta) > 0 or bound.sign(at=-delta) < 0 for *_, bound in bounds):
            state = "no"
        first, second, widest = max(bounds, key=lambda bound: abs(bound[2].estimate))
        yield _Case(
            state,
            f"{part.name}: the largest difference between two ranks is {second.label} less "
            f"{first.label}, {_signed(widest, unit)}; flat is within "
            f"δ = {quantities.amount(delta, unit)}.",
            (part.margin,),
        )


def _retains_more(parts: Sequence[_Part]) -> Iterable[_Case]:
    """One case for each rank of each task."""
    tested = [
        (part, full, option)
        for part in parts
        if part.retention
        for full in part.full
        for option in part.lora
    ]
    for part, full, option in tested:
        bound = part.bound(option, full, part.retention, len(tested))
        tasks = quantities.counted(len(part.retention), "retention task")
        yield _Case(
            _STATES[bound.sign()],
            f"{part.name}: {option.label} less {full.label} on {tasks}: "
            f"{_signed(bound, 'points')}.",
        )


def _no_best_rank(parts: Sequence[_Part]) -> Iterable[_Case]:
    """One case for each option: is there a task on which another is shown to be better?"""
    if len(parts) < 2:
        return
    trained = [(part, {option.label: option for option in part.lora}) for part in parts]
    labels = [label for label in trained[0][1] if all(label in its for _, its in trained)]
    if len(labels) < 2:
        return
    together = len(parts) * len(labels) * (len(labels) - 1) // 2
    for label in labels:
        behind: list[tuple[_Part, list[Interval]]] = []  # the leads in-domain of the others over it
        for part, its in trained:
            others = [its[other] for other in labels if other != label]
            leads = [part.bound(other, its[label], part.in_domain, together) for other in others]
            behind.append((part, leads))
        beaten = [part.name for part, leads in behind if any(lead.sign() > 0 for lead in leads)]
        state: State = "undecided"
        if beaten:
            state = "yes"
        elif all(
            lead.upper < part.recommendation.delta for part, leads in behind for lead in leads
        ):
            state = "no"
        largest = [(part, max(leads, key=lambda lead: lead.estimate)) for part, leads in behind]
        numbers = "; ".join(
            f"{part.name} {quantities.score(lead.estimate, part.recommendation.unit)} "
            f"({score_range(lead, part.recommendation.unit)})"
            for part, lead in largest
        )
        what = f"is beaten on {quantities.listed(beaten)}" if beaten else "is beaten nowhere"
        margins = tuple(part.margin for part in parts)
        text = f"{label} {what}; behind the best other rank by: {numbers}."
        yield _Case(state, text, margins if state == "no" else ())


def _gets_worse(parts: Sequence[_Part]) -> Iterable[_Case]:
    """One case for each model whose base is strong in-domain."""
    strong: list[tuple[_Part, float]] = []
    for part in parts:
        if part.recommendation.unit != "points":
            continue  # where a loss decides no base is strong
        right: list[float] = []
        known = 0.0
        for task in part.in_domain:
            values = part.results.base.items[task].values
            chance = part.results.base.evaluations[task].chance or 0.0
            right.append(sum(values) / len(values))
            known += (right[-1] - chance) / (1.0 - chance)
        if right and known >= STRONG * len(right):
            strong.append((part, 100.0 * sum(right) / len(right)))
    together = sum(len(part.options) for part, _ in strong)
    for part, base in strong:
        for option in part.options:
            bound = part.bound(option, None, part.in_domain, together)
            state = _STATES[-bound.sign()]
            if state == "undecided" and bound.lower > -part.recommendation.delta:
                state = "no"
            yield _Case(
                state,
                f"{part.name}: {option.label}, base {quantities.score(base, 'points')}, "
                f"gain {_signed(bound, 'points')}.",
                (part.margin,) if state == "no" else (),
            )


def _transfer_costs(parts: Sequence[_Part]) -> Iterable[_Case]:
    """Relative to the base's score; judged on the bounds of the drop."""
    tested = [
        (part, task, option)
        for part in parts
        for task in part.source.tasks("out_of_domain")
        if sum(part.results.base.items[task].values) > 0
        for option in part.options
    ]
    alarm = 100.0 * TRANSFER_ALARM_SHARE
    for part, task, option in tested:
        trained = quantities.listed(sorted(part.domains)) or part.name
        values = part.results.base.items[task].values
        base = 100.0 * sum(values) / len(values)
        domain = part.results.study.domains.get(task)
        bound = part.bound(option, None, (task,), len(tested))
        drop, least, most = (-100.0 * v / base for v in (bound.estimate, bound.upper, bound.lower))
        state: State = "yes" if least > alarm else "no" if most < alarm else "undecided"
        shown = [quantities.formatted(value, ".0f") for value in (drop, least, most)]
        yield _Case(
            state,
            f"{trained} → {domain or task}: {option.label} trained on {part.name}, "
            f"scored on {task}: a drop of {shown[0]} % of the base's {base:.1f} "
            f"({shown[1]} to {shown[2]} %).",
        )


def _signed(bound: Interval, unit: Unit) -> str:
    interval = quantities.change_interval(bound.lower, bound.upper, unit)
    return f"{quantities.change(bound.estimate, unit)} ({interval})"


def main() -> None:
    """Print each claim with its verdict and its evidence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, metavar="DIR")
    for claim in claims_of(StudyFolder(parser.parse_args().directory)):
        print(f"{claim.judgement}: {claim.statement}")
        for sentence in claim.evidence:
            print(f"  - {sentence}")


if __name__ == "__main__":
    main()
