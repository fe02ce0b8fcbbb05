"""The tables of findings, as they are read back from CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

from rankwise.findings.recommendation import recommend
from rankwise.findings.study import StudyFindings, study_findings
from rankwise.records.results import StudyResults
from rankwise.report.cells import csv_text
from rankwise.report.page import study_sections
from rankwise.report.parts import rows_of


def csv_rows(name: str, results: StudyResults, **found: Any) -> list[dict[str, str]]:
    """The rows of a table; ``found`` are findings by name, made from the results; none: all are."""
    findings = StudyFindings(**found) if found else study_findings(results, recommend(results))
    rows = rows_of(study_sections(results, findings))[name]
    return list(csv.DictReader(io.StringIO(csv_text(rows))))
