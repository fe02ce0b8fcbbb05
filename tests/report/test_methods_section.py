"""The methods of the page: formulas of what the study has, the file that gives it again."""

from __future__ import annotations

import re
from pathlib import Path

from rankwise.records.results import StudyResults
from rankwise.records.study import Provenance
from rankwise.records.study_file import load_config
from rankwise.report.parts import ReportSection, Table
from rankwise.report.sections.methods import methods_section
from tests.planted.results import planted_study

VERSIONS = {"torch": "2.9.0+cpu", "peft": "0.18.0", "lm-eval": "0.4.13"}


def methods_of(results: StudyResults) -> ReportSection:
    return methods_section(results, "report")


def formulas(results: StudyResults) -> dict[str, str]:
    shown = methods_of(results).tables[0].table
    assert isinstance(shown, Table)
    return {str(row[0]): str(row[1]) for group in shown.groups for row in group.rows}


def listing(results: StudyResults, title: str) -> str:
    return methods_of(results).listings[title]


def with_provenance(results: StudyResults, **update: object) -> StudyResults:
    made: Provenance = results.study.provenance.model_copy(update=update)
    study = results.study.model_copy(update={"provenance": made})
    return results.model_copy(update={"study": study})


def test_formulas_are_those_of_numbers_that_the_study_has() -> None:
    whole = formulas(planted_study(seeds=(0, 1)))
    assert list(whole) == [
        *("Gain", "Retention loss", "Lead", "Interval", "Bounds that decide", "The rule")
    ]
    assert "V(seeds)" in whole["Interval"]
    assert "loss < ε" in whole["The rule"]
    alone = formulas(planted_study({4: 0.7}, retention_tasks=()))
    assert list(alone) == ["Gain", "Interval", "Bounds that decide", "The rule"]
    assert "V(seeds)" not in alone["Interval"]
    assert "ε" not in alone["The rule"]


def test_the_study_file_gives_the_study_again(tmp_path: Path) -> None:
    results = planted_study(seeds=(3, 1))
    file = tmp_path / "study.yaml"
    file.write_text(listing(results, "study.yaml"))
    assert load_config(file) == results.study.config


def test_commands_install_the_versions_of_the_study() -> None:
    text = listing(with_provenance(planted_study(), package_versions=VERSIONS), "The commands")
    assert text.replace("\\\n", "").split() == [
        *(
            "pip",
            "install",
            "'./rankwise-0.0.0-py3-none-any.whl[train]'",
            "lm-eval==0.4.13",
            "peft==0.18.0",
        ),
        *("torch==2.9.0", "rankwise", "run", "study.yaml"),
    ]


def test_citations_are_whole_entries() -> None:
    text = listing(with_provenance(planted_study(), package_versions=VERSIONS), "To cite (BibTeX)")
    entries = text.split("\n\n")
    assert [re.match(r"@\w+\{([\w-]+),\n", entry)[1] for entry in entries] == [  # type: ignore[index]
        *("rankwise", "rathore2025much", "hu2022lora", "eval-harness")
    ]
    for entry in entries:
        assert entry.count("{") == entry.count("}")
        assert entry.endswith("\n}")
        assert all(re.fullmatch(r"  \w+ = \{.+\},?", line) for line in entry.splitlines()[1:-1])
    assert "version = {0.4.13}" in entries[3]
