"""Does the verdict err as rarely as it says, and do its odds come true? Simulated studies.

    python -m benchmarks.decision [--studies 250] [--workers 1] [--only GROUP]

Every study is drawn item by item and judged by the functions behind ``recommend``, at the level
of a first look unless it is looked at again. An error is a recommended rank that truly is more
than delta worse than the best admissible one, loses more than epsilon on average or more than the
worst-task ceiling on one task, or is not better than the base. The margins are the defaults. A
verdict about these adapters is held against the mean of their runs, one about the rank against it.

- ``edges``: every family (``decision_rule.FAMILIES``) where as many ranks as possible are wrong,
  by 0.2 % of a margin; and one task that loses 20 points and more.
- ``plausible``: every family on plausible rank curves, from 40 to 3,000 items: how many studies
  are decided, by how many seeds, and is a recommended rank recommended again?
- ``answers``: truths whole points apart, many items; equal ranks, few items.
- ``looks``: studies that are looked at in quarters, and that double twice.
- ``unequal``: ranks with different numbers of seeds, at the edges; ``second``: how often a second
  seed takes a settled verdict away, where runs are 2.5 points apart.
- ``texts``: is every sentence of a verdict true, and as often as it says?
- ``repairs``: is a repair said to keep enough where it does not?
- ``agreement``: verdicts against the intervals printed beside them.
- ``odds``: are P(right) and the probability of a decision calibrated, what does the best bet cost?

``--studies`` is the number in each cell of ``edges``; other groups have a share of it. A table
for each cell goes to stderr, then one over the families; the last line of stdout is one JSON
object. Of error rates the worst cell counts, by its exact upper 95 % bound. Coverage is pooled
over the edges of a family. Brier scores and bins are pooled over all cells of 1,000 items with
expected curves, each score against its own cell's constant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from benchmarks import decision_odds as odds
from benchmarks import decision_repairs as repairs
from benchmarks import decision_rule as rule
from benchmarks import decision_samples as samples
from benchmarks import decision_seeds as seeds
from benchmarks import decision_texts as texts
from benchmarks.decision_studies import Rate

Results = dict[str, list[tuple[Any, Any]]]
"""Group -> every cell with its tally."""


class Group(NamedTuple):
    """Cells that are simulated alike; ``share`` times ``--studies`` in each."""

    cells: Sequence[Any]
    simulate: Callable[[Any, int, int], Any]
    share: float = 1.0


def groups() -> dict[str, Group]:
    """Everything that is simulated, by name."""
    return {
        "edges": Group(rule.edge_cells(), rule.simulate_edges),
        "plausible": Group(rule.plausible_families(), rule.simulate_plausible, 0.4),
        "answers": Group(rule.answer_cells(), rule.simulate_answers),
        "looks": Group(rule.look_cells(), rule.simulate_looks, 2.0),
        "unequal": Group(seeds.unequal_cells(), seeds.simulate_unequal),
        "second": Group(seeds.second_cells(), seeds.simulate_second),
        "texts": Group(texts.text_cells(), texts.simulate_texts, 0.08),
        "repairs": Group(repairs.repair_cells(), repairs.simulate_repairs, 2.0),
        "agreement": Group(samples.agreement_cells(), samples.simulate_agreement, 2.0),
        "odds": Group(odds.odds_cells(), odds.simulate_odds, 0.8),
    }


def _worst(rates: Iterable[Rate]) -> float:
    return round(max(rate.upper for rate in rates), 4)


def _edges(of: Results) -> dict[str, Any]:
    plain = [
        tally.worst
        for cell, tally in of["edges"]
        if cell.family != rule.LOST and "adapters" in cell.family.about
    ]
    dependent = [tally.worst for cell, tally in of["edges"] if cell.family in rule.DEPENDENT]
    lost = [tally.worst for cell, tally in of["edges"] if cell.family == rule.LOST]
    collapsed = [
        rate
        for cell, tally in of["edges"]
        if cell.family.collapse or cell.family.fails
        for (_, seeds, _), rate in tally.wrong.items()
        if seeds == rule.COLLAPSE_SEEDS
    ]
    return {
        "worst_error_rate_upper95": round(max(plain), 4),
        "worst_error_rate_duplicates": round(max(dependent), 4),
        "worst_task_lost_recommended": round(max(lost), 4),
        "worst_error_rate_collapse_3seeds": _worst(collapsed),
        "interval_coverage_min": round(
            min(_covered(of, family) for family in rule.FAMILIES if "adapters" in family.about),
            4,
        ),
    }


def _covered(of: Results, family: Any) -> float:
    """The least coverage of a family's intervals, pooled over its edges; 1 without any."""
    pooled: dict[Any, list[Rate]] = {}
    for cell, tally in of["edges"]:
        if cell.family == family:
            for key, rate in tally.coverage.items():
                pooled.setdefault(key, []).append(rate)
    shares = [sum(r.number for r in of) / sum(r.studies for r in of) for of in pooled.values()]
    return min(shares, default=1.0)


