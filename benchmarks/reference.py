"""May most runs answer a part of the items? Errors, coverage, and what it saves.

    python -m benchmarks.reference [--studies 100] [--only GROUP ...] [--cells FROM TO]
                                   [--study FOLDER ...] [--file FILE] [--seconds LIMIT]

Studies are drawn as for ``benchmarks.decision``. One run of them, the middle rank's with the first
seed, answers all N items of every task; every other run answers a part n (100 at least) and has
pseudo-items (``findings.stats.reference``) in the place of the rest. The functions behind
``recommend`` judge them. ``alike`` is how much of the luck of two runs on an item is the same.

- ``edges``: truths 0.2 % beyond a margin, by family: wrong recommendations, and how often each
  bound misses, single ones at 97.5 % and those that decide (few misses: pooled by family). A cell
  of which a bound misses over 1.5 times as often as it says, by more than chance, or whose error
  rate may be above 0.06, is counted again in six times as many studies. With ``--file FILE`` they
  are done in pieces: cells in the file are read from it, others are added to it, and none is begun
  after ``--seconds``.
- ``curves``: equal, smooth, trade-off and rough rank curves: wrong, and decided with the first n
  items alone, with a reference, and with all N items.
- ``looks``: six looks at studies that double.
- ``rare``: a model, or its reference alone, loses much on few items, and the rest moves alike: how
  often the 95 % interval misses, and the one-sided 99 % bound on the side of a larger loss.
- ``items``: the collected studies of benchmarks/prediction (60 items a task). 1,000 items are drawn
  from a task's with replacement, of which a run answers 200; rank 16 and full fine-tuning with seed
  0 are the references. How many answered items would be as exact, by the mean squared error? With
  ``--study FOLDER`` those of finished studies that were scored whole: a run answers 200 of a task's
  distinct items, at random.

The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import decision_rule as rule
from benchmarks.decision_studies import (
    NUM_TASKS,
    About,
    Family,
    Rate,
    Study,
    Truth,
    draw_study,
    generator,
    rank_curve,
    right_answers,
)
from benchmarks.prediction.collection import SHIPPED, read_collection
from rankwise.findings.decision import ends
from rankwise.findings.pairs import Pair, run_record, size_of, trained
from rankwise.findings.stats.blocks import StudyEvidence
from rankwise.findings.stats.estimates import mean_over_tasks
from rankwise.findings.stats.items import POINTS, Floats, Items
from rankwise.findings.stats.reference import MIN_SCORED, pseudo_items
from rankwise.findings.stats.truths import num_draws, truths_of
from rankwise.records.folder import StudyFolder
from rankwise.study.reading import read_results
from rankwise.study.references import LEAST_SAVING, reference_runs

ALIKE = 0.9  # at which p(right)'s changes have an R² of about 0.9, as in the collected studies
SHARE = 0.2
SINGLE = 0.975
MISSES, RECOUNT = 1.5, 6
NUM_RUNS = 16


class At(NamedTuple):
    """How a study is scored: ``is_odd`` says that the reference tells nothing of the others."""

    about: About
    num_seeds: int
    num_items: int
    share: float
    alike: float = ALIKE
    is_odd: bool = False


ATS = (
    At("adapters", 1, 400, 0.5),
    At("adapters", 1, 1000, 0.1),
    At("adapters", 1, 1000, SHARE, alike=0.0),
    At("adapters", 1, 2000, 0.1),
    At("rank", 3, 1000, SHARE),
)
ODD = (At("adapters", 1, 1000, SHARE, is_odd=True), At("rank", 3, 1000, SHARE, is_odd=True))
SMALL = (At("adapters", 1, 40, SHARE), At("rank", 3, 300, SHARE))
"""Studies of which most tasks are too small to be answered in part."""


class Cell(NamedTuple):
    """A truth at an edge, judged as it is scored."""

    family: Family
    edge: str
    truth: Truth
    at: At

    def __str__(self) -> str:
        at = self.at
        odd = " odd" if at.is_odd else ""
        return (
            f"{self.family.name:31} {self.edge:17} {at.about:8} seeds={at.num_seeds} "
            f"N={at.num_items:<4} n/N={at.share:g} alike={at.alike:g}{odd}"
        )


class Tally(NamedTuple):
    """Wrong recommendations, and the studies' shares of bounds that miss.

    ``misses`` are by what is bounded, from which side, and the one-sided level.
    """

    wrong: Rate
    misses: dict[tuple[str, str, float], list[float]]

    @property
    def ratios(self) -> dict[tuple[str, str, float], float]:
        """How often each bound misses over how often it says that it does."""
        return {key: float(np.mean(of)) / (1.0 - key[2]) for key, of in self.misses.items()}

    @property
    def coverage(self) -> float:
        """The least of what is bounded, of single 95 % intervals."""
        return min(
            1.0 - sum(float(np.mean(of)) for (one, _, level), of in self.misses.items()
                      if (one, level) == (what, SINGLE))
            for what in ("gain", "loss", "lead")
        )  # fmt: skip

    def __str__(self) -> str:
        (what, side, level), ratio = max(self.ratios.items(), key=lambda of: of[1])
        worst = f"{what} {side} {level:.4f} misses {ratio:.2f} x nominal"
        return f"wrong {self.wrong} coverage {self.coverage:.3f}, {worst}"


def edge_cells() -> list[Cell]:
    """Families whose whole studies keep what they say, at every edge."""
    cells: list[Cell] = []
    for each in rule.edge_cells():
        family = each.family
        if family == rule.LOST or family.collapse or family.fails or "adapters" not in family.about:
            continue
        plain = family.law in ("accuracy", "p(right)") and not family.copies > 1
        ats = (*ATS, *ODD, *SMALL) if family == rule.PLAIN else (*ATS, *ODD) if plain else ATS
        cells += [Cell(family, each.edge, each.truth, at) for at in ats]
    return cells


def scored_in_part(
    task: Items, at: At, rng: np.random.Generator, *, in_points: bool = True
) -> Items:
    """(m, K, N) gains as they are estimated where one run answers all items, the others a part."""
    num_seeds, count, total = task.values.shape
    number = max(round(at.share * total), MIN_SCORED)
    if number >= total:
        return task
    order = np.arange(total) if task.clusters is None else rng.permutation(total)
    labels = None if task.clusters is None else task.clusters[order]
    values, nothing = task.values[..., order], np.zeros(total)
    reference = values[0, count // 2]
    told = reference[None, rng.permutation(total) if at.is_odd else np.arange(total)]
    scored, pairs = np.arange(total) < number, list[Pair]()
    for seed, option in itertools.product(range(num_seeds), range(count)):
        pair = Pair(nothing, values[seed, option], 1.0, in_points, labels)
        if (seed, option) != (0, count // 2):
            answers = Pair(nothing[:number], pair.adapted[:number], 1.0, in_points)
            estimated = pseudo_items(nothing, told, answers.adapted, labels).values
            pair = pair._replace(adapted=estimated, scored=scored, answers=answers)
        pairs.append(pair)
    estimates = np.stack([pair.adapted for pair in pairs]).reshape(task.values.shape)
    return Items(estimates, size_of(pairs), task.weight, labels, scored=scored)


def in_part(study: Study, family: Family, at: At, rng: np.random.Generator) -> StudyEvidence:
    """What is known of a study where one run answers all items and the others a part."""
    gains = [scored_in_part(t, at, rng, in_points=not family.is_nats) for t in study.gains]
    losses = [scored_in_part(task, at, rng) for task in study.losses]
    return rule.evidence_of(study._replace(gains=tuple(gains), losses=tuple(losses)))


def simulate_edges(cell: Cell, studies: int, seed: int) -> Tally:
    """A verdict about adapters is judged where all runs are as their rank."""
    rng, margins, at = generator(cell, seed), rule.margins_of(cell.family), cell.at
    family = cell.family._replace(run_sd=(0.0, 0.0)) if at.about == "adapters" else cell.family
    able, wrong = right_answers(cell.truth, margins), 0
    misses: dict[tuple[str, str, float], list[float]] = {}
    for _ in range(studies):
        study = draw_study(family, cell.truth, at.num_items, at.num_seeds, rng, at.alike)
        evidence = in_part(study, family, at, rng)
        wrong += rule.is_wrong(rule.verdict(evidence, margins, at.about), able)
        for key, share in _misses(evidence, cell.truth, at.about):
            misses.setdefault(key, []).append(share)
    return Tally(Rate(wrong, studies), misses)


def _misses(
    evidence: StudyEvidence, truth: Truth, about: About
) -> Iterator[tuple[tuple[str, str, float], float]]:
    gain, loss = truth.gain, truth.losses.mean(axis=0)
    pairs = tuple(np.nonzero(~np.eye(len(gain), dtype=bool)))
    deciding = rule.level_of_look(len(gain))
    drawn = truths_of(evidence, about, num_draws(len(gain), deciding))
    assert drawn.losses is not None
    for level in (SINGLE, deciding):
        for what, draws, true in (
            ("gain", drawn.gains, gain),
            ("loss", drawn.losses, loss),
            (
                "lead",
                drawn.gains[:, pairs[0]] - drawn.gains[:, pairs[1]],
                gain[pairs[0]] - gain[pairs[1]],
            ),
        ):
            lower, upper = ends(draws, level)
            yield (what, "below", level), float((lower > true + 1e-9).mean())
            yield (what, "above", level), float((upper < true - 1e-9).mean())


def is_counted_again(tally: Tally) -> bool:
    """Whether a rate is above its bar, a bound's by more than chance."""
    surely = [
        ratio > MISSES and np.mean(of) - 1.645 * np.std(of) / np.sqrt(len(of)) > 1.0 - key[2]
        for (key, of), ratio in zip(tally.misses.items(), tally.ratios.values(), strict=True)
    ]
    return tally.wrong.upper > rule.BAR or any(surely)


