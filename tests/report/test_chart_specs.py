"""Every chart is what Vega-Lite's own JSON schema knows: what is misspelt would be ignored."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from jsonschema import Draft7Validator

from rankwise.report.parts import Chart, Drawing, Figure
from rankwise.report.rendering import specification
from tests.planted.charts import BARS, CHARTS


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    altair = importlib.util.find_spec("altair")
    assert altair is not None
    assert altair.origin is not None
    file = Path(altair.origin).parent / "vegalite" / "v6" / "schema" / "vega-lite-schema.json"
    return Draft7Validator(json.loads(file.read_text(encoding="utf-8")))


def whole(drawing: Drawing) -> Chart:
    return specification(Figure("name", "A title", "", drawing, "n = 9"))


@pytest.mark.parametrize("name", CHARTS)
def test_the_schema_knows_all_of_a_chart(name: str, schema: Draft7Validator) -> None:
    schema.validate(whole(CHARTS[name]))


def test_the_schema_would_refuse_a_misspelt_look(schema: Draft7Validator) -> None:
    chart = whole(CHARTS["losses"])
    chart["layer"][0]["mark"]["strokeWdith"] = 2
    assert not schema.is_valid(chart)


def test_rows_that_layers_share_are_there_once() -> None:
    chart = whole(CHARTS["intervals"])
    zero, bars, points = chart["vconcat"][0]["layer"]
    assert bars["data"] == points["data"] != zero["data"]
    assert len(chart["datasets"]) == 2
    assert len(chart["datasets"][bars["data"]["name"]]) == len(BARS)
