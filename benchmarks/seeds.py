"""Is what is said of another run true of the runs that were trained? Real runs only.

    python -m benchmarks.seeds [--default FOLDER] [--curves FILE] [--resamples 2000]

Each study is judged from one seed of every rank: for every rank and for every other seed, "another
run with these settings would do" is said with a probability, and that seed's own scores say whether
it is so: it gains something, loses at most epsilon on average and the ceiling on any task, and is
at most delta below the best rank of that seed. The studies:

- the default study with ten seeds (``benchmarks/default_study``), 3 ranks, 300 items;
- the collected studies (``benchmarks/prediction/studies``), 6 ranks, two seeds, 60 items a task;
- three of another model, Gemma 3 270M, 3 ranks, two seeds, 60 items a task, judged with the runs of
  the collected ones: does the prior hold for a model that it was not fitted to?
- published curves of GLUE, five seeds of six ranks, with ``--curves``: accuracies alone, so nothing
  is asked but to be near the best, with delta 5.

All seeds are scored on the same items, so which items they are is no reason why another seed should
end otherwise: estimates are given to the rule without an error by items, and what is tested is how
far runs, and ranks, are taken to lie apart.

A study is judged with a prior of the runs' spread that is fitted to the other studies of its kind:
the likelihood of a scaled F law, of each rank's variance over its seeds. The fits to all are
printed, beside the product's.

Said and true are compared in tenths of what is said. A gap's interval is from whole studies, drawn
with replacement. The last line is one JSON object: ``largest_gap`` over bins with 50 cases and
more, 0 where every such interval holds 0; ``brier`` is pooled over the kinds.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from benchmarks.prediction.collected import CollectedStudy
from benchmarks.prediction.collection import SECOND, SHIPPED, read_collection
from rankwise.findings.decision import Margins, odds
from rankwise.findings.stats.blocks import GAIN_RUNS, LOSS_RUNS, RunPrior, StudyEvidence, crossed
from rankwise.findings.stats.items import POINTS, Floats, Items
from rankwise.findings.stats.truths import truths_of

DEFAULT = Path(__file__).parent / "default_study"
MARGINS = Margins(3.0, 3.0, 9.0)
CURVE_DELTA = 5.0

NUM_BINS, SMALLEST_BIN = 10, 50

LIKE = {"default study": "collected", "second model": "collected"}
"""Kinds that are judged with a prior of the runs of another kind."""


class Spread(NamedTuple):
    """Variances of runs around their ranks (K,), in squared points, each of f + 1 runs.

    ``shared`` is the share of their variance that runs of one seed have in common.
    """

    variances: Floats
    freedoms: Floats
    shared: float


def spread_of(scores: Floats) -> Spread:
    """Of (seeds, K) scores, by a two-way analysis of variance."""
    num_seeds, count = scores.shape
    apart = scores - scores.mean(axis=0)
    residual = apart - apart.mean(axis=1, keepdims=True)
    total = float((apart**2).sum()) / ((num_seeds - 1) * count)
    own = float((residual**2).sum()) / ((num_seeds - 1) * (count - 1))
    variances = scores.var(axis=0, ddof=1)
    return Spread(variances, np.full(count, num_seeds - 1.0), 1.0 - own / max(total, 1e-9))


class Study(NamedTuple):
    """A study of some seeds of K ranks.

    Attributes:
        name: of the study.
        kind: of studies that have a prior in common.
        num_seeds: how many seeds each rank has.
        spread: of the gains, and of the mean losses; None where retention was not measured.
        said: of the next run of each rank (K,), judged by one seed with two priors.
        held: whether the runs (K,) of a seed do.
    """

    name: str
    kind: str
    num_seeds: int
    spread: tuple[Spread, Spread | None]
    said: Callable[[int, RunPrior, RunPrior], Floats]
    held: Callable[[int], Floats]


class Cases(NamedTuple):
    """What was said (N,) and whether it was so (N,), with the study of each (N,)."""

    said: Floats
    true: Floats
    study: np.ndarray

    @property
    def brier(self) -> float:
        """Mean squared error of what was said."""
        return float(((self.said - self.true) ** 2).mean())


def fitted(spreads: Sequence[Spread]) -> RunPrior:
    """The scaled inverse chi-squared law whose variances such observed ones are likeliest from.

    What runs of one seed share is the median of the studies.
    """
    shared = float(np.clip(np.median([each.shared for each in spreads]), 0.0, 0.9))
    variances = np.maximum(np.concatenate([each.variances for each in spreads]), 1e-3)
    freedoms = np.concatenate([each.freedoms for each in spreads])

    def cost(logs: Floats) -> float:
        scale, freedom = np.exp(logs)
        density = stats.f.logpdf(variances / scale, freedoms, freedom) - np.log(scale)
        return -float(density.sum())

    scale, freedom = np.exp(optimize.minimize(cost, np.zeros(2), method="Nelder-Mead").x)
    return RunPrior(float(freedom), float(scale), shared)


def collected(study: CollectedStudy, kind: str) -> Study | None:
    """A study that was collected: the ranks at one rate and alpha that have every seed."""
    places: dict[tuple[int, float | None, float | None], dict[int, int]] = defaultdict(dict)
    for place, run in enumerate(study.runs, 1):
        if run.method == "lora" and run.status == "trained" and run.rank and run.seed is not None:
            places[run.rank, run.alpha, run.learning_rate][run.seed] = place
    seeds = sorted({seed for of in places.values() for seed in of})
    whole = {key: of for key, of in places.items() if len(of) == len(seeds)}
    # of several settings of a rank the first: the others are of sweeps over rates
    by_rank: dict[int, dict[int, int]] = {}
    for (rank, _, _), of in sorted(whole.items(), key=lambda item: item[0][0]):
        by_rank.setdefault(rank, of)
    trained, kept = study.items_of("in_domain"), study.items_of("retention")
    kept = tuple(items for items in kept if items.unit == "points")
    if len(seeds) < 2 or len(by_rank) < 2 or not kept or trained[0].unit != "points":
        return None
    places_of = [[of[seed] for of in by_rank.values()] for seed in seeds]

    def rows(seed: int, sign: float, tasks: Sequence[object]) -> list[Items]:
        return [
            _exactly(np.array([sign * items.gain_of(p).mean() for p in places_of[seed]]))  # type: ignore[attr-defined]
            for items in tasks
        ]

    def means(seed: int) -> tuple[Floats, Floats]:
        gains, losses = rows(seed, 1.0, trained), rows(seed, -1.0, kept)
        return (
            np.mean([task.values.mean(axis=1) for task in gains], axis=0),
            np.stack([task.values.mean(axis=1) for task in losses]),
        )

    def said(seed: int, gain_runs: RunPrior, loss_runs: RunPrior) -> Floats:
        evidence = StudyEvidence(
            rows(seed, 1.0, trained),
            rows(seed, -1.0, kept),
            crossed(1, len(by_rank)),
            priors=(gain_runs, loss_runs),
        )
        return odds(truths_of(evidence, "next_run"), MARGINS).right

    def held(seed: int) -> Floats:
        gain, losses = means(seed)
        keeps = (losses.mean(axis=0) <= MARGINS.epsilon_points) & (
            losses.max(axis=0) <= MARGINS.ceiling
        )
        best = gain[keeps].max() if keeps.any() else -np.inf
        return (keeps & (gain > 0.0) & (gain >= best - MARGINS.delta)).astype(np.float64)

    by_seed = [means(seed) for seed in range(len(seeds))]
    gains = np.stack([gain for gain, _ in by_seed])
    losses = np.stack([loss.mean(axis=0) for _, loss in by_seed])
    spread = spread_of(gains), spread_of(losses)
    name = f"{study.task}, {study.training.num_rows} rows"
    return Study(name, kind, len(seeds), spread, said, held)


def _exactly(means: Floats) -> Items:
    """Scores with these means (K,), and no error by items."""
    return Items(np.repeat(means[:, None], 2, axis=1), 0.0)


def curves(file: Path) -> Iterator[Study]:
    """Published accuracies: each model, task and number of rows is a study."""
    of: dict[tuple[str, str, str], dict[int, dict[str, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            key = row["model"], row["task"], row["n"]
            of[key][int(row["rank"])][row["seed"]] = POINTS * float(row["accuracy"])
    for (model, task, number), by_rank in of.items():
        seeds = sorted(set.intersection(*(set(its) for its in by_rank.values())))
        scores = np.array([[by_rank[rank][seed] for rank in sorted(by_rank)] for seed in seeds])
        if len(seeds) > 1:
            yield _curve(f"{model} {task} {number}", scores)


def _curve(name: str, scores: Floats) -> Study:
    """Of accuracies (seeds, K)."""
    num_seeds, count = scores.shape
    margins = Margins(CURVE_DELTA, None, has_base=False)

    def said(seed: int, gain_runs: RunPrior, loss_runs: RunPrior) -> Floats:
        evidence = StudyEvidence(
            [_exactly(scores[seed])], [], crossed(1, count), priors=(gain_runs, loss_runs)
        )
        return odds(truths_of(evidence, "next_run"), margins).right

    def held(seed: int) -> Floats:
        return (scores[seed] >= scores[seed].max() - CURVE_DELTA).astype(np.float64)

    return Study(name, "published curves", num_seeds, (spread_of(scores), None), said, held)


def cases_of(studies: Sequence[Study]) -> Mapping[str, Cases]:
    """By kind: what is said from each seed of each rank, against every other seed."""
    found: dict[str, list[tuple[Floats, Floats, int]]] = defaultdict(list)
    for number, study in enumerate(studies):
        kind = LIKE.get(study.kind, study.kind)
        others = [other for other in studies if other is not study and other.kind == kind]
        losses = [o.spread[1] for o in others if o.spread[1] is not None]
        priors = fitted([o.spread[0] for o in others]), fitted(losses) if losses else LOSS_RUNS
        held = [study.held(seed) for seed in range(study.num_seeds)]
        for seed in range(study.num_seeds):
            said = study.said(seed, *priors)
            for other in range(study.num_seeds):
                if other != seed:
                    found[study.kind].append((said, held[other], number))
    return {
        kind: Cases(
            np.concatenate([said for said, _, _ in of]),
            np.concatenate([true for _, true, _ in of]),
            np.concatenate([np.full(len(said), number) for said, _, number in of]),
        )
        for kind, of in found.items()
    }


def pooled(of: Mapping[str, Cases]) -> Cases:
    """The cases of all kinds."""
    return Cases(*(np.concatenate([each[part] for each in of.values()]) for part in range(3)))


def bins(cases: Cases, resamples: int) -> Iterator[tuple[float, float, int, float, float]]:
    """Of each tenth that occurs: said, true, how many, and the 95 % interval of the gap."""
    place = np.minimum((cases.said * NUM_BINS).astype(int), NUM_BINS - 1)
    rng, studies = np.random.default_rng(0), np.unique(cases.study)
    gaps = cases.said - cases.true
    for number in range(NUM_BINS):
        inside = place == number
        if not inside.any():
            continue
        sums = np.array([gaps[inside & (cases.study == study)].sum() for study in studies])
        counts = np.array([(inside & (cases.study == study)).sum() for study in studies])
        drawn = rng.integers(0, len(studies), (resamples, len(studies)))
        total = counts[drawn].sum(axis=1)
        means = sums[drawn].sum(axis=1)[total > 0] / total[total > 0]
        lower, upper = np.quantile(means, (0.025, 0.975))
        yield (
            float(cases.said[inside].mean()), float(cases.true[inside].mean()),
            int(inside.sum()), float(lower), float(upper),
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the fits, and said against true for each kind and for all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--default", type=Path, default=DEFAULT)
    parser.add_argument("--curves", type=Path, default=None, help="lora-rank-scaling-glue.csv")
    parser.add_argument("--resamples", type=int, default=2000)
    asked = parser.parse_args(arguments)
    kinds = (("default study", asked.default), ("collected", SHIPPED), ("second model", SECOND))
    found = [collected(study, kind) for kind, of in kinds for study in read_collection(of)]
    studies = [study for study in found if study is not None]
    if asked.curves is not None:
        studies += curves(asked.curves)
    for kind, of in itertools.groupby(studies, key=lambda study: study.kind):
        its = list(of)
        of_losses = [study.spread[1] for study in its if study.spread[1] is not None]
        print(
            f"{kind}: {len(its)} studies; runs of gains {fitted([s.spread[0] for s in its])}"
            + (f", of losses {fitted(of_losses)}" if of_losses else ""),
            file=sys.stderr,
        )
    print(f"the product's: {GAIN_RUNS}, {LOSS_RUNS}", file=sys.stderr)
    by_kind = cases_of(studies)
    largest = 0.0
    for kind, cases in ({**by_kind, "all": pooled(by_kind)}).items():
        print(f"{kind}: Brier {cases.brier:.3f}, {len(cases.said)} cases", file=sys.stderr)
        for said, true, count, lower, upper in bins(cases, asked.resamples):
            is_far = count >= SMALLEST_BIN and not lower <= 0.0 <= upper
            if kind == "all" and is_far:
                largest = max(largest, abs(said - true))
            print(
                f"  said {said:.2f} true {true:.2f} ({count}), gap {lower:+.2f} to {upper:+.2f}",
                file=sys.stderr,
            )
    summary = {
        "largest_gap": round(largest, 3),
        "brier": round(pooled(by_kind).brier, 4),
        **{f"brier_{kind.replace(' ', '_')}": round(c.brier, 4) for kind, c in by_kind.items()},
        "cases": len(pooled(by_kind).said),
    }
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
