"""Stop each training at its last checkpoint that keeps enough of what the base knows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from rankwise.records import quantities
from rankwise.records.config.training import StopConfig
from rankwise.study.searches.policy import Decision, Known, Progress, Ruling, Setting, Shown, Trial


def early_stop(
    settings: Sequence[Setting],
    seeds: Sequence[int],
    shares: Sequence[Sequence[float]],
    stop: StopConfig,
    known: Known,
) -> Decision:
    """Trains every setting and seed from checkpoint to checkpoint while it keeps enough.

    A training stops where the estimated loss on the retention validation items is above the
    limit, and the checkpoint before it is the run. If the first checkpoint loses too much, it
    is the run all the same: the verdict on test items says what it loses.

    Args:
        settings: that are trained, each at one rate.
        seeds: at least one.
        shares: of the steps (0..1) of each setting, after which it may end before its last step.
        stop: the limit.
        known: everything so far.

    Returns:
        The next checkpoint of every training that has kept enough so far.
    """
    wanted: list[Progress] = []
    ruled_out: list[Ruling] = []
    finalists: list[Progress] = []
    endings: list[str] = []
    limit = stop.retention_loss
    for seed, (place, setting) in itertools.product(seeds, enumerate(settings)):
        trial, label = Trial(place, setting.rates[0], seed), f"{setting.label}, seed {seed}"
        its_shares = (*sorted({*shares[place]}), 1.0)
        reached = [share for share in its_shares if Progress(trial, share) in known]
        shown = {share: known[Progress(trial, share)] for share in reached}
        # at the first checkpoint where it diverged, or lost too much
        stopped = next(
            (share for share, of in shown.items() if of is None or _loss(of) > limit), None
        )
        if stopped is None and len(reached) < len(its_shares):
            wanted.append(Progress(trial, its_shares[len(reached)]))
        kept = [share for share in reached if stopped is None or share < stopped]
        for share in kept[-1:] or reached[-1:]:
            finalists.append(Progress(trial, share))
            endings.append(f"{label}: {quantities.percent(share)} of its steps")
        if stopped is not None and stopped == reached[-1]:
            at, of = quantities.percent(stopped), shown[stopped]
            reason = f"{label}: diverged before {at} of its steps"
            if of is not None:
                lost, most = (quantities.amount(n, "points") for n in (_loss(of), limit))
                reason = (
                    f"{label}: after {at} of its steps it loses {lost} on the retention "
                    f"validation items, more than {most}"
                )
            ruled_out.append(Ruling(place, None, reason))
    if wanted:
        share = quantities.percent(min(progress.share for progress in wanted))
        statement = f"{len(wanted)} trainings go on to {share} of their steps"
        return Decision(tuple(wanted), (), tuple(ruled_out), statement)
    return Decision((), tuple(finalists), tuple(ruled_out), "; ".join(endings))


def _loss(shown: Shown) -> float:
    """Mean over the retention tasks, in points; 0 without any."""
    losses = [float(task.mean()) for task in shown.losses]
    return sum(losses) / len(losses) if losses else 0.0