def _plausible(of: Results) -> dict[str, Any]:
    tallies = dict(of["plausible"])
    plain = tallies[rule.PLAIN].decided
    repeated = [tally.repeated[odds.LARGE] for tally in tallies.values()]
    return {
        "decided_share_3seeds_1000": round(plain["rank", 3, odds.LARGE].share, 4),
        "decided_share_2seeds_over_1seed": round(
            min(tally.seeds_ratio for tally in tallies.values()), 4
        ),
        "decided_least_rise_with_items": round(
            min(tally.least_rise for tally in tallies.values()), 4
        ),
        "repeat_agreement": round(
            sum(rate.number for rate in repeated) / max(sum(r.studies for r in repeated), 1), 4
        ),
        "worst_error_rate_plausible": _worst(
            rate for tally in tallies.values() for rate in tally.wrong.values()
        ),
    }


def _answers(of: Results) -> dict[str, Any]:
    stated = [(cell, tally) for cell, tally in of["answers"] if cell.name != rule.QUICKSTART]
    quick = [tally for cell, tally in of["answers"] if cell.name == rule.QUICKSTART]
    return {
        "accuracy_at_stated_n": round(
            min(t.smallest.share for c, t in stated if c.num_seeds == rule.STATED_SEEDS), 4
        ),
        "qualifying_rank_found_with_one_seed": round(
            min(t.correct.share for c, t in stated if c.num_seeds == 1), 4
        ),
        "cannot_tell_rate_quickstart": round(max(t.cannot_tell.share for t in quick), 4),
        "stated_n": rule.STATED_ITEMS,
        "stated_seeds": rule.STATED_SEEDS,
        "stated_margin_points": rule.STATED_MARGIN,
    }


def _grown(of: Results) -> dict[str, Any]:
    rates = [tally.wrong for _, tally in of["looks"]]
    return {"worst_error_rate_looks": _worst(rates)}


def _unequal(of: Results) -> dict[str, Any]:
    return {"wrong_unequal_seeds_upper95": _worst(tally.rate for _, tally in of["unequal"])}


def _second(of: Results) -> dict[str, Any]:
    rates = [tally.rate for _, tally in of["second"]]
    lost, settled = (sum(rate[place] for rate in rates) for place in range(2))
    return {"settled_lost_by_second_seed": round(lost / max(settled, 1), 4)}


def _texts(of: Results) -> dict[str, Any]:
    tallies: list[texts.TextTally] = [tally for _, tally in of["texts"]]
    return {
        "texts": sum(tally.texts for tally in tallies),
        "texts_false": sum(len(tally.facts_false) for tally in tallies),
        "texts_false_by_level": sum(len(tally.levels_false) for tally in tallies),
    }


def _repairs(of: Results) -> dict[str, Any]:
    return {"repair_false_success": _worst(tally.wrong for _, tally in of["repairs"])}


def _odds(of: Results) -> dict[str, Any]:
    cells = [(cell, tally) for cell, tally in of["odds"] if cell.curves == odds.CURVES]
    large = [tally for cell, tally in cells if cell.num_items == odds.LARGE]
    regrets = [(cell.num_items, tally.mean_regret) for cell, tally in cells]

    def ratio(to: str) -> float:
        """Of the mean over all truths, ranks and seeds; the largest of all numbers of items."""
        sums = {
            size: [
                sum(regret[name] for n, regret in regrets if n == size)
                for name in (odds.CHOICES[0], to)
            ]
            for size, _ in regrets
        }
        return round(max(bet / other for bet, other in sums.values()), 4)

    def of_worst_cell(to: str) -> float:
        return round(max(regret[odds.CHOICES[0]] / regret[to] for _, regret in regrets), 4)

    prospects = [stated for tally in large for stated in tally.prospects.values()]
    right = [tally.right for tally in large]
    return {
        "predictive_brier_over_constant": round(odds.brier_over_constant(prospects), 4),
        "best_bet_brier_over_constant": round(odds.brier_over_constant(right), 4),
        "best_bet_max_bin_gap": round(odds.pooled(right).largest_gap, 4),
        "best_bet_regret_over_argmax": ratio("argmax"),
        "best_bet_regret_over_always_16": ratio("always 16"),
        "best_bet_regret_over_argmax_worst_cell": of_worst_cell("argmax"),
        "best_bet_regret_over_always_16_worst_cell": of_worst_cell("always 16"),
    }


