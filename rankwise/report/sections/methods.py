"""How the numbers were made: formulas, data, versions, the study file, and what to cite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.study_file import study_file_text
from rankwise.report.facts import provenance_facts
from rankwise.report.parts import Column, Listing, ReportSection, Table, TitledTable, table


class Formula(NamedTuple):
    """What a number of the page is, in words and as a formula."""

    name: str
    formula: str
    meaning: str


def methods_section(results: StudyResults, page_files: str) -> ReportSection:
    """Everything that is needed to check the page's numbers and to make them again.

    Args:
        results: of the study.
        page_files: the folder of the page's figures and tables.
    """
    return ReportSection(
        "methods",
        "Methods",
        [
            "Gains and losses are differences between models on the same items. Formulas, "
            "assumptions and references in full are in rankwise's docs/METHODS.md.",
            "To make the study again, write the study file below to study.yaml and run the "
            "commands. What it names with ./ belongs beside it. The same study fingerprint means "
            "the same settings, data and base model.",
            "The resolved settings are in study.json next to this page. Figures (SVG, PNG) and "
            f"every number of the tables without rounding (CSV) are in {page_files}/.",
        ],
        tables=[
            TitledTable("What the numbers are", _formula_table(results)),
            TitledTable("Provenance", provenance_facts(results)),
        ],
        listings=[
            Listing("The commands", _commands(results)),
            Listing("study.yaml", study_file_text(results.study.config)),
            Listing("To cite (BibTeX)", "\n\n".join(_citations(results))),
        ],
    )


def _formula_table(results: StudyResults) -> Table:
    columns: list[Column[Formula]] = [
        Column("Number", lambda row: row.name),
        Column("Formula", lambda row: row.formula, is_text=True),
        Column("In words", lambda row: row.meaning, is_text=True),
    ]
    caption = (
        "D(i, j) is the adapted model's value less the base's, with seed i on item j, turned so "
        "that positive is better; n items, m seeds."
    )
    return table(caption, columns, list(_formulas(results)))


def _formulas(results: StudyResults) -> Iterator[Formula]:
    """Those of the numbers that this study has."""
    config, study = results.study.config, results.study
    evaluations = results.base.evaluations.values()
    if any(evaluation.decision_metric == "p_right" for evaluation in evaluations):
        yield Formula(
            "p(right)",
            "Σ right exp ℓ / Σ options exp ℓ",
            "the probability of the right option, given that one of the options is said; "
            "ℓ is an option's log-likelihood",
        )
    yield Formula(
        "Gain",
        "D̄ = mean of D(i, j)",
        "over the in-domain items; over several tasks, the mean of the tasks' means",
    )
    if config.evaluation.retention:
        yield Formula(
            "Retention loss", "−D̄ on the retention tasks", "the mean of the tasks' means, in points"
        )
    if len(study.runs) > 1:
        yield Formula("Lead", "D̄(r) − D̄(s)", "of one option over another, paired by item and seed")
    with_seeds = " + V(seeds)" if len(config.seeds) > 1 else ""
    yield Formula(
        "Interval",
        f"D̄ ± q √(V(items){with_seeds})",
        "V(items) = (var of the items' means + 2u²/n) / n, with u what one item counts; "
        + ("V(seeds) = var of the seeds' means / m, with a prior; " if with_seeds else "")
        + "q by Student's t, widened for skewness",
    )
    confidence = config.recommendation.confidence
    yield Formula(
        "Bounds that decide",
        "one-sided, at level 1 − α / (K + 1)",
        f"for K options; α = {quantities.number(round(1 - confidence, 6))}, shared between the "
        "looks at the study",
    )
    kept = ", loss < ε, every task's loss < its ceiling" if config.evaluation.retention else ""
    yield Formula(
        "The rule",
        f"gain > 0{kept}, lead > −δ over every option that keeps enough",
        "the smallest rank of which all of it is shown by these bounds is recommended",
    )


def _commands(results: StudyResults) -> str:
    """What installs the same versions and runs the study."""
    made = results.study.provenance
    pinned = [f"rankwise=={made.rankwise_version}"]
    pinned += [
        f"{name}=={version.partition('+')[0]}"  # builds such as +cpu are not on PyPI
        for name, version in sorted(made.package_versions.items())
    ]
    install = " \\\n    ".join(["pip install", *pinned])
    return f"{install}\nrankwise run study.yaml"


def _citations(results: StudyResults) -> Iterator[str]:
    """Of the software and of the methods that the study used."""
    made = results.study.provenance
    config = results.study.config
    yield _entry(
        "software",
        "rankwise",
        title="rankwise: how much {LoRA} rank is enough",
        author="{The rankwise authors}",
        version=made.rankwise_version,
        year=made.created_at[:4],
    )
    yield _entry(
        "misc",
        "rathore2025much",
        title="How Much is Too Much? Exploring {LoRA} Rank Trade-offs for Retaining Knowledge and "
        "Domain Robustness",
        author="Rathore, Darshita and Kumar, Vineet and Bansal, Chetna and Moitra, Anindya",
        year="2025",
        eprint="2512.15634",
        archiveprefix="arXiv",
    )
    if config.methods.lora is not None:
        yield _entry(
            "inproceedings",
            "hu2022lora",
            title="{LoRA}: Low-Rank Adaptation of Large Language Models",
            author="Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and "
            "Li, Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu",
            booktitle="International Conference on Learning Representations",
            year="2022",
        )
    yield _entry(
        "software",
        "eval-harness",
        title="The Language Model Evaluation Harness",
        author="Gao, Leo and Tow, Jonathan and Abbasi, Baber and others",
        version=made.package_versions.get("lm-eval"),
        year="2024",
        doi="10.5281/zenodo.12608602",
    )


def _entry(kind: str, key: str, **fields: Any) -> str:
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items() if value]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"
