"""Spectra: the weights of the runs of one trained task, matrix by matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rankwise.records.fingerprints import fingerprint
from rankwise.records.spectra import SpectraRecord
from rankwise.records.study import StudyRecord
from rankwise.study.stages.stage import Graph, Model, OneRecord, Stage

if TYPE_CHECKING:
    from rankwise.study.context import StudyContext

SPECTRA_REVISION = 2
"""A revision, as those in ``records.fingerprints``."""

ANALYSIS_WORK = 1500.0
"""Work of decomposing all adapted matrices of a run once, in scored tokens: measured on small
models. Only the time left is estimated from it."""


@dataclass(frozen=True)
class AnalyseWeights(OneRecord):
    """Analyse the weights of the runs of one trained task, matrix by matrix.

    So each matrix of the base is decomposed once for all of them.
    """

    train_task: str

    kind = "spectra"
    record = SpectraRecord
    file = "spectra.json"
    field = "spectra"
    made_by = "analysing the weights of"
    took = "analysis_seconds"
    reads_tokens = False

    @classmethod
    def planned(cls, graph: Graph) -> Iterator[Stage]:
        study = graph.study
        # the update, and the base with each of the random updates of both kinds
        decompositions = 1 + 2 * study.config.analysis.null_draws
        if study.config.analysis.spectra:
            for train_task, runs in graph.by_train_task().items():
                work = ANALYSIS_WORK * decompositions * len(runs)
                yield cls.of(graph, "weights", runs, work, train_task=train_task)

    @classmethod
    def wanted(cls, study: StudyRecord, model: Model) -> str:
        assert model is not None
        full, settings = study.full_run_of(model), study.config.analysis
        return fingerprint(
            {
                "revision": SPECTRA_REVISION,
                "base_model": study.base_model_fingerprint,
                "run": model.fingerprint,
                "full": None if full is None else full.fingerprint,
                "modules": study.adapted_modules if model.method == "full" else None,
                "top_k": settings.top_k,
                "null_draws": settings.null_draws,
            }
        )

    def do(self, context: StudyContext, models: Sequence[Model]) -> None:
        from rankwise.study.work.weights import analyse_weights

        context.models.release(base=True)  # matrices are read one by one
        analyse_weights(context, self, [model for model in models if model is not None])