def kept_tallies(file: Path | None) -> dict[str, Tally]:
    """The cells of a file by name; each bound has the mean share of misses."""
    lines = file.read_text().splitlines() if file is not None and file.exists() else []
    return {
        kept["cell"]: Tally(
            Rate(*kept["wrong"]),
            {(what, side, level): [share] for what, side, level, share in kept["misses"]},
        )
        for kept in map(json.loads, lines)
    }


def keep(file: Path, cell: Cell, tally: Tally) -> None:
    """Add a cell to a file, as a JSON object in a line."""
    misses = [[*key, float(np.mean(shares))] for key, shares in tally.misses.items()]
    with file.open("a") as lines:
        print(json.dumps({"cell": str(cell), "wrong": tally.wrong, "misses": misses}), file=lines)


def _pooled_ratios(found: Sequence[tuple[Cell, Tally]]) -> dict[tuple[str, str, str], float]:
    """Of each family's deciding bounds, how often they miss over how often they say so."""
    pooled: dict[tuple[str, str, str], list[float]] = {}
    for cell, tally in found:
        for (what, side, level), ratio in tally.ratios.items():
            if level != SINGLE:
                pooled.setdefault((cell.family.name, what, side), []).append(ratio)
    return {key: float(np.mean(ratios)) for key, ratios in pooled.items()}


