"""All trained models of one trained task that are scored: runs, and what was made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from rankwise.findings.options import OptionGains, Runs
from rankwise.findings.pairs import run_record
from rankwise.records import quantities
from rankwise.records.axes import run_labels
from rankwise.records.results import ModelResults
from rankwise.records.study import COMPARED, PlannedRun, Role

ModelKind = Literal["run", "checkpoint", "truncated", "mitigated", "variant"]
_ROLES: dict[ModelKind, Sequence[Role]] = {
    "run": COMPARED,
    "checkpoint": ["checkpoint"],
    "truncated": ["truncated"],
    "mitigated": ["mitigated"],
    "variant": ["variant"],
}


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
    for kind, roles in _ROLES.items():
        of_label: dict[str, list[ModelResults]] = {}
        for model in source.results.of_role(*roles):
            if run_record(model).status == "trained" and is_measured(model):
                label = _label(source, run_record(model).planned)
                of_label.setdefault(label, []).append(model)
        for label, group in of_label.items():
            yield ModelGroup(label, kind, tuple(group))


def _label(source: OptionGains, planned: PlannedRun) -> str:
    """What tells a model from the others, the seed left out."""

    def of_run(name: str) -> str:
        return source.labels.get(name) or run_labels([planned])[planned.name]

    if planned.role == "variant":
        return run_labels(source.results.planned_of("variant"))[planned.name]
    if planned.of is None:
        return of_run(planned.name)
    whole = of_run(planned.of.name)
    if planned.role == "truncated":
        refined = ", refined" if planned.num_steps else ""
        return f"{whole}, truncated to rank {planned.rank}{refined}"
    if planned.mitigation is not None:
        return f"{whole}, {planned.mitigation.label}"
    return f"{whole}, step {quantities.count(planned.num_steps)}"
