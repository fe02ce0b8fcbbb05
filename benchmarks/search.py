"""Do searches find what the grid finds, at which share of its cost, and how often are they wrong?

    python -m benchmarks.search [--studies 120] [--tiny] [--curves FILE] [--only GROUP]

Simulated studies of five ranks (8 to 128) and three seeds, whose truths are known. Validation
items decide a search, and its finalists are judged on 1,000 in-domain and 1,000 retention test
items by the rule of ``findings.decision``. Two kinds of items: 400 whose p(right) is compared, with
delta = epsilon = 4 points, and 500 right or wrong ones, with 5 points.

- An *answer* is the rank that the rule recommends on the test items, else the finalist that is
  worth most on them (gain less twice the retention loss beyond epsilon), or not to fine-tune.
- It *agrees* if its true worth is at most delta below that of the grid's answer.
- Its *cost* is trained steps and scored items over those of the grid: every rank, every seed.
- It is *wrong* if the rule recommends a rank that truly is more than delta below the best
  admissible one, loses more than epsilon, or is not better than the base. The ladder claims nothing
  of ranks that it did not train, so it is held against those that it did.

Groups: ``curves`` (plausible truths, among them fits to published curves; large ranks learn alike,
start slower, or peak early, in turn), ``stress`` (truths 2 % beyond a margin), ``tuned`` (learning
rates are searched too), ``until`` (one seed first, up to 4,000 items) and ``real`` (per-run
results of others; skipped without the file). A line for each cell goes to stderr; the last line of
stdout is one JSON object. Of error rates the worst cell counts, by its exact upper 95 % bound, of
agreement and cost the mean over the cells of ``curves``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import search_cells as cells
from benchmarks import search_curves as curves
from benchmarks.search_cells import Cell, Tallies

CURVES = Path(__file__).resolve().parents[2] / "shared/data/curves/lora-rank-scaling-glue.csv"
TINY_STUDIES, TINY_DRAWS = 1, 1


class Group(NamedTuple):
    """Cells that are simulated alike; ``share`` times ``--studies`` in each."""

    cells: Sequence[Cell]
    simulate: Callable[[Cell, int, int], Tallies]
    share: float


GROUPS = {
    "curves": Group(cells.curve_cells(), cells.simulate_searches, 1.0),
    "stress": Group(cells.stress_cells(), cells.simulate_searches, 2.5),
    "tuned": Group(cells.tuned_cells(), cells.simulate_tuned, 0.5),
    "until": Group(cells.curve_cells(), cells.simulate_until, 1.0),
    "until, stress": Group(cells.stress_cells(), cells.simulate_until, 1.5),
}
Results = dict[str, list[tuple[Cell, Tallies]]]


def run_group(name: str, studies: int, seed: int) -> list[tuple[Cell, Tallies]]:
    """Simulate a group; a line for each cell and search."""
    group, found = GROUPS[name], list[tuple[Cell, Tallies]]()
    for cell in group.cells:
        tallies = group.simulate(cell, max(round(group.share * studies), 1), seed)
        found.append((cell, tallies))
        for search, tally in tallies.items():
            print(f"{name:13} {cell} {search:18} {tally}", file=sys.stderr, flush=True)
    for search in found[0][1]:
        print(f"{name:13} all {search}: {cells.pooled(found, search)}", file=sys.stderr)
    return found


def _searches(of: Results) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for search in ("narrow", "ladder"):
        tally = cells.pooled(of["curves"], search)
        worst = min(tallies[search].mean("agrees") for _, tallies in of["curves"])
        summary[f"{search}_agreement"] = round(tally.mean("agrees"), 4)
        summary[f"{search}_agreement_worst_cell"] = round(worst, 4)
        summary[f"{search}_cost_share"] = round(tally.mean("cost_share"), 4)
        most = max(tallies[search].mean("cost_share") for _, tallies in of["curves"])
        summary[f"{search}_cost_share_worst_cell"] = round(most, 4)
    return summary


def _errors(of: Results) -> dict[str, Any]:
    """Of narrow and until against all ranks, of the ladder against those that it trained."""
    searched = [tallies for name in ("curves", "stress") for _, tallies in of[name]]
    grown = [tallies for name in ("until", "until, stress") for _, tallies in of[name]]
    narrow = max(tallies["narrow"].rate("wrong").upper for tallies in searched)
    ladder = max(tallies["ladder"].rate("wrong_of_trained").upper for tallies in searched)
    until = max(
        tallies[name].rate("wrong").upper
        for tallies in grown
        for name in ("until", "until, from two seeds")
        if name in tallies
    )
    return {
        "worst_error_rate_upper95": round(max(narrow, ladder, until), 4),
        "narrow_error_upper95": round(narrow, 4),
        "ladder_error_upper95": round(ladder, 4),
        "until_error_upper95": round(until, 4),
        "ladder_error_of_all_ranks_upper95": round(
            max(tallies["ladder"].rate("wrong").upper for tallies in searched), 4
        ),
        "until_error_of_the_rank_upper95": round(
            max(tallies["until, of the rank"].rate("wrong").upper for tallies in grown), 4
        ),
        "grid_error_upper95": round(
            max(tallies["grid"].rate("wrong").upper for tallies in searched), 4
        ),
    }


def _until(of: Results) -> dict[str, Any]:
    until, grid = (cells.pooled(of["until"], name) for name in ("until", "grid"))
    return {
        "until_cost_share": round(until.mean("cost_share"), 4),
        "until_agreement": round(until.mean("agrees"), 4),
        "until_cost_share_from_two_seeds": round(
            cells.pooled(of["until"], "until, from two seeds").mean("cost_share"), 4
        ),
        "until_recommends": round(until.mean("is_recommended"), 4),
        "grid_recommends": round(grid.mean("is_recommended"), 4),
    }


def _tuned(of: Results) -> dict[str, Any]:
    narrow, ladder = (cells.pooled(of["tuned"], name) for name in ("narrow", "ladder"))
    return {
        "narrow_tuned_agreement": round(narrow.mean("agrees"), 4),
        "narrow_tuned_cost_share": round(narrow.mean("cost_share"), 4),
        "ladder_tuned_cost_share": round(ladder.mean("cost_share"), 4),
    }


SUMMARIES: tuple[tuple[Callable[[Results], dict[str, Any]], tuple[str, ...]], ...] = (
    (_searches, ("curves",)),
    (_until, ("until",)),
    (_errors, ("curves", "stress", "until", "until, stress")),
    (_tuned, ("tuned",)),
)


def real_curves(path: Path, draws: int, seed: int) -> dict[str, Any]:
    """Regret on per-run results; None without the file."""
    if not path.exists():
        return {"real_curve_regret_points": None, "always_32_regret_points": None}
    found = curves.regrets(curves.read_curves(path), draws, seed)
    for name in found.by_choice:
        print(
            f"real: {name:20} regret {found.mean(name):.3f} cost {found.share(name):.3f}",
            file=sys.stderr,
        )
    return {
        "real_curve_regret_points": round(max(found.mean("narrow"), found.mean("ladder")), 3),
        "always_32_regret_points": round(found.mean("always 32"), 3),
        "real_curve_regret_of_narrow": round(found.mean("narrow"), 3),
        "real_curve_regret_of_ladder": round(found.mean("ladder"), 3),
        "real_curve_narrow_cost_share": round(found.share("narrow"), 3),
        "real_curve_ladder_cost_share": round(found.share("ladder"), 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate every group, and print the summary."""
    parser = argparse.ArgumentParser(description="Searches against the grid, simulated.")
    parser.add_argument("--studies", type=int, default=120, help="of each cell of curves")
    parser.add_argument("--draws", type=int, default=10, help="of seeds, for each real curve")
    parser.add_argument("--only", choices=[*GROUPS, "real"], help="one group")
    parser.add_argument("--curves", type=Path, default=CURVES, help="lora-rank-scaling-glue.csv")
    parser.add_argument("--tiny", action="store_true", help="a few studies, for tests")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    studies = TINY_STUDIES if options.tiny else options.studies
    started = time.monotonic()
    of: Results = {}
    for name in GROUPS:
        if options.only in (None, name):
            of[name] = run_group(name, studies, options.seed)
            took = round(time.monotonic() - started)
            print(f"{name} done after {took} s", file=sys.stderr, flush=True)
    summary: dict[str, Any] = {}
    for summarise, needed in SUMMARIES:
        if all(name in of for name in needed):
            summary |= summarise(of)
    if options.only in (None, "real"):
        draws = TINY_DRAWS if options.tiny else options.draws
        summary |= real_curves(options.curves, draws, options.seed)
    summary |= {"studies_per_cell": studies, "seconds": round(time.monotonic() - started)}
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