class CurveCell(NamedTuple):
    """Plausible rank curves of one kind."""

    curve: str
    at: At

    def __str__(self) -> str:
        at = self.at
        return f"curves, {self.curve:10} {at.about:8} seeds={at.num_seeds} N={at.num_items}"


class CurveTally(NamedTuple):
    """Decided with the answered items alone, with the reference, with all; wrong with it."""

    wrong: Rate
    decided: tuple[Rate, Rate, Rate]

    def __str__(self) -> str:
        first, reference, whole = self.decided
        return f"wrong {self.wrong} decided {first} alone, {reference} so, {whole} whole"


def curve_cells() -> list[CurveCell]:
    """Of p(right), whose changes can be predicted."""
    ats = (At("adapters", 1, 1000, SHARE), At("rank", 3, 1000, SHARE))
    curves = ("flat", "smooth", "trade-off", "rough")
    return [CurveCell(curve, at) for curve in curves for at in ats]


CURVES_OF = Family("p(right) curves", law="p(right)", retention=(1.0,) * NUM_TASKS)


def simulate_curves(cell: CurveCell, studies: int, seed: int) -> CurveTally:
    """Every study is judged three times."""
    rng, margins, at = generator(cell, seed), rule.margins_of(CURVES_OF), cell.at
    wrong, decided = 0, np.zeros(3, dtype=int)
    for _ in range(studies):
        truth = rank_curve(cell.curve, rule.NUM_RANKS, rng)
        study = draw_study(CURVES_OF, truth, at.num_items, at.num_seeds, rng, at.alike)
        first = study.first(round(at.share * at.num_items), at.num_seeds)
        of = rule.evidence_of(first), in_part(study, CURVES_OF, at, rng), rule.evidence_of(study)
        choices = [rule.verdict(evidence, margins, at.about) for evidence in of]
        able = right_answers(study.adapters if at.about == "adapters" else truth, margins)
        wrong += rule.is_wrong(choices[1], able)
        decided += [rule.is_decided(choice) for choice in choices]
    alone, so, whole = (Rate(int(number), studies) for number in decided)
    return CurveTally(Rate(wrong, studies), (alone, so, whole))


