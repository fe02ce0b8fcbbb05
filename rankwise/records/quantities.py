"""How numbers are written: one format for each kind of quantity, in the terminal and on paper.

A number that was not measured is an em dash; the reason is given next to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rankwise.records.study import Interval, PlannedRun, Ranked, Scaled, Unit, is_rslora

NOT_MEASURED = "—"
MINUS = "\u2212"

LONGEST_NAME = 300
"""Characters: names of files have 255 bytes, and a sentence has to be read."""

MOST_LISTED = 20
"""More names than this in a sentence are not read."""

_DIGITS: dict[Unit, int] = {"points": 1, "nats": 3, "tokens": 1}
"""Digits behind the point; of a unit of the scores' own nobody knows how large they are."""

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def score(value: float, unit: Unit) -> str:
    """81.3 (points) or 2.507 (nats); the unit is in the heading."""
    return _in_unit(value, unit, signed=False)


def change(value: float, unit: Unit) -> str:
    """+30.0 or −1.5 (points), +0.040 (nats): a difference always shows its sign."""
    return _in_unit(value, unit, signed=True)


def _in_unit(value: float, unit: Unit, *, signed: bool) -> str:
    if unit in _DIGITS:
        return decimal(value, _DIGITS[unit], signed=signed)
    text = f"{abs(value):.4g}"
    if value < 0.0 and float(text) != 0.0:
        return MINUS + text
    return f"+{text}" if signed and float(text) != 0.0 else text


def score_interval(lower: float, upper: float, unit: Unit) -> str:
    """75.1 to 84.1; in points no further than there can be."""
    return " to ".join(score(_possible(bound, unit), unit) for bound in (lower, upper))


def change_interval(lower: float, upper: float, unit: Unit) -> str:
    """−3.2 to +1.4; in points no further than there can be."""
    return " to ".join(change(_possible(bound, unit), unit) for bound in (lower, upper))


def _possible(bound: float, unit: Unit) -> float:
    """A bound by Student's t may lie beyond every share, and no difference of two does."""
    return min(max(bound, -100.0), 100.0) if unit == "points" else bound


def amount(value: float, unit: Unit) -> str:
    """8.9 points, 0.020 nats."""
    return f"{score(value, unit)} {unit}"


def metric(name: str) -> str:
    """What points are of, in words: p(right), accuracy."""
    return {"p_right": "p(right)", "acc": "accuracy"}.get(name, name)


def with_interval(interval: Interval, unit: Unit, *, signed: bool = True) -> str:
    """+3.1 points (+1.0 to +5.2); without signs 20.0 points (12.6 to 27.4)."""
    estimate, bounds = estimate_and_bounds(interval, unit, signed=signed)
    return f"{estimate} {unit} ({bounds})"


def estimate_and_bounds(interval: Interval, unit: Unit, *, signed: bool) -> tuple[str, str]:
    """+3.1, and +1.0 to +5.2."""
    write, ends = (change, change_interval) if signed else (score, score_interval)
    return write(interval.estimate, unit), ends(interval.lower, interval.upper, unit)


def formatted(value: float, spec: str) -> str:
    """A number by Python's format, such as ".3g" or "+.2f", with a true minus."""
    return format(value, spec).replace("-", MINUS)


def correlation(rho: Interval) -> str:
    """0.84 (0.21 to 0.98)."""
    estimate, lower, upper = (formatted(v, ".2f") for v in (rho.estimate, rho.lower, rho.upper))
    return f"{estimate} ({lower} to {upper})"


def ratio(value: float) -> str:
    """0.96."""
    return decimal(value, 2, signed=False)


def times(value: float) -> str:
    """0.031 ×, 1.9 ×, 292 ×."""
    return f"{count(round(value)) if value >= 99.5 else format(value, '.2g')} ×"


def p_value(value: float | None) -> str:
    """Two significant digits: 0.043, 1.0, 1.7 × 10⁻¹⁸."""
    if value is None:
        return NOT_MEASURED
    if value == 0.0:
        return "0"
    mantissa, exponent = f"{value:.1e}".split("e")
    power = int(exponent)
    if power >= -3:
        return f"{float(f'{value:.1e}'):.{max(1 - power, 1)}f}"
    return f"{mantissa} × 10{str(power).translate(_SUPERSCRIPTS)}"


def count(value: int) -> str:
    """1,319."""
    return f"{value:,}"


def size(value: int) -> str:
    """A number of items as n = 1,319, which does not break over lines."""
    return f"n\u00a0=\u00a0{count(value)}"


class Counted(Protocol):
    """What rests on a number of items, which may come in clusters."""

    @property
    def num_examples(self) -> int: ...
    @property
    def num_clusters(self) -> int | None: ...


def sample_size(of: Counted, noun: str = "") -> str:
    """N = 817, or n = 817 items in 120 clusters with the noun "items"."""
    text = f"{size(of.num_examples)} {noun}" if noun else size(of.num_examples)
    return text + in_clusters(of.num_clusters)


