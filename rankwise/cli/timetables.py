"""A study on several devices, on the command line: which does what when, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from rankwise.cli.application import say, stdout
from rankwise.errors import ConfigError
from rankwise.records import quantities

if TYPE_CHECKING:
    from rankwise.study.timetable import Timetable

_MOST_ROWS = 16
"""Devices that a table has room for; --json names all."""


def _price(text: str) -> float:
    try:
        price = float(text)
    except ValueError:
        price = -1.0
    if not 0 <= price < math.inf:
        raise typer.BadParameter(f"{text!r} is no price; write a number, such as 2.5")
    return price


Devices = Annotated[
    int,
    typer.Option(
        "--devices",
        metavar="N",
        min=1,
        max=100_000,
        help="Plan for N equal devices: cut passes for them, and say which does what when.",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        "--price-per-hour",
        metavar="PRICE",
        help="Say what the study costs if one device costs so much, in any currency.",
        parser=_price,
    ),
]


def check_price(price_per_hour: float | None, rate: float | None) -> None:
    """Whether a cost can be said.

    Raises:
        ConfigError: it cannot, as no speed is known.
    """
    if price_per_hour is not None and rate is None:
        problem = "--price-per-hour: no speed is known; give --tokens-per-second too"
        raise ConfigError("plan", [problem])


def print_times(times: Timetable) -> None:
    """A table for several devices, and what they take."""
    if times.schedule.num_devices > 1:
        stdout.print(_table(times))
    for line in _lines(times):
        say(line)


def _table(times: Timetable) -> Table:
    """What each device does in which order, and when its last job ends."""
    schedule = times.schedule
    table = Table()
    for name in ("device", "jobs, first to last", "until"):
        table.add_column(name, justify="left" if name.startswith("jobs") else "right")
    for device in range(min(schedule.num_devices, _MOST_ROWS)):
        slots = [slot for slot in schedule.slots if slot.device == device]
        jobs = ", ".join(times.titles[slot.job.name] for slot in slots)
        end = max((slot.end for slot in slots), default=0.0)
        table.add_row(str(device + 1), jobs or "nothing", _when(times, end) if slots else "")
    more = schedule.num_devices - _MOST_ROWS
    if more > 0:
        table.caption = f"and {quantities.counted(more, 'device')} more"
    return table


def _lines(times: Timetable) -> Iterator[str]:
    """How near the least time a study on several devices comes, and what it takes of them."""
    number, makespan = times.schedule.num_devices, times.schedule.makespan
    if number > 1 and makespan:
        seconds = times.seconds(makespan)
        done = "" if seconds is None else f"done after {quantities.seconds(seconds)}, "
        yield (
            f"{number} devices: {done}at work {quantities.share(times.busy_share)} of the time; no "
            f"schedule takes less than {quantities.share(times.least / makespan)} of it"
        )
    hours = times.device_hours
    if hours is None or (number == 1 and times.cost is None):
        return
    line = f"device-hours: {hours:.2f}, each device until its last job ends"
    if times.cost is not None:
        line += f"; cost: {times.cost:,.2f} at {times.price_per_hour:g} an hour"
    yield line


def _when(times: Timetable, work: float) -> str:
    """A time of the schedule; where no speed is known, as a share of the whole."""
    seconds = times.seconds(work)
    if seconds is not None:
        return quantities.seconds(seconds)
    return quantities.share(work / times.schedule.makespan) if work else ""