def simulate_looks(cell: rule.LookCell, studies: int, seed: int) -> rule.LookTally:
    """Every study is looked at in quarters, doubled, and looked at again, whatever it said."""
    rng, margins = generator(cell, seed), rule.margins_of(rule.PLAIN)
    at = At(cell.about, cell.num_seeds, cell.num_items, SHARE)
    family = rule.PLAIN._replace(run_sd=(0.0, 0.0)) if cell.about == "adapters" else rule.PLAIN
    truth = next(
        e.truth for e in rule.edge_cells() if (e.family, e.edge) == (rule.PLAIN, cell.edge)
    )
    able = right_answers(truth, margins)
    sizes = [round(share * cell.num_items) for share in rule.LOOKS]
    wrong = decided = 0
    for _ in range(studies):
        study = draw_study(family, truth, sizes[-1], cell.num_seeds, rng, at.alike)
        choices = [
            rule.verdict(
                in_part(study.first(size, cell.num_seeds), family, at, rng),
                margins,
                cell.about,
                shares,
            )
            for size, shares in zip(sizes, rule.shares_of_looks(), strict=True)
        ]
        wrong += any(rule.is_wrong(choice, able) for choice in choices)
        decided += any(map(rule.is_decided, choices))
    return rule.LookTally(Rate(wrong, studies), Rate(decided, studies))


class RareCell(NamedTuple):
    """A task of p(right) on which ``loser`` alone loses ``points`` on a share of the items.

    The rest of the changes is what the model and its reference have in common: normal with ``sd``.
    """

    loser: str
    points: float
    often: float
    sd: float
    num_items: int
    num_scored: int

    def __str__(self) -> str:
        return (
            f"rare, {self.loser} loses {self.points:g} on {self.often:.0%}, sd {self.sd:g}, "
            f"N={self.num_items} n={self.num_scored}"
        )


class RareTally(NamedTuple):
    """How often the 95 % interval misses, and the 99 % bound: with the reference, and without."""

    missed: Rate
    missed_worse: Rate
    alone: Rate
    alone_worse: Rate

    def __str__(self) -> str:
        return (
            f"95 % missed {self.missed} (answers alone {self.alone}), 99 % on the worse side "
            f"{self.missed_worse} ({self.alone_worse})"
        )


