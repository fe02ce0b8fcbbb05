"""Stop each training at its last checkpoint that keeps enough of what the base knows."""

from __future__ import annotations

from collections.abc import Sequence

from rankwise.records import quantities
from rankwise.records.config.training import StopConfig
from rankwise.study.searches.policy import (
    Decision,
    Known,
    Progress,
    Ruling,
    Setting,
    Shown,
    Trial,
)


class EarlyStop:
    """Trains every setting and seed from checkpoint to checkpoint while it keeps enough.

    A training stops where the estimated loss on the retention validation items is above the
    limit, and the checkpoint before it is the run. If the first checkpoint loses too much, it
    is the run all the same: the verdict on test items says what it loses.

    Args:
        settings: that are trained, each at one rate.
        seeds: at least one.
        shares: of the steps (0..1) of each setting, after which it may end before its last step.
        stop: the limit.
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        seeds: Sequence[int],
        shares: Sequence[Sequence[float]],
        stop: StopConfig,
    ) -> None:
        self._settings, self._limit = settings, stop.retention_loss
        self._trials = [
            Trial(place, setting.rates[0], seed)
            for seed in seeds
            for place, setting in enumerate(settings)
        ]
        self._shares = [(*sorted({*its}), 1.0) for its in shares]

    def decide(self, known: Known) -> Decision:
        """The next checkpoint of every training that has kept enough so far."""
        wanted: list[Progress] = []
        ruled_out: list[Ruling] = []
        finalists: list[Progress] = []
        for trial in self._trials:
            shares = self._shares[trial.setting]
            reached = [share for share in shares if Progress(trial, share) in known]
            shown = {share: known[Progress(trial, share)] for share in reached}
            # at the first checkpoint where it diverged, or lost too much
            stopped = next(
                (share for share, of in shown.items() if of is None or _loss(of) > self._limit),
                None,
            )
            if stopped is None and len(reached) < len(shares):
                wanted.append(Progress(trial, shares[len(reached)]))
            kept = [share for share in reached if stopped is None or share < stopped]
            finalists += [Progress(trial, kept[-1] if kept else share) for share in reached[-1:]]
            if stopped is not None and stopped == reached[-1]:
                at, of = quantities.percent(stopped), shown[stopped]
                reason = f"{self._label(trial)}: diverged before {at} of its steps"
                if of is not None:
                    lost, most = (quantities.amount(n, "points") for n in (_loss(of), self._limit))
                    reason = (
                        f"{self._label(trial)}: after {at} of its steps it loses {lost} on the "
                        f"retention validation items, more than {most}"
                    )
                ruled_out.append(Ruling(trial.setting, None, reason))
        if wanted:
            share = f"{quantities.percent(min(progress.share for progress in wanted))}"
            statement = f"{len(wanted)} trainings go on to {share} of their steps"
            return Decision(tuple(wanted), (), tuple(ruled_out), statement)
        endings = [
            f"{self._label(trial)}: {quantities.percent(share)} of its steps"
            for trial, share in finalists
        ]
        return Decision((), tuple(finalists), tuple(ruled_out), "; ".join(endings))

    def _label(self, trial: Trial) -> str:
        return f"{self._settings[trial.setting].label}, seed {trial.seed}"


def _loss(shown: Shown) -> float:
    """Mean over the retention tasks, in points; 0 without any."""
    losses = [float(task.mean()) for task in shown.losses]
    return sum(losses) / len(losses) if losses else 0.0