def _agreement(of: Results) -> dict[str, Any]:
    return {
        "contradictions": sum(tally.contradictions for _, tally in of["agreement"]),
        "mcnemar_max_abs_error": samples.mcnemar_error(),
    }


SUMMARIES: tuple[tuple[Callable[[Results], dict[str, Any]], tuple[str, ...]], ...] = (
    (_edges, ("edges",)),
    (_plausible, ("plausible",)),
    (_answers, ("answers",)),
    (_grown, ("looks",)),
    (_unequal, ("unequal",)),
    (_second, ("second",)),
    (_texts, ("texts",)),
    (_repairs, ("repairs",)),
    (_agreement, ("agreement",)),
    (_odds, ("odds",)),
)
"""What goes into the JSON object, and the groups that it needs."""


def family_table(of: Results) -> str:
    """A Markdown row for each family: its worst error and coverage, and how many are decided."""
    plausible = dict(of["plausible"])
    rows = [
        "| family | worst error (95 % bound) | least coverage | decided with one seed, 40 to 3,000 "
        "items | three seeds, the rank | repeated at 1,000 |",
        "| --- | ---: | ---: | --- | --- | ---: |",
    ]
    for family in (*rule.FAMILIES, rule.LOST):
        worst = [tally.worst for cell, tally in of["edges"] if cell.family == family]
        error, covered = "", ""
        if worst:
            error, covered = f"{max(worst):.3f}", f"{_covered(of, family):.3f}"
        one = three = again = ""
        if family in plausible:
            tally = plausible[family]
            one, three = (
                " ".join(f"{tally.decided[key, seeds, n].share:.2f}" for n in rule.PLAUSIBLE_SIZES)
                for key, seeds in (("adapters", 1), ("rank", 3))
            )
            again = str(tally.repeated[odds.LARGE])
        rows.append(f"| {family.name} | {error} | {covered} | {one} | {three} | {again} |")
    return "\n".join(rows)


def _shown(cell: Any, tally: Any) -> tuple[Any, Any]:
    print(f"{cell}: {tally}", file=sys.stderr, flush=True)
    return cell, tally


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every cell, print one table for each to stderr, and the summary to stdout."""
    known = groups()
    parser = argparse.ArgumentParser(description="Verdicts and odds, by simulated studies.")
    parser.add_argument("--studies", type=int, default=250, help="of each cell")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", choices=list(known), nargs="+", help="groups of cells")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    chosen = {name: known[name] for name in known if name in (options.only or known)}
    of: Results = {}
    with ProcessPoolExecutor(options.workers) as pool:

        def simulate(group: Group, times: int = 1) -> list[tuple[Any, Any]]:
            studies = max(round(times * group.share * options.studies), 2)
            jobs = [pool.submit(group.simulate, c, studies, options.seed) for c in group.cells]
            tallies = ((cell, job.result()) for cell, job in zip(group.cells, jobs, strict=True))
            return [_shown(cell, tally) for cell, tally in tallies]

        for name, group in chosen.items():
            of[name] = simulate(group)
            if name == "edges":
                again = [found for each in of[name] if (found := rule.recount(*each)) is not None]
                counted = simulate(group._replace(cells=again), rule.RECOUNT)
                of[name] = rule.recounted(of[name], counted)
            if name == "unequal":
                above = [i for i, (_, tally) in enumerate(of[name]) if tally.rate.upper > rule.BAR]
                cells = [of[name][i][0]._replace(is_recount=True) for i in above]
                counted = simulate(group._replace(cells=cells), rule.RECOUNT)
                for i, recounted in zip(above, counted, strict=True):
                    of[name][i] = recounted
            took = round(time.monotonic() - started)
            print(f"{name} done after {took} s", file=sys.stderr, flush=True)
    summary: dict[str, Any] = {}
    for summarise, needed in SUMMARIES:
        if all(name in of for name in needed):
            summary |= summarise(of)
    if {"edges", "plausible"} <= of.keys():
        print(family_table(of), file=sys.stderr, flush=True)
    summary |= {
        "studies_per_cell": options.studies,
        "num_cells": sum(len(group.cells) for group in chosen.values()),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