def rare_cells() -> list[RareCell]:
    """Losses of 90 points on 1 % of the items, and of 50 on 2 %."""
    sizes = ((1000, 200), (500, 100), (2000, 100))
    return [
        RareCell(loser, *of, *size)
        for loser in ("the model", "the reference")
        for of in ((90.0, 0.01, 10.0), (50.0, 0.02, 6.0))
        for size in sizes
    ]


def simulate_rare(cell: RareCell, studies: int, seed: int) -> RareTally:
    """The truth is the mean change over all items that there are."""
    rng, misses = generator(cell, seed), np.zeros(4, dtype=int)
    total, number = cell.num_items, cell.num_scored
    for _ in range(studies):
        base, common = np.full(total, 95.0), rng.normal(0.0, cell.sd, total)
        lost = cell.points * (rng.random(total) < cell.often)
        reference, model = (
            base + common + rng.normal(0.0, cell.sd / 3.0, total) - lost * (who == cell.loser)
            for who in ("the reference", "the model")
        )
        true = -cell.points * cell.often if cell.loser == "the model" else 0.0
        answers = Pair(base[:number], model[:number], 1.0, True)
        values = pseudo_items(base, reference[None], model[:number]).values
        scored = np.arange(total) < number
        pair = Pair(base, values, 1.0, True, None, scored, answers)
        whole = Pair(base, reference, 1.0, True)
        size = size_of([pair, whole])
        of = (
            Items(pair.gain, size, scored=scored),
            Items(answers.gain, size_of([answers])),
        )
        for place, items in enumerate(of):
            estimate = mean_over_tasks([items])
            lower, upper = estimate.interval(rule.CONFIDENCE)
            misses[2 * place] += not lower <= true <= upper
            misses[2 * place + 1] += estimate.interval(0.98)[0] > true
    return RareTally(*(Rate(int(missed), studies) for missed in misses))


class ItemsCell(NamedTuple):
    """A task of a study whose models answered all of its items.

    Attributes:
        base, references, others: (items,), (k, items) and (runs, items) in points.
        is_drawn: its items are too few: 1,000 are drawn of them, with replacement.
    """

    name: str
    task: str
    relation: str
    base: Floats
    references: Floats
    others: Floats
    is_drawn: bool

    def __repr__(self) -> str:
        return f"{self.name} {self.task}"

    def __str__(self) -> str:
        number = f"{len(self.base)} items" + (", drawn" if self.is_drawn else "")
        return f"items, {self.name:40} {self.task:22} {self.relation:9} {number}"


class ItemsTally(NamedTuple):
    """Of a task: the median run's effective items over its answers, and of two runs' differences.

    ``r_squared`` and the ``coverage`` of 95 % intervals are means over the runs.
    """

    relation: str
    effective: float
    of_leads: float
    r_squared: float
    coverage: float

    def __str__(self) -> str:
        return (
            f"{self.effective:.2f} n, leads {self.of_leads:.2f} n, R² {self.r_squared:.2f}, "
            f"covered {self.coverage:.3f}"
        )


NUM_DRAWN, NUM_ANSWERED = 1000, 200
REFERENCE_RANK = 16


def items_cells() -> list[ItemsCell]:
    """Every task of every collected study."""
    cells: list[ItemsCell] = []
    for study in read_collection(SHIPPED):
        runs = {place: run for place, run in enumerate(study.runs, 1) if run.status == "trained"}
        told = [p for p, r in runs.items() if r.seed == 0 and r.rank in (REFERENCE_RANK, None)]
        own = [p for p, r in runs.items() if p not in told and r.method == "lora"]
        for items in study.items:
            base, *values = (items.value_of(place) for place in (0, *told, *own))
            references, others = np.stack(values[: len(told)]), np.stack(values[len(told) :])
            where = (study.file_name, items.task, items.relation)
            cells.append(ItemsCell(*where, base, references, others, is_drawn=True))
    return cells


