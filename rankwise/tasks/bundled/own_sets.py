"""Own rows that come with rankwise: ``data: bundled/extraction``.

``extraction`` asks for the fields of a short text; ``tool_calls`` asks which tool does what is
requested, with its arguments. These answers are JSON and follow from the prompt alone.
``short_prompts`` are questions, requests with a format, and some in German, each with one of many
possible answers: they are made to be judged by length.
"""

from __future__ import annotations

import datetime
import itertools
import json
import random
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import Any

from rankwise.tasks.bundled.kinship import NAMES

Row = dict[str, Any]
"""Its columns, as users have them: prompt and completion, or messages."""

_FIRST_NAMES = [name for names in NAMES for name in names]
_LAST_NAMES = """
    Berg Costa Dubois Fischer Garcia Hansen Ivanov Jensen Kowalski Larsen Moreau Novak Okafor Price
    Rossi Silva Tanaka Underwood Vega Weber Young Zhang Adler Brandt
"""
_CITIES = """
    Athens Berlin Boston Cairo Chicago Denver Dublin Geneva Hamburg Istanbul Kyoto Lagos Lima Lisbon
    London Lyon Madrid Manila Milan Mumbai Naples Nairobi Osaka Oslo Paris Porto Prague Quito Rome
    Seattle Seoul Sydney Tokyo Toronto Turin Vienna Warsaw Zurich
"""
_MONTHS = """
    January February March April May June July August September October November December
"""
_FIRST_DAY = datetime.date(2015, 1, 1)
_NUM_DAYS = 4000

_TEXTS = (
    "{name} from {city} paid {amount} euros on {date}.",
    "On {date}, {name} sent {amount} euros to our office in {city}.",
    "Invoice for {name}, {city}: {amount} euros, due on {date}.",
    "{amount} euros arrived on {date}. They came from {name}, who lives in {city}.",
    "Our branch in {city} refunded {amount} euros to {name} on {date}.",
    "Dear {name}, your order of {date} cost {amount} euros and was shipped to {city}.",
)

_TOOLS = (
    "You answer every request with one JSON object that calls a tool. The tools are "
    "get_weather(city, day), set_alarm(time, label), send_money(to, amount) and "
    "book_table(city, people)."
)
_EXAMPLE = {
    "city": "Bergen",
    "day": "Friday",
    "time": "05:40",
    "label": "ferry",
    "to": "Irma",
    "amount": 75,
    "people": 3,
}
_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
_LABELS = "school work breakfast training church market swimming practice"
_REQUESTS: Mapping[str, tuple[str, str]] = {
    "get_weather": ("What is the weather in {city} on {day}?", "Will it rain in {city} {day}?"),
    "set_alarm": ("Set an alarm for {label} at {time}.", "Wake me at {time} for {label}."),
    "send_money": ("Send {amount} euros to {to}.", "I owe {to} {amount} euros, please pay."),
    "book_table": ("Book a table for {people} in {city}.", "We are {people}: a table in {city}."),
}


def _word(rng: random.Random, words: str) -> str:
    return rng.choice(words.split())


def _extraction(rng: random.Random) -> Row:
    name = f"{rng.choice(_FIRST_NAMES)} {_word(rng, _LAST_NAMES)}"
    city, amount = _word(rng, _CITIES), rng.randint(11, 9999)
    date = _FIRST_DAY + datetime.timedelta(days=rng.randrange(_NUM_DAYS))
    text = rng.choice(_TEXTS).format(
        name=name,
        city=city,
        amount=f"{amount:,}",
        date=f"{date.day} {_MONTHS.split()[date.month - 1]} {date.year}",
    )
    prompt = f"Write the name, city, amount and date (YYYY-MM-DD) as a JSON object.\n\n{text}"
    fields = {"name": name, "city": city, "amount": amount, "date": date.isoformat()}
    return {"prompt": prompt, "completion": json.dumps(fields)}


def _tool_call(rng: random.Random) -> Row:
    """Behind an example of every wording, so that a model can know the form of an answer."""
    tool = rng.choice(list(_REQUESTS))
    drawn = {
        "city": _word(rng, _CITIES),
        "day": _word(rng, _DAYS),
        "time": f"{rng.randrange(5, 23):02}:{rng.randrange(0, 60, 5):02}",
        "label": _word(rng, _LABELS),
        "to": rng.choice(_FIRST_NAMES),
        "amount": rng.randint(5, 900),
        "people": rng.randint(2, 12),
    }
    turns = [{"role": "system", "content": _TOOLS}]
    for number, (name, wordings) in itertools.product(range(2), _REQUESTS.items()):
        turns += _turns(name, wordings[number], _EXAMPLE)
    return {"messages": turns + _turns(tool, rng.choice(_REQUESTS[tool]), drawn)}


def _turns(tool: str, wording: str, values: Mapping[str, Any]) -> list[dict[str, str]]:
    """A request, and the call that answers it."""
    arguments = {name: value for name, value in values.items() if f"{{{name}}}" in wording}
    call = json.dumps({"tool": tool, "arguments": arguments})
    asked = {"role": "user", "content": wording.format(**values)}
    return [asked, {"role": "assistant", "content": call}]


def _drawn(name: str, draw: Callable[[random.Random], Row], num_rows: int) -> list[Row]:
    """Rows of which no two are alike."""
    rng = random.Random(name)
    rows: dict[str, Row] = {}
    while len(rows) < num_rows:
        row = draw(rng)
        rows[json.dumps(row)] = row
    return list(rows.values())


def _short_prompts() -> list[Row]:
    file = resources.files("rankwise.tasks.bundled") / "short_prompts.jsonl"
    pairs = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    roles = {"user": "prompt", "assistant": "answer"}
    return [
        {"messages": [{"role": role, "content": pair[key]} for role, key in roles.items()]}
        for pair in pairs
    ]


SETS: Mapping[str, Callable[[], list[Row]]] = {
    # of which a study holds out 200 by default
    "extraction": partial(_drawn, "extraction", _extraction, 2000),
    "tool_calls": partial(_drawn, "tool_calls", _tool_call, 200),
    "short_prompts": _short_prompts,
}
"""Name -> its rows, always the same."""
