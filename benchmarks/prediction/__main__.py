"""Does anything choose a rank better than a constant, on tasks that it has not seen?

    python -m benchmarks.prediction [--collection FOLDER ...] [--curves FOLDER] [--only DOMAIN]

The comparison of docs/studies/prediction.md. *Ours* is the collection in ``studies/``, and
the folders that are named; a domain of fewer than four tasks is skipped. Tables go to stdout,
a row for each predictor; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.prediction.advice import Advice, Planned, advise
from benchmarks.prediction.collected import CollectedStudy
from benchmarks.prediction.collection import SHIPPED, read_collection
from benchmarks.prediction.curves import TARGETS, RankCurve, Target, curve_of
from benchmarks.prediction.domains import domains
from benchmarks.prediction.flips import ORDERERS, Orderer, study_aucs
from benchmarks.prediction.judge import MIN_TASKS, Judgement, Mean, judge, mean_over_tasks
from rankwise.records import quantities

CURVES = Path(__file__).resolve().parents[3] / "shared/data/curves"
DIGITS = {"points": 2, "nats": 4}


def judgements(curves: Sequence[RankCurve]) -> Iterator[tuple[str, Judgement]]:
    """Every target that is measured, and what a choice for gain costs in retention."""
    for target in TARGETS:
        if _num_tasks(curves, target) >= MIN_TASKS:
            yield target, judge(curves, target)
    if _num_tasks(curves, "worth") >= MIN_TASKS:
        yield "retention lost by a choice for gain", judge(curves, "gain", measured_on="retention")


def _num_tasks(curves: Sequence[RankCurve], target: Target) -> int:
    return len({curve.task for curve in curves if curve.has(target)})


def table(judgement: Judgement, unit: str) -> Iterator[str]:
    """A row for each predictor: regret, regret less that of the best constant, ranks chosen."""
    digits, best = DIGITS[unit], judgement.best_constant.name
    yield f"| | regret, {unit} | minus {best} | ranks chosen | beats the constants |"
    yield "|---|---|---|---|---|"
    for each in sorted(judgement.judged, key=lambda each: each.regret.value):
        less = each.less_constants[best]
        ranks = sorted(each.choices.values())
        counts = ", ".join(f"{rank} × {ranks.count(rank)}" for rank in dict.fromkeys(ranks))
        beats = {"constant": ""}.get(each.kind, "yes" if each.beats_the_constants else "no")
        yield (
            f"| {each.name} | {_shown(each.regret, digits)} | {_shown(less, digits)} | {counts} | "
            f"{beats} |"
        )
    if judgement.not_judged:
        yield f"Not judged: {', '.join(judgement.not_judged)}."


def _shown(mean: Mean, digits: int) -> str:
    value, lower, upper = (quantities.decimal(each, digits, signed=False) for each in mean)
    return f"{value} ({lower} to {upper})"


def forgetting(studies: Sequence[CollectedStudy]) -> dict[str, Mean]:
    """The AUC of each way of ordering items, over tasks; empty where these are too few."""
    by_task = defaultdict[str, list[Mapping[Orderer, float]]](list)
    for study in studies:
        aucs = study_aucs(study)
        if aucs is not None:
            by_task[study.data_set].append(aucs)
    if len(by_task) < MIN_TASKS:
        return {}
    means = {
        name: [float(np.mean([each[name] for each in its])) for its in by_task.values()]
        for name in ORDERERS
    }
    found = {f"AUC, {name}": mean_over_tasks(values) for name, values in means.items()}
    for other in ("base margin", "other runs"):
        gained = np.subtract(means["rank-3 factors"], means[other])
        found[f"rank-3 factors less {other}"] = mean_over_tasks(gained.tolist())
    return found


def advised(studies: Sequence[CollectedStudy]) -> dict[str, Advice]:
    """What the ridge says of each study, from the studies of other tasks alone."""
    found = dict[str, Advice]()
    for study in studies:
        curve = curve_of(study)
        if curve is None:
            continue
        planned = Planned(
            base_fingerprint=study.base_model.fingerprint,
            target_modules=study.training.target_modules,
            ranks=curve.ranks,
            rates=curve.question.rates,
            alphas=study.alphas_of(curve.ranks),
        )
        others = [each for each in studies if each.data_set != study.data_set]
        found[curve.name] = advise(others, planned, study.features)
    return found


def summary(found: dict[str, Judgement], digits: int) -> dict[str, Any]:
    """For each target the best constant, and the ridge against it."""
    told: dict[str, Any] = {}
    for name, judgement in found.items():
        best, ridge = judgement.best_constant, judgement.of("ridge")
        told[name] = {
            "tasks": judgement.num_tasks,
            "best_constant": best.name,
            "best_constant_regret": round(best.regret.value, digits),
            "ridge_regret": None if ridge is None else round(ridge.regret.value, digits),
            "beat_the_constants": [e.name for e in judgement.judged if e.beats_the_constants],
        }
        for each in judgement.judged:
            if each.kind == "constant":
                told[name][f"{each.name}_regret"] = round(each.regret.value, digits)
    return told


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge every domain that is there."""
    parser = argparse.ArgumentParser(description="Predictors of the best rank against constants.")
    parser.add_argument("--collection", type=Path, nargs="*", default=[], help="more studies")
    parser.add_argument("--curves", type=Path, default=CURVES, help="published curves")
    parser.add_argument("--only", help="one domain: ours, GLUE or tinker")
    options = parser.parse_args(arguments)
    started, told = time.monotonic(), dict[str, Any]()
    studies = read_collection(SHIPPED, *options.collection)
    own = tuple(curve for study in studies if (curve := curve_of(study)) is not None)
    for domain, (unit, curves) in {"ours": ("points", own), **domains(options.curves)}.items():
        if options.only not in (None, domain):
            continue
        found = dict(judgements(tuple(curves)))
        for name, judgement in found.items():
            print(f"\n{domain}, {name}: {judgement.num_tasks} tasks\n")
            print(*table(judgement, unit), sep="\n")
        told[domain] = {"curves": len(tuple(curves)), **summary(found, DIGITS[unit])}
    says = advised(studies) if options.only in (None, "ours") else {}
    if says:
        print("\nours, what the ridge says of each study from those of other tasks\n")
        print("| study | rank | why not |\n|---|---|---|")
        for name, advice in says.items():
            print(f"| {name} | {advice.rank or 'cannot say'} | {'; '.join(advice.reasons)} |")
        print()
    told["answered"] = sum(advice.rank is not None for advice in says.values())
    aucs = forgetting(studies) if options.only in (None, "ours") else {}
    for name, mean in aucs.items():
        print(f"{name}: {_shown(mean, 3)}")
    told["forgotten_items"] = {name: round(mean.value, 3) for name, mean in aucs.items()}
    print(json.dumps(told | {"seconds": round(time.monotonic() - started)}))


if __name__ == "__main__":
    main()