def cells_of(folder: Path) -> list[ItemsCell]:
    """Every task of a finished study that was scored whole and has enough items.

    The references are those that the study would have: the middle rank's run of the first seed and
    full fine-tuning beside it.
    """
    results, cells = read_results(StudyFolder(folder)), list[ItemsCell]()
    for part in results.by_train_task:
        runs = trained(part.runs)  # those that diverged have no items
        planned = {run.name: run_record(run).planned for run in runs}
        lora = [plan for plan in planned.values() if plan.role == "trained" and plan.rank]
        told = [name for name in reference_runs(results.study, part.train_task) if name in planned]
        for relation, tasks in part.tasks.items():
            for task in tasks:
                if part.base.items[task].unit != "points":
                    continue
                models = {model.name: model.items[task] for model in (part.base, *runs)}
                values = {name: POINTS * np.array(its.values) for name, its in models.items()}
                base = values[part.base.name]
                if len(base) < NUM_ANSWERED * LEAST_SAVING:
                    continue
                references = np.stack([values[name] for name in told])
                others = np.stack([values[run.name] for run in lora if run.name not in told])
                where = (results.study.config.name, task, relation)
                cells.append(ItemsCell(*where, base, references, others, is_drawn=False))
    return cells


def simulate_items(cell: ItemsCell, studies: int, seed: int) -> ItemsTally:
    """All LoRA runs but the reference, of which a random part of the items is read.

    Full fine-tuning with the reference's seed is a reference too, as in a study.
    """
    rng, base, references, others = generator(cell, seed), cell.base, cell.references, cell.others
    changes = others - base
    number = NUM_DRAWN if cell.is_drawn else len(base)
    true, estimates = changes.mean(axis=1), np.zeros((studies, len(others)))
    explained, covered = np.zeros_like(estimates), np.zeros_like(estimates)
    scored = np.arange(number) < NUM_ANSWERED
    for study in range(studies):
        drawn = rng.integers(0, len(base), number) if cell.is_drawn else rng.permutation(number)
        first = drawn[scored]
        for run, values in enumerate(others):
            found = pseudo_items(base[drawn], references[:, drawn], values[first])
            answers = Pair(base[first], values[first], 1.0, True)
            pair = Pair(base[drawn], found.values, 1.0, True, None, scored, answers)
            estimate = mean_over_tasks([pair.items])
            lower, upper = estimate.interval(rule.CONFIDENCE)
            estimates[study, run] = estimate.value
            explained[study, run] = found.r_squared
            covered[study, run] = lower <= true[run] <= upper
    # without replacement the items themselves are a draw, which all runs share
    share = 0.0 if cell.is_drawn else 1.0 / number
    return ItemsTally(
        cell.relation,
        _effective(estimates - true, changes, share),
        _effective(np.diff(estimates - true), np.diff(changes, axis=0), share),
        float(explained.mean()),
        float(covered.mean()),
    )


def _effective(errors: Floats, values: Floats, share: float) -> float:
    """How many times the answered items would be as exact, for the median of values (R, n).

    ``share`` of a value's variance is that of the mean over all items, which errors do not have.
    """
    variances, squares = values.var(axis=1), (errors**2).mean(axis=0)
    varied = variances > 0
    squares = squares + share * variances
    return float(np.median(variances[varied] / squares[varied])) / NUM_ANSWERED


class Group(NamedTuple):
    """Cells that are simulated alike; ``share`` times ``--studies`` in each."""

    cells: Callable[[], Sequence[Any]]
    simulate: Callable[[Any, int, int], Any]
    share: float = 1.0


GROUPS = {
    "edges": Group(edge_cells, simulate_edges),
    "curves": Group(curve_cells, simulate_curves),
    "looks": Group(rule.look_cells, simulate_looks, 2.0),
    "rare": Group(rare_cells, simulate_rare, 4.0),
    "items": Group(items_cells, simulate_items),
}