def in_clusters(number: int | None) -> str:
    """What follows a number of items that come in clusters; empty where none do."""
    return "" if number is None else f" in {counted(number, 'cluster')}"


def odds(probability: float) -> str:
    """A probability: 72 %, or under 1 %; never 0 or 100 %, for nothing is certain."""
    percents = round(100.0 * probability)
    return "under 1 %" if percents < 1 else "over 99 %" if percents > 99 else f"{percents} %"


def percent(value: float) -> str:
    """A confidence (0..1): 95 %, which does not break over lines."""
    return f"{100 * value:g}\u00a0%"


def parameters(value: int) -> str:
    """Three significant digits: 461 k, 1.84 M, 135 M, 7.62 B; 0 is not known."""
    if value == 0:
        return NOT_MEASURED
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if float(f"{value:.3g}") >= size:
            return f"{_significant(value / size, 3)} {letter}"
    return str(value)


def share(value: float) -> str:
    """A share (0..1) as a percentage with two significant digits: 0.34 %, 1.4 %, 100 %."""
    percent = 100.0 * value
    return f"{percent:.0f} %" if percent >= 9.95 else f"{_significant(percent, 2)} %"


def seconds(value: float) -> str:
    """0.8 s, 42 s, 12.5 min, 3.2 h."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 99.5:
        return f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 99.5 * 60 else f"{value / 3600:.1f} h"


def memory(value: int) -> str:
    """931 MiB, 1.4 GiB."""
    if value < 1024**3:
        return f"{value / 1024**2:.0f} MiB"
    return f"{value / 1024**3:.1f} GiB"


def learning_rate(value: float) -> str:
    """2e-4 rather than 0.0002 or 2e-04: as in a study file."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def number(value: float) -> str:
    """A setting as it was given: 32, 0.1."""
    return f"{value:g}"


def rank(of: Ranked) -> str:
    """Rank 8, or rank pattern (mean 6.3), for what is trained as LoRA."""
    return f"rank {rank_value(of)}"


def rank_value(of: Ranked) -> str:
    """The same below a heading: 8, or pattern (mean 6.3)."""
    return str(of.rank) if of.mean_rank is None else f"pattern (mean {of.mean_rank:.1f})"


def alpha(of: Scaled) -> str | None:
    """16, or 16 with rsLoRA: without that word PEFT would scale the update otherwise.

    2r where each layer has a rank of its own.
    """
    if of.alpha is None:
        return None
    if of.mean_rank is not None and of.scaling is not None:
        return f"{number(of.scaling)}r"
    return number(of.alpha) + (" with rsLoRA" if is_rslora(of) else "")


def steps(of: PlannedRun) -> str:
    """240, or 60 of 240 where it stopped before the end of its training."""
    whole = f" of {count(of.training.num_steps)}" if of.is_part else ""
    return f"{count(of.num_steps)}{whole}"


def modules(names: Sequence[str]) -> str:
    """q_proj, k_proj as q/k; other names as they are."""
    if names and all(name.endswith("_proj") for name in names):
        return "/".join(name.removesuffix("_proj") for name in names)
    return ", ".join(names)


def counted(value: int, noun: str) -> str:
    """1 item, 2 items."""
    return f"{count(value)} {noun}" if value == 1 else f"{count(value)} {noun}s"


def ended(diverged: Sequence[int], reward_failed: Sequence[int]) -> str:
    """With which seeds trainings ended early, those whose reward failed apart; empty for none."""
    others = [seed for seed in diverged if seed not in reward_failed]
    parts = ("diverged", others), ("was ended by a reward that failed", reward_failed)
    said = [
        f"{what} with seed{'s' * (len(seeds) > 1)} {listed([str(seed) for seed in seeds])}"
        for what, seeds in parts
        if seeds
    ]
    return ", and ".join(said)


def listed(names: Sequence[str]) -> str:
    """a, b and c; of more than ``MOST_LISTED``, the first and how many more there are."""
    left = len(names) - MOST_LISTED
    written = [shortened(name) for name in names[:MOST_LISTED]]
    if left > 0:
        written.append(f"{count(left)} more")
    if len(written) < 2:
        return "".join(written)
    return f"{', '.join(written[:-1])} and {written[-1]}"


def shortened(name: str) -> str:
    """A name as sentences have it: its first ``LONGEST_NAME`` characters."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"


def capital(text: str) -> str:
    """The same with its first letter large: it begins a sentence."""
    return text[:1].upper() + text[1:]


def decimal(value: float, digits: int, *, signed: bool) -> str:
    """A figure with so many digits behind the point; signed, +1.5, −1.5 or 0.0."""
    rounded = round(value, digits) + 0.0
    text = f"{abs(rounded):.{digits}f}"
    if rounded < 0:
        return MINUS + text
    return f"+{text}" if signed and rounded > 0 else text


def _significant(value: float, digits: int) -> str:
    """Fixed notation with this many significant digits, trailing zeros kept."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits}g}")
    power = int(f"{rounded:e}".split("e")[1])
    return f"{rounded:.{max(digits - 1 - power, 0)}f}"
