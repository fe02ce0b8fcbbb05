"""Does the verdict err as rarely as it says, and do its odds come true? Simulated studies.

    python -m benchmarks.decision [--studies 400] [--workers 1] [--only GROUP]

Every study is drawn item by item and judged by the functions behind ``recommend``, at the level
of a first look unless it is looked at again. An error is a recommended rank that truly is more
than delta worse than the best admissible one, or loses more than epsilon, or is not better than
the base. An admissible rank truly loses no more than epsilon. With one seed the truth is that of
the run itself, with several that of the rank.

Groups of cells:

- ``stress``: truths next to the margins, where a wrong answer is easiest: a rank 2 % of delta
  beyond delta, a loss 2 % of epsilon beyond epsilon, a gain of zero. ``stated`` and ``one seed
  stated`` (accuracy): truths whole points apart. ``quickstart``: equal ranks, few items.
- ``clusters``, ``nats``, ``looks``, ``files``: items that share a passage, rare large losses, and
  studies and sample files that grow between six looks.
- ``one seed``, ``collapse``: what a verdict about one run is worth for its rank, and runs that
  fail now and then. No bar: no rule sees a collapse that did not happen.
- ``agreement``: verdicts against the intervals printed beside them.
- ``odds``, ``growth``, ``decided``: plausible rank curves. Are P(right) and the probability of a
  decision calibrated, what does the best bet cost, and how many studies are decided?

``--studies`` is the number in each cell; groups of few or cheap cells draw up to four times as
many. A line for each cell goes to stderr; the last line of stdout is one JSON object. Of error
rates the worst cell counts, by its exact upper 95 % bound. Coverage is pooled over the six truths
of a size, discordance and number of seeds. Brier scores and bins are pooled over all cells of
1,000 items, each score against its own cell's constant.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

from benchmarks import decision_items as items
from benchmarks import decision_odds as odds
from benchmarks import decision_rule as rule
from benchmarks import decision_runs as runs
from benchmarks import decision_samples as samples
from benchmarks.decision_studies import Cell, Rate

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
        "stress": Group(rule.stress_cells(), rule.simulate),
        "stated": Group(rule.plain_cells(rule.STATED_SEEDS), rule.simulate),
        "one seed stated": Group(rule.plain_cells(1), rule.simulate),
        "quickstart": Group(rule.quickstart_cells(), rule.simulate, 2.0),
        "clusters": Group(items.cluster_cells(), items.simulate_clusters, 2.0),
        "nats": Group(items.nats_cells(), items.simulate_nats, 4.0),
        "looks": Group(rule.look_cells(), rule.simulate_looks, 2.0),
        "files": Group(samples.files_cells(), samples.simulate_files, 4.0),
        "agreement": Group(samples.agreement_cells(), samples.simulate_agreement),
        "one seed": Group(runs.one_seed_cells(), runs.simulate_one_seed, 2.0),
        "collapse": Group(runs.collapse_cells(), runs.simulate_collapse),
        "odds": Group(odds.odds_cells(), odds.simulate_odds, 2.0),
        "growth": Group(odds.growth_cells(), odds.simulate_growth, 2.0),
        "decided": Group(odds.decided_cells(), odds.simulate_decided, 4.0),
    }


def _worst(rates: Iterable[Rate]) -> float:
    return round(max(rate.upper for rate in rates), 4)


def _rule(of: Results) -> dict[str, Any]:
    judged = [
        tally.wrong
        for name in ("stress", "stated", "one seed stated", "quickstart")
        for _, tally in of[name]
    ]
    return {
        "worst_error_rate_upper95": _worst(judged),
        "accuracy_at_stated_n": round(min(t.smallest.share for _, t in of["stated"]), 4),
        "cannot_tell_rate_quickstart": round(
            max(t.cannot_tell.share for _, t in of["quickstart"]), 4
        ),
        "mcnemar_max_abs_error": samples.mcnemar_error(),
        "interval_coverage_min": round(_least_coverage(of["stress"]), 4),
        "stated_n": rule.STATED_ITEMS,
        "stated_seeds": rule.STATED_SEEDS,
        "stated_margin_points": rule.STATED_MARGIN,
        "qualifying_rank_found_with_one_seed": round(
            min(t.correct.share for _, t in of["one seed stated"]), 4
        ),
    }


def _least_coverage(cells: Sequence[tuple[Cell, rule.Tally]]) -> float:
    pooled: dict[tuple[int, float, int, str], list[Rate]] = {}
    for cell, tally in cells:
        for name, rate in tally.coverage.items():
            key = cell.num_items, cell.discordance, cell.num_seeds, name
            pooled.setdefault(key, []).append(rate)
    return min(
        sum(rate.number for rate in rates) / sum(rate.studies for rate in rates)
        for rates in pooled.values()
    )


def _grown(of: Results) -> dict[str, Any]:
    rates = [tally.wrong for name in ("looks", "files") for _, tally in of[name]]
    return {"worst_error_rate_looks": _worst(rates)}


def _odds(of: Results) -> dict[str, Any]:
    large = [tally for cell, tally in of["odds"] if cell.num_items == odds.LARGE]
    regrets = [(cell.num_items, tally.mean_regret) for cell, tally in of["odds"]]

    def ratio(to: str) -> float:
        """Of the mean over all truths, ranks and seeds; the larger one of both numbers of items."""
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


def _clusters(of: Results) -> dict[str, Any]:
    return {"worst_error_rate_clusters": _worst(tally.wrong for _, tally in of["clusters"])}


def _nats(of: Results) -> dict[str, Any]:
    return {"worst_error_rate_nats": _worst(tally.wrong for _, tally in of["nats"])}


def _decided(of: Results) -> dict[str, Any]:
    least = min(tally.decided.share for _, tally in of["decided"])
    return {"decided_share_3seeds_1000": round(least, 4)}


def _agreement(of: Results) -> dict[str, Any]:
    return {"contradictions": sum(tally.contradictions for _, tally in of["agreement"])}


SUMMARIES: tuple[tuple[Callable[[Results], dict[str, Any]], tuple[str, ...]], ...] = (
    (_rule, ("stress", "stated", "one seed stated", "quickstart")),
    (_clusters, ("clusters",)),
    (_grown, ("looks", "files")),
    (_nats, ("nats",)),
    (_decided, ("decided",)),
    (_odds, ("odds",)),
    (_agreement, ("agreement",)),
)
"""What goes into the JSON object, and the groups that it needs."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every cell, print one line for each to stderr, and the summary to stdout."""
    known = groups()
    parser = argparse.ArgumentParser(description="Verdicts and odds, by simulated studies.")
    parser.add_argument("--studies", type=int, default=400, help="of each cell")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", choices=list(known), help="one group of cells")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    started = time.monotonic()
    chosen = {name: known[name] for name in known if options.only in (None, name)}
    of: Results = {}
    with ProcessPoolExecutor(options.workers) as pool:
        jobs = {
            name: [
                pool.submit(
                    group.simulate, cell, max(round(group.share * options.studies), 1), options.seed
                )
                for cell in group.cells
            ]
            for name, group in chosen.items()
        }
        for name, group in chosen.items():
            of[name] = []
            for cell, job in zip(group.cells, jobs[name], strict=True):
                tally = job.result()
                of[name].append((cell, tally))
                print(f"{cell}: {tally}", file=sys.stderr, flush=True)
            took = round(time.monotonic() - started)
            print(f"{name} done after {took} s", file=sys.stderr, flush=True)
    summary: dict[str, Any] = {}
    for summarise, needed in SUMMARIES:
        if all(name in of for name in needed):
            summary |= summarise(of)
    summary |= {
        "studies_per_cell": options.studies,
        "num_cells": sum(len(group.cells) for group in chosen.values()),
        "seconds": round(time.monotonic() - started),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