def cost_share() -> float:
    """Of scoring every item: the base and one reference answer all, the other models a part."""
    return (2 + (NUM_RUNS - 2) * SHARE) / NUM_RUNS


def _summary(name: str, found: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    if name == "edges":
        ratios = [
            ratio for _, tally in found for key, ratio in tally.ratios.items() if key[2] == SINGLE
        ]
        deciding = _pooled_ratios(found)
        for (family, what, side), ratio in deciding.items():
            print(f"{family:31} {what} {side}: {ratio:.2f} x nominal", file=sys.stderr)
        return {
            "coverage_min": round(min(tally.coverage for _, tally in found), 4),
            "misses_over_nominal_max": round(max(ratios), 2),
            "misses_over_nominal_max_deciding": round(max(deciding.values()), 2),
            "worst_error_rate_upper95": round(max(t.wrong.upper for _, t in found), 4),
        }
    if name == "items":
        tallies = [tally for _, tally in found]
        return {
            f"effective_items_{what}_median": round(NUM_ANSWERED * float(np.median(of)))
            for what, of in (
                ("gain", [t.effective for t in tallies if t.relation == "in_domain"] or [0.0]),
                ("retention", [t.effective for t in tallies if t.relation != "in_domain"] or [0.0]),
                ("lead", [tally.of_leads for tally in tallies]),
            )
        } | {"coverage_of_records_mean": round(float(np.mean([t.coverage for t in tallies])), 4)}
    if name == "rare":
        shares = {
            "rare_missed_max": max(tally.missed.share for _, tally in found),
            "rare_missed_worse_side_max": max(tally.missed_worse.share for _, tally in found),
        }
        return {key: round(share, 4) for key, share in shares.items()}
    worst = max(tally.wrong.upper for _, tally in found)
    return {f"worst_error_rate_{name}_upper95": round(worst, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every cell, print a line for each to stderr, and the summary to stdout."""
    parser = argparse.ArgumentParser(description="Reference runs, by simulated studies.")
    parser.add_argument("--studies", type=int, default=100, help="of each cell")
    parser.add_argument("--only", choices=list(GROUPS), nargs="+", help="groups of cells")
    parser.add_argument(
        "--cells", type=int, nargs=2, default=(None, None), help="from, to: those of each group"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--file", type=Path, help="edge cells: read these, and add what is done")
    parser.add_argument("--seconds", type=float, help="after which no cell is begun")
    parser.add_argument("--study", type=Path, nargs="+", help="finished studies, for items alone")
    options = parser.parse_args(arguments)
    studied = [cell for folder in options.study or () for cell in cells_of(folder)]
    if options.study:
        options.only = ["items"]
    started, summary = time.monotonic(), dict[str, Any]()
    for name in options.only or GROUPS:
        group, found = GROUPS[name], list[tuple[Any, Any]]()
        studies = max(round(group.share * options.studies), 2)
        known = kept_tallies(options.file) if name == "edges" else {}
        cells = (studied if options.study else group.cells())[slice(*options.cells)]
        for cell in cells:
            tally = known.get(str(cell))
            if tally is None:
                if time.monotonic() - started > (options.seconds or math.inf):
                    continue
                tally = group.simulate(cell, studies, options.seed)
                if name == "edges" and is_counted_again(tally):
                    print(f"{cell}: {tally}; again", file=sys.stderr, flush=True)
                    tally = group.simulate(cell, RECOUNT * studies, options.seed + 1)
                if isinstance(cell, Cell) and options.file is not None:
                    keep(options.file, cell, tally)
            print(f"{cell}: {tally}", file=sys.stderr, flush=True)
            found.append((cell, tally))
        if found:
            summary |= _summary(name, found) | {f"cells_{name}": f"{len(found)} of {len(cells)}"}
        took = round(time.monotonic() - started)
        print(f"{name} done after {took} s", file=sys.stderr, flush=True)
    summary |= {"cost_share_16_models": round(cost_share(), 3), "studies_per_cell": options.studies}
    print(json.dumps(summary | {"seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
