"""The tables of findings, as they are read back from CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from rankwise.findings.study import StudyFindings, finding_tables
from rankwise.records.results import StudyResults
from rankwise.report.cells import csv_text


def csv_rows(name: str, results: StudyResults, **found: Any) -> list[dict[str, str]]:
    """The rows of a table; ``found`` are findings by name, made from the results."""
    rows = finding_tables(StudyFindings(**found), results)[name]
    return list(csv.DictReader(io.StringIO(csv_text(rows))))
