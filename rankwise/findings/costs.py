"""How long it would take to grow a study, by what it took so far."""

from __future__ import annotations

from typing import NamedTuple

from rankwise.records.judgement import Prospect
from rankwise.records.results import StudyResults


class StudyCost(NamedTuple):
    """The seconds of training and scoring so far, of ``num_seeds`` seeds.

    ``num_items`` are those of the largest task.
    """

    training: float
    scoring: float
    num_seeds: int
    num_items: int

    @classmethod
    def of(cls, results: StudyResults) -> StudyCost:
        """Of all trained tasks together."""
        models = (results.base, *results.runs)
        evaluations = [each for model in models for each in model.evaluations.values()]
        return cls(
            training=sum(run.run.train_seconds for run in results.runs if run.run is not None),
            scoring=sum(each.score_seconds for each in evaluations),
            num_seeds=len(results.study.config.seeds),
            num_items=max(each.num_examples for each in evaluations),
        )

    def of_growth(self, growth: Prospect) -> float:
        """The seconds that a growth takes."""
        if growth.num_new_seeds:
            return (self.training + self.scoring) / self.num_seeds * growth.num_new_seeds
        return self.scoring * growth.num_new_items / self.num_items
