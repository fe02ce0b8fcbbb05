"""All trained models of one trained task that are scored: runs, and what was made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from rankwise.findings.options import OptionGains, Runs
from rankwise.findings.pairs import run_record
from rankwise.records import quantities
from rankwise.records.axes import run_labels
from rankwise.records.results import ModelResults
from rankwise.records.study import PlannedRun

ModelKind = Literal["run", "checkpoint", "truncated", "mitigated", "variant"]


class ModelGroup(NamedTuple):
    """Models that differ by seed alone; ``label`` tells them from the others of the study."""

    label: str
    kind: ModelKind
    runs: Runs

    @property
    def rank(self) -> int | None:
        """Of a variant, LoRA's beside it: its own may be none. None for full fine-tuning."""
        planned = run_record(self.runs[0]).planned
        return planned.beside_ranks[0] if planned.beside_ranks else planned.rank


def model_groups(
    source: OptionGains, is_measured: Callable[[ModelResults], bool]
) -> Iterator[ModelGroup]:
    """The models that something was measured of, runs first, in the order of the study."""
    results = source.results
    by_kind: dict[ModelKind, Sequence[ModelResults]] = {
        "run": results.runs,
        "checkpoint": results.checkpoints,
        "truncated": results.truncated,
        "mitigated": results.mitigated,
        "variant": results.variants,
    }
    for kind, models in by_kind.items():
        of_label: dict[str, list[ModelResults]] = {}
        for model in models:
            if run_record(model).status == "trained" and is_measured(model):
                label = _label(source, run_record(model).planned)
                of_label.setdefault(label, []).append(model)
        for label, group in of_label.items():
            yield ModelGroup(label, kind, tuple(group))


def _label(source: OptionGains, planned: PlannedRun) -> str:
    """What tells a model from the others, the seed left out."""

    def of_run(name: str) -> str:
        return source.labels.get(name) or run_labels([planned])[planned.name]

    if planned.checkpoint_of is not None:
        return f"{of_run(planned.checkpoint_of.name)}, step {quantities.count(planned.num_steps)}"
    if planned.truncated_from is not None:
        refined = ", refined" if planned.num_steps else ""
        whole = of_run(planned.truncated_from.name)
        return f"{whole}, truncated to rank {planned.rank}{refined}"
    if planned.mitigates is not None and planned.mitigation is not None:
        return f"{of_run(planned.mitigates.name)}, {planned.mitigation.label}"
    if planned.variant is not None:
        return run_labels(source.results.planned_variants)[planned.name]
    return of_run(planned.name)
