"""Repairs after training: changes of a trained adapter, what they score, and the one to use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import Field

from rankwise.records import quantities
from rankwise.records.base import Record
from rankwise.records.fields import PlaceBelow
from rankwise.records.files import FileDigest
from rankwise.records.study import Interval, Provenance, Relation, StageRecord, Unit

RepairFamily = Literal["scale", "lines", "energy", "heads", "average"]
REPAIR_FAMILIES: tuple[RepairFamily, ...] = get_args(RepairFamily)


class RepairMethod(NamedTuple):
    """How a kind of repair is named and asked for; ``weights.repairs.FAMILIES`` makes it.

    Attributes:
        label: of one of its repairs in tables and sentences.
        values: a regular expression of the values by which one can be asked for.
        takes: the same in words.
        is_stronger_upwards: whether a larger value changes the adapter more.
    """

    label: str
    values: str
    takes: str
    is_stronger_upwards: bool = False


Combination = Literal["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
COMBINATIONS: tuple[Combination, ...] = get_args(Combination)
"""How adapters are averaged, by PEFT's names."""

_FACTOR = r"[01](\.0*)?|0?\.\d+"

METHODS: Mapping[RepairFamily, RepairMethod] = {
    "scale": RepairMethod("scaled by {value}", _FACTOR, "a factor from 0 to 1"),
    "lines": RepairMethod("LiNeS from {value}", _FACTOR, "a factor from 0 to 1"),
    "energy": RepairMethod(
        "cut to {value} of the energy{over}",
        r"1(\.0*)?|0?\.\d*[1-9]\d*",
        "a share above 0 and at most 1",
    ),
    "heads": RepairMethod(
        "with {heads} reverted",
        r"0*[1-9]\d{0,5}",  # no model has a million heads
        "a number of heads, at least 1",
        is_stronger_upwards=True,
    ),
    "average": RepairMethod("average, {how}", "|".join(COMBINATIONS), ", ".join(COMBINATIONS)),
}
OVER_ALL_LAYERS = "energy-global"
"""What ``energy`` with one threshold over all layers is asked for by."""


class Repair(Record):
    """A change of a trained adapter that needs no training now: a family, and its parameter."""

    family: RepairFamily
    value: float | None = None
    """Factor of delta (scale) or of the first layer's delta (lines); the share of the squared norm
    that is kept (energy); the number of heads (heads); None for an average."""
    how: Combination | Literal["global"] | None = None
    """How an average is made, or that energy has one threshold over all layers; None for the
    others."""

    def __hash__(self) -> int:
        return hash((self.family, self.value, self.how))

    @classmethod
    def asked(cls, kind: str, value: str) -> Self | None:
        """The one of ``--by KIND=VALUE``; None where the kind takes no such value.

        ``kind`` is a family or ``OVER_ALL_LAYERS``.
        """
        family: Any = "energy" if kind == OVER_ALL_LAYERS else kind
        if not re.fullmatch(METHODS[family].values, value):
            return None
        if family == "average":
            return cls.model_validate({"family": family, "how": value})
        how = "global" if kind == OVER_ALL_LAYERS else None
        return cls(family=family, value=float(value), how=how)

    @property
    def label(self) -> str:
        """The repair's name in tables and sentences."""
        if self == AS_IT_IS:
            return "as it is"
        value = self.value or 0.0
        return METHODS[self.family].label.format(
            value=quantities.number(value),
            heads=quantities.counted(int(value), "head"),
            over=" over all layers" if self.how == "global" else "",
            how=self.how,
        )


AS_IT_IS = Repair(family="scale", value=1.0)
"""The adapter as it was trained: what every repair is compared with."""


class RepairPoint(Record):
    """What an adapter gains and keeps with a repair; the names are those of ``Compared``.

    ``gain`` (in-domain, in the unit of the whole) and ``retention`` (in points, over the retention
    tasks) are changes from the base. The leads are those over the adapter as it is, on the same
    items; None of itself. All are positive where the repaired adapter is better. Bounds are
    two-sided; those of one repair of each kind hold together at the whole's confidence.
    """

    repair: Repair
    gain: Interval
    retention: Interval
    lead: Interval | None
    retention_lead: Interval | None
    keeps_enough: bool = False
    """Its loss is shown to be within the limit, and so is that of every stronger repair of its
    kind."""


class JudgedTask(Record):
    """The chosen repair on one task; raw scores."""

    task: str
    relation: Relation
    unit: Unit
    metric: str
    num_items: int
    base_score: float
    adapted_score: float
    """The score of the adapter as it is."""
    repaired_score: float


class RepairChoice(Record):
    """The repair that gains most within a limit of retention loss, or that none does."""

    max_loss_points: float
    """Limit of the retention loss, in points of the mean over the retention tasks."""
    unit: Unit
    """The unit of the gains."""
    confidence: float
    """Confidence in everything that is shown, together."""
    num_kinds: int
    """Sequences of repairs that were tested, each at its part of what may err."""
    in_domain: tuple[str, ...]
    retention: tuple[str, ...]
    left_out: tuple[str, ...]
    """Tasks scored in another unit: they judge nothing."""
    num_items: int
    """Items of all tasks together."""
    curve: tuple[RepairPoint, ...]
    """Every repair, ``AS_IT_IS`` first."""
    repair: Repair | None
    """The one to use; None: none does. Its gain is shown, and that its loss is within the limit."""
    tasks: tuple[JudgedTask, ...]
    """Each task with the repair to use; empty where none does."""
    statement: str

    @property
    def as_it_is(self) -> RepairPoint:
        """The adapter as it was trained."""
        return self.curve[0]

    @property
    def chosen(self) -> RepairPoint | None:
        """What the one to use gains and keeps; None: none does."""
        return next((point for point in self.curve if point.repair == self.repair), None)

    @property
    def together(self) -> str:
        """The repairs for which the intervals hold: 95 %, one of each of 6 kinds together."""
        of = quantities.counted(self.num_kinds, "kind")
        return f"{quantities.percent(self.confidence)}, one repair of each of {of} together"


class AdapterRepair(StageRecord, has_texts=False):
    """``repair/repair.json``: the repair of one adapter, and where it was written."""

    model: str
    """Name of the run, or the adapter's folder."""
    model_fingerprint: str | None = None
    """The run's fingerprint; None without a study."""
    task_fingerprints: dict[str, str] = Field(default_factory=dict)
    """Task -> hash of the items and of how they were scored; empty without a study."""
    base_model: str
    averaged_with: tuple[str, ...]
    """Other runs or adapters that took part in averages."""
    choice: RepairChoice
    reverted: tuple[tuple[int, int], ...] = ()
    """(layer, head) of each head that the repair reverts, the most changed first."""
    ranks: dict[str, int] = Field(default_factory=dict)
    """Layer -> the rank that a cut of its energy leaves it, at least 1; empty for other repairs."""
    folder: str | None
    """The repaired adapter, in PEFT's format, with a model card; None where none does."""
    warnings: tuple[str, ...] = ()
    provenance: Provenance
    files: dict[PlaceBelow, FileDigest] = Field(default_factory=dict)
    """What the repaired adapter is: name in the run's folder -> digest."""
