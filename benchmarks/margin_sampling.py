"""Does it save items to draw them by the base's margins, and to predict from the base?

    python -m benchmarks.margin_sampling [--draws 500] STUDY [STUDY ...]

Finished studies; the folders are only read. Every task with options that decides is taken as a
population of N items whose differences are all known: of each adapter from the base, and of each
two adapters. A quarter and a half of the items are drawn again and again, the same for all
adapters, and the mean over all N items is estimated (``rankwise.findings.stats.sampling``). With p
the base's p(right), the designs are:

- margins: probabilities proportional to sqrt(p (1 - p)), at least 0.1 of the mean; predictors are
  the base's value and this square root.
- half floor: the same, at least 0.5 of the mean.
- derivative: as margins, proportional to p (1 - p), the softmax's derivative.
- control: equal probabilities and the same predictors.
- first, first, half floor: the first adapter was scored on all items too, and its value takes the
  square root's place among the predictors; equal probabilities, or those of half floor.
  Differences are those of the other adapters.
- first, fitted: the same, proportional to how far the first adapter moved items of this p.

ESS is the variance of plain sampling without replacement, (1 - n/N) S^2/n, over the mean squared
error of the estimates; 1 saves nothing. "Of all such items" adds S^2/N to both, for a study's
intervals take the N items for a sample. Each cell is the median over differences that are not the
same on all items. Coverage is of 95 % intervals for the mean over the N items, over draws and
differences. The last line of output is one JSON object, of "margins"; a task is above 1.5 by the
median of its p(right) cells.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rankwise.findings.stats.items import POINTS, Floats, item_size
from rankwise.findings.stats.sampling import FLOOR, draw, inclusion_probabilities, mean_of_all
from rankwise.records.folder import StudyFolder
from rankwise.records.p_right import P_RIGHT
from rankwise.records.reading import read_results
from rankwise.records.results import TaskItems

SHARES = (0.25, 0.5)
CONFIDENCE = 0.95
WORTH_OFFERING = 1.5
FEWEST_ADAPTERS = 3
"""Two are left to compare where the first is known."""


class Population(NamedTuple):
    """A task of a study by one metric: the base's values (N,) and adapters' (K, N), in points."""

    name: str
    metric: str
    p_right: Floats
    base: Floats
    adapters: Floats


def equal(population: Population) -> Floats:
    """(N,): every item is as likely."""
    return np.ones(len(population.base))


def derivative(population: Population) -> Floats:
    """(N,): by how much p(right) moves with the right option's log-likelihood."""
    return population.p_right * (1.0 - population.p_right)


def doubt(population: Population) -> Floats:
    """(N,): the standard deviation of an answer that is right with p(right)."""
    return np.sqrt(derivative(population))


def moved(population: Population) -> Floats:
    """(N,): the first adapter's root mean square difference, fitted on p(right) and its square."""
    design = np.vander(population.p_right, 3)
    squares = (population.adapters[0] - population.base) ** 2
    fit = np.linalg.lstsq(design, squares, rcond=None)[0]
    return np.sqrt(np.maximum(design @ fit, 0.0))


class Design(NamedTuple):
    """By which sizes items are drawn, and whether the first adapter answered all of them."""

    sizes: Callable[[Population], Floats]
    floor: float = FLOOR
    knows_first: bool = False


DESIGNS = {
    "margins": Design(doubt),
    "half floor": Design(doubt, 0.5),
    "derivative": Design(derivative),
    "control": Design(equal),
    "first": Design(equal, knows_first=True),
    "first, half floor": Design(doubt, 0.5, knows_first=True),
    "first, fitted": Design(moved, 0.5, knows_first=True),
}
REPORTED = "margins"


class Cell(NamedTuple):
    """One design on one population, over the draws; ``comparison`` is "base" or "adapters"."""

    population: str
    metric: str
    share: float
    design: str
    comparison: str
    ess: float
    ess_of_all: float
    coverage: float


def populations(study: Path) -> Iterator[Population]:
    """The tasks with options that decide, each by p(right) and by the task's own metric."""
    results = read_results(StudyFolder(study))
    deciding = [
        task for kinds in results.study.tasks.values() for of in kinds.values() for task in of
    ]
    for task in dict.fromkeys(deciding):
        base = results.base.items[task]
        models = [run.items[task] for run in results.runs if task in run.items]
        if base.metric != P_RIGHT or len(models) < FEWEST_ADAPTERS:
            continue
        name, shares = f"{study.name}/{task}", np.asarray(base.values)
        yield Population(name, P_RIGHT, shares, points(base), np.array([*map(points, models)]))
        own = base.by_accuracy
        adapters = np.array([points(model.by_accuracy) for model in models])
        yield Population(name, own.metric, shares, points(own), adapters)


