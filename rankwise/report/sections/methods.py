"""How the numbers were made: formulas, data, versions, the study file, and what to cite."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from string import Template

from rankwise.records import quantities
from rankwise.records.results import StudyResults
from rankwise.records.study_file import study_file_text
from rankwise.report.facts import provenance_facts
from rankwise.report.parts import Column, ReportSection, Table, TitledTable


def methods_section(results: StudyResults, page_files: str) -> ReportSection:
    """Everything that is needed to check the page's numbers and to make them again.

    Args:
        results: of the study.
        page_files: the folder of the page's tables.
    """
    remarks = [
        "Gains and losses are differences between models on the same items. Formulas, "
        "assumptions and references in full are in rankwise's docs/METHODS.md."
    ]
    listings: dict[str, str] = {}
    if results.study.scores is None:  # models that were trained elsewhere cannot be made again
        remarks.append(
            "To make the study again, write the study file below to study.yaml and run the "
            "commands. What it names with ./ belongs beside it. The same study fingerprint means "
            'the same settings, data and base model. rankwise is not on PyPI yet: "make dist" in '
            "a clone of that version makes the wheel."
        )
        made = results.study.provenance
        pinned = [f"'./rankwise-{made.rankwise_version}-py3-none-any.whl[train]'"]
        pinned += [
            f"{name}=={version.partition('+')[0]}"  # builds such as +cpu are not on PyPI
            for name, version in sorted(made.package_versions.items())
        ]
        install = " \\\n    ".join(["pip install", *pinned])
        listings = {
            "The commands": f"{install}\nrankwise run study.yaml",
            "study.yaml": study_file_text(results.study.config),
        }
    listings["To cite (BibTeX)"] = _citations(results)
    remarks.append(
        "The resolved settings are in study.json next to this page. Every number of the "
        f"tables without rounding (CSV) is in {page_files}/. For the figures as SVG and PNG: "
        "`rankwise export DIR --format figures`."
    )
    formulas = Table.of(
        "D(i, j) is the adapted model's value less the base's, with seed i on item j, turned so "
        "that positive is better; n items, m seeds.",
        list(_formulas(results)),
        Column("0", "Number"),
        Column("1", "Formula"),
        Column("2", "In words"),
    )
    tables = [
        TitledTable("What the numbers are", formulas),
        TitledTable("Provenance", provenance_facts(results)),
    ]
    return ReportSection("methods", "Methods", remarks, tables=tables, listings=listings)


def _formulas(results: StudyResults) -> Iterator[tuple[str, str, str]]:
    """Name, formula and meaning of the numbers that this study has."""
    config, study = results.study.config, results.study
    evaluations = results.base.evaluations.values()
    if any(evaluation.decision_metric == "p_right" for evaluation in evaluations):
        yield (
            "p(right)",
            "Σ right exp ℓ / Σ options exp ℓ",
            "the probability of the right option, given that one of the options is said; "
            "ℓ is an option's log-likelihood",
        )
    yield (
        "Gain",
        "D̄ = mean of D(i, j)",
        "over the in-domain items; over several tasks, the mean of the tasks' means",
    )
    kept = ""
    if config.evaluation.has("retention"):
        kept = ", loss < ε, every task's loss < its ceiling"
        meaning = "the mean of the tasks' means, in points"
        yield "Retention loss", "−D̄ on the retention tasks", meaning
    if len(study.runs) > 1:
        yield ("Lead", "D̄(r) − D̄(s)", "of one option over another, paired by item and seed")
    with_seeds = " + V(seeds)" if len(config.seeds) > 1 else ""
    yield (
        "Interval",
        f"D̄ ± q √(V(items){with_seeds})",
        "V(items) = (var of the items' means + 2u²/n) / n, with u what one item counts; "
        + ("V(seeds) = var of the seeds' means / m, with a prior; " if with_seeds else "")
        + "q by Student's t, widened for skewness",
    )
    confidence = config.recommendation.confidence
    yield (
        "Bounds that decide",
        "one-sided, at level 1 − α / (K + 1)",
        f"for K options; α = {quantities.number(round(1 - confidence, 6))}, shared between the "
        "looks at the study",
    )
    yield (
        "The rule",
        f"gain > 0{kept}, lead > −δ over every option that keeps enough",
        "the smallest rank of which all of it is shown by these bounds is recommended",
    )


def _citations(results: StudyResults) -> str:
    """The citations of the study's software and methods, from ``templates/citations.bib``."""
    made = results.study.provenance
    file = resources.files("rankwise.report").joinpath("templates/citations.bib")
    text = Template(file.read_text(encoding="utf-8")).substitute(
        rankwise_version=made.rankwise_version,
        year=made.created_at[:4],
        lm_eval_version=made.package_versions.get("lm-eval", ""),
    )
    entries = text.replace("  version = {},\n", "").strip().split("\n\n")
    has_lora = results.study.config.methods.lora is not None
    return "\n\n".join(each for each in entries if has_lora or "hu2022lora" not in each)