def points(items: TaskItems) -> Floats:
    """(N,) shares in points."""
    return POINTS * np.asarray(items.values)


def comparisons(population: Population, design: Design) -> Iterator[tuple[str, Floats]]:
    """The differences (C, N) from the base and between adapters, without those that are constant.

    Of a design that knows the first adapter: those of the others.
    """
    adapters = population.adapters[int(design.knows_first) :]
    pairs = [one - other for one, other in itertools.combinations(adapters, 2)]
    for name, differences in (("base", adapters - population.base), ("adapters", np.array(pairs))):
        if (varied := np.ptp(differences, axis=1) > 0).any():
            yield name, differences[varied]


def measure(population: Population, share: float, design: str, draws: int) -> Iterator[Cell]:
    """Draw items again and again, and compare the estimates with the mean over all items."""
    total = len(population.base)
    num = round(share * total)
    of = DESIGNS[design]
    probabilities = inclusion_probabilities(of.sizes(population), num, of.floor)
    known = population.adapters[0] if of.knows_first else doubt(population)
    predictors = np.column_stack([population.base, known])
    in_population = (population.name, population.metric, share, design)
    for comparison, differences in comparisons(population, of):
        rng = np.random.default_rng(0)
        true, spread = differences.mean(axis=1), differences.var(axis=1, ddof=1)
        errors, covered = np.empty((2, draws, len(differences)))
        for place in range(draws):
            drawn = draw(probabilities, rng)
            seen = differences[:, drawn]
            size = item_size(seen, in_points=True)
            mean = mean_of_all(seen, drawn, probabilities, predictors, item_size=size)
            lower, upper = mean.interval(CONFIDENCE, of_all_such_items=False)
            errors[place], covered[place] = mean.value - true, (lower <= true) & (true <= upper)
        squared, plain = (errors**2).mean(axis=0), (1.0 - num / total) * spread / num
        yield Cell(
            *in_population,
            comparison,
            ess=float(np.median(plain / np.maximum(squared, 1e-12))),
            ess_of_all=float(np.median(spread / num / (squared + spread / total))),
            coverage=float(covered.mean()),
        )


def correlation(population: Population) -> float:
    """Of the size of a difference from the base with p (1 - p), the median over adapters."""
    sizes = np.abs(population.adapters - population.base)
    known = [np.corrcoef(of, derivative(population))[0, 1] for of in sizes if np.ptp(of) > 0]
    return float(np.median(known)) if known else float("nan")


def summary(cells: Sequence[Cell]) -> dict[str, float]:
    """Of the cells of one design, what the last line says."""
    by_p_right = [cell for cell in cells if cell.metric == P_RIGHT]
    others = [cell for cell in cells if cell.metric != P_RIGHT]
    tasks = {
        name: np.median([cell.ess for cell in by_p_right if cell.population == name])
        for name in dict.fromkeys(cell.population for cell in by_p_right)
    }
    return {
        "ess_median_p_right": float(np.median([cell.ess for cell in by_p_right])),
        "ess_median_accuracy": float(np.median([cell.ess for cell in others])),
        "share_of_tasks_above_1_5": float(np.mean([*tasks.values()] > np.float64(WORTH_OFFERING))),
        "coverage_min": min(cell.coverage for cell in cells),
        "ess_of_all_such_items_median_p_right": float(
            np.median([cell.ess_of_all for cell in by_p_right])
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=500)
    options = parser.parse_args(arguments)
    cells: list[Cell] = []
    print("ESS (of all such items; coverage)")
    for study in options.studies:
        for population in populations(study):
            for share in SHARES:
                print(f"{population.name} {population.metric} n/N = {share}, ", end="")
                print(f"|D| with p (1 - p): {correlation(population):.2f}", flush=True)
                for design in DESIGNS:
                    new = [*measure(population, share, design, options.draws)]
                    cells.extend(new)
                    texts = (
                        f"{cell.comparison} {cell.ess:.2f} ({cell.ess_of_all:.2f}; "
                        f"{cell.coverage:.3f})"
                        for cell in new
                    )
                    print(f"    {design:18}", "  ".join(texts), flush=True)
    figures = {
        design: summary([cell for cell in cells if cell.design == design]) for design in DESIGNS
    }
    for design, of_design in figures.items():
        print(f"{design:18}", {name: round(value, 3) for name, value in of_design.items()})
    print(json.dumps(figures[REPORTED]))


if __name__ == "__main__":
    main()
