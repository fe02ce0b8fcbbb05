"""Several studies side by side as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rankwise.findings.comparison import (
    STACK_SHIFT,
    ComparedAnswer,
    ComparedChoice,
    ComparedPair,
    ComparisonKind,
    StudyComparison,
    StudySource,
)
from rankwise.findings.differing import DifferingSetting
from rankwise.findings.options import TaskMean
from rankwise.records import quantities
from rankwise.records.axes import Kind
from rankwise.records.outputs import write_outputs
from rankwise.records.study import StudyRecord
from rankwise.report import cells
from rankwise.report.charts.intervals import Bar, BarPanel, cut_name, interval_chart, short_names
from rankwise.report.charts.marks import Look
from rankwise.report.facts import base_model_name, study_warnings
from rankwise.report.parts import (
    Cell,
    Column,
    Content,
    Figure,
    ReportSection,
    Table,
    TitledTable,
    titled,
)
from rankwise.report.rendering import Page, Part, rendered
from rankwise.report.sections.overview import change_mark, plane_of
from rankwise.report.summaries import OUTCOMES

_ANSWERS: dict[ComparisonKind, str] = {
    "stacks": "Not to be pooled",
    "paired": "Compared item by item",
    "apart": "Side by side only",
}
_LONGEST_VALUE = 24
"""Letters of a setting's value; a longer one is written small, over several lines."""


def write_comparison(
    path: Path,
    comparison: StudyComparison,
    studies: Sequence[StudySource],
    *,
    overwrite: bool = False,
) -> None:
    """Write the page; it holds everything that it shows.

    Raises:
        ConfigError: the file is there and not by rankwise, and ``overwrite`` is not given.
        StorageError: it cannot be written there.
    """
    page = comparison_page(comparison, studies)
    write_outputs(path.parent, {path.name: page}, overwrite=overwrite)


def comparison_page(comparison: StudyComparison, studies: Sequence[StudySource]) -> str:
    """The page as text.

    Args:
        comparison: made from the studies.
        studies: in the same order.
    """
    names = [study.name for study in studies]
    kind, points = comparison.kind, comparison.points
    return rendered(
        Page(
            "rankwise compare",
            quantities.listed(names),
            f"What {len(names)} studies found, side by side.",
            [Part("", kind, _ANSWERS[kind], comparison.statement, points)],
            list(_sections(comparison, studies)),
        )
    )


def _sections(
    comparison: StudyComparison, studies: Sequence[StudySource]
) -> Iterator[ReportSection]:
    shown = side_by_side(comparison, studies)
    yield ReportSection("side-by-side", "Side by side", tables=[TitledTable("", shown)])
    yield _setting_section(comparison)
    yield _pair_section(comparison)
    yield _figure_section(comparison)
    yield _stack_section(comparison)
    warnings = [
        f"{study.name}: {warning}" for study in studies for warning in study_warnings(study.results)
    ]
    if warnings:
        yield ReportSection("warnings", "Warnings", points=warnings)
    said = (
        "This page is made from the records in the studies' folders, which it does not change. "
        "Each study's own report has what stands behind its choice."
    )
    made = Table.of(
        "The studies that are compared.",
        comparison.studies,
        Column("Study", lambda study: study.name),
        Column.text("Study fingerprint", lambda study: study.fingerprint[:16]),
        Column.text("Base model fingerprint", lambda study: study.base_model_fingerprint[:16]),
        Column("Newest score", lambda study: study.made_at),
    )
    yield ReportSection("provenance", "Provenance", [said], tables=[TitledTable("", made)])


def side_by_side(comparison: StudyComparison, studies: Sequence[StudySource]) -> Table:
    """A column for each answer, a row for each thing to know of it."""
    records = {study.name: study.results.study for study in studies}

    def weights(choice: ComparedChoice) -> Cell:
        share = f"{quantities.share(choice.trainable_share)} of full"
        return Cell(quantities.parameters(choice.num_parameters), "", share)

    rows: list[Column[ComparedAnswer]] = [
        Column("Base model", lambda answer: base_model_name(records[answer.study].config)),
        Column("Trained on", lambda answer: _trained_on(answer, records[answer.study])),
        Column("Methods", lambda answer: _methods(answer, records[answer.study])),
        Column("Verdict", lambda answer: OUTCOMES[answer.outcome]),
        Column("Choice", _choice),
        Column("Alpha", _of(quantities.alpha)),
        Column(
            "Learning rate",
            _of(lambda choice: cells.known(choice.learning_rate, quantities.learning_rate)),
        ),
        Column("Target modules", _of(lambda choice: quantities.modules(choice.target_modules))),
        Column("Epochs", _of(lambda choice: choice.epochs)),
        Column("Seeds", _of(lambda choice: ", ".join(map(str, choice.seeds)) or None)),
        Column("Gain in-domain", lambda answer: _change(answer.gain), "from its own base"),
        Column("Retention change", lambda answer: _change(answer.retention), "from its own base"),
        Column("Trained weights", _of(weights)),
        Column(
            "Training time",
            _of(lambda choice: cells.known(choice.train_seconds, quantities.seconds)),
            "of the choice, all seeds",
        ),
        Column("Made", lambda answer: comparison.of(answer).made_at[:10]),
        Column("Software stack", lambda answer: comparison.of(answer).stack_words),
    ]
    answers: list[Column[Column[ComparedAnswer]]] = [
        Column(answer.name, lambda row, answer=answer: row.cell(answer))
        for answer in comparison.answers
    ]
    return Table.of(
        f"Changes from each study's own base, with {_intervals(comparison.answers)}, each for one "
        "number by itself. Where a study is not settled, its best bet is shown.",
        rows,
        Column("Study", lambda row: Cell(row.title, "", row.detail)),
        *answers,
    )


def _of(choice_cell: Callable[[ComparedChoice], Content]) -> Callable[[ComparedAnswer], Content]:
    """A property of the choice; nothing for an answer without one."""
    return lambda answer: None if answer.choice is None else choice_cell(answer.choice)


def _trained_on(answer: ComparedAnswer, study: StudyRecord) -> Cell | None:
    runs = [run for run in study.runs if run.train_task == answer.train_task]
    rows = max((run.num_examples for run in runs if run.role != "imported"), default=0)
    return _value(answer.train_task, f"{quantities.count(rows)} rows" if rows else "")


def _methods(answer: ComparedAnswer, study: StudyRecord) -> Cell:
    """LoRA at ranks 8, 16; full fine-tuning; 2 imported."""
    runs = [run for run in study.runs if run.train_task == answer.train_task]
    trained = [run for run in runs if run.role != "imported"]
    ranks = sorted({run.rank for run in trained if run.rank is not None})
    parts = [f"LoRA, {'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks))}"]
    parts = parts if ranks else []
    parts += ["full fine-tuning"] * any(run.method == "full" for run in trained)
    parts += [f"{len(runs) - len(trained)} imported"] * (len(runs) > len(trained))
    planned = study.of_role("variant")
    variants = {run.variant for run in planned if run.train_task == answer.train_task}
    parts += [quantities.counted(len(variants), "variant")] * bool(variants)
    return Cell("", "", "; ".join(parts))


def _choice(answer: ComparedAnswer) -> Cell:
    if not answer.has_bet:
        return Cell(quantities.NOT_MEASURED, "", "nothing could be judged")
    how = "recommended" if answer.outcome == "recommended" else "best bet"
    if answer.probability is not None:
        how += f", {quantities.odds(answer.probability)} likely to be right"
    label = "do not fine-tune" if answer.choice is None else answer.choice.label
    return Cell(label, "", how)


def _change(value: TaskMean | None, note: str = "") -> Cell | None:
    """With its unit and n below it: a table of several studies may have several units."""
    return value and cells.mean(value, note=f"{value.unit}, {quantities.sample_size(value)}{note}")


def _intervals(of: Sequence[ComparedAnswer | ComparedPair]) -> str:
    """The intervals of studies of one confidence, or of several."""
    confidences = sorted({each.confidence for each in of})
    if len(confidences) == 1:
        return cells.intervals(confidences[0])
    least, most = map(quantities.percent, (confidences[0], confidences[-1]))
    return f"intervals at each study's own confidence ({least} to {most})"


def _pair_section(comparison: StudyComparison) -> ReportSection:
    pairs = comparison.compared
    if not pairs:
        return ReportSection("pairs", "Item by item", comparison.remarks)
    shown = Table.of(
        "The choice of the second study less that of the first, each less its own base, paired "
        f"over the same items, with {_intervals(pairs)}. Positive: the second is better. "
        "Each interval is for one number by itself, and each choice was made on these items: no "
        "verdict rests on it.",
        pairs,
        Column("Studies", lambda pair: Cell(pair.second, "", f"less {pair.first}")),
        Column.optional(
            "Gain in-domain", lambda pair: _change(pair.gain, f"; {', '.join(pair.gain_tasks)}")
        ),
        Column.optional(
            "Retention change",
            lambda pair: _change(pair.retention, f"; {', '.join(pair.retention_tasks)}"),
        ),
        Column(
            "Items the base scored otherwise",
            lambda pair: (
                f"{quantities.count(pair.num_base_moved)} of "
                f"{quantities.count(pair.num_base_items)}"
            ),
            "should be 0",
        ),
    )
    table = TitledTable("", shown)
    return ReportSection("pairs", "Item by item", comparison.remarks, tables=[table])


def _figure_section(comparison: StudyComparison) -> ReportSection:
    figures = [*_planes(comparison), *_rows(comparison)]
    remarks: tuple[str, ...] = ()
    if comparison.kind == "stacks" and figures:
        remarks = (
            "Studies of different software stacks stand in different charts, each with axes of "
            "its own: do not compare across them.",
        )
    elif not figures:
        remarks = ("No study chooses a setting, so there is nothing to draw.",)
    return ReportSection("gain-and-retention", "Gain and retention", remarks, figures)


def _planes(comparison: StudyComparison) -> Iterator[Figure]:
    """A plane for each group of studies that may stand on one."""
    for place, names in enumerate(comparison.panels, 1):
        answers = [answer for answer in comparison.answers if answer.name in names]
        looks = Look.of_each({answer.name: _kind(answer) for answer in answers})
        short = short_names(names)
        marks = [
            change_mark(
                short[answer.name], looks[answer.name], answer.name, answer.gain, answer.retention
            )
            for answer in answers
            if answer.gain is not None and answer.retention is not None
        ]
        gain = next(answer.gain for answer in answers if answer.gain is not None)
        stack = comparison.of(answers[0]).stack_words
        yield Figure(
            f"plane-{place}",
            f"Gain against change on retention tasks, {stack}",
            "One mark for the choice of each study; the base is at the origin. Up is better "
            "in-domain, right is less forgetting. All of these were scored on one software stack, "
            "from one base model, on the same items.",
            plane_of(marks, gain.unit, None),
            f"bars are {_intervals(answers)}",
        )


def _rows(comparison: StudyComparison) -> Iterator[Figure]:
    """A figure for each stack: every choice by itself."""
    for place, stack in enumerate(dict.fromkeys(s.stack_words for s in comparison.studies), 1):
        answers = [a for a in comparison.answers if comparison.of(a).stack_words == stack]
        panels = [panel for panel in _panels(answers) if panel.bars]
        if panels:
            yield Figure(
                f"rows-{place}",
                f"Every choice by itself, {stack}",
                "Right of zero is better than the study's own base. Choices of different base "
                "models, tasks or items stand beside each other here; that one is further right "
                "does not show that it is better.",
                interval_chart(panels),
                f"bars are {_intervals(answers)}",
            )


def _panels(answers: Sequence[ComparedAnswer]) -> Iterator[BarPanel]:
    short = short_names([answer.name for answer in answers])

    labels = ["" if each.choice is None else cut_name(each.choice.label) for each in answers]
    for title, means in (
        ("Gain in-domain", [answer.gain for answer in answers]),
        ("Retention change", [answer.retention for answer in answers]),
    ):
        for unit in ("points", "nats", "units"):
            bars = [
                Bar(f"{short[answer.name]}\n{label}", "", _kind(answer), mean)
                for answer, label, mean in zip(answers, labels, means, strict=True)
                if mean is not None and mean.unit == unit
            ]
            yield BarPanel(title, cells.unit_name(unit), unit, bars)


def _kind(answer: ComparedAnswer) -> Kind:
    rank = None if answer.choice is None else answer.choice.rank
    return "base" if rank is None else rank


def _setting_section(comparison: StudyComparison) -> ReportSection:
    said = [] if comparison.differing else ["No setting that scores or choices depend on."]
    values: list[Column[DifferingSetting]] = [
        Column(study.name, lambda row, place=place: _value(row.values[place]), is_text=True)
        for place, study in enumerate(comparison.studies)
    ]
    shown = Table.of(
        "The settings that scores or choices depend on and that are not the same in all studies, "
        "as in their study files; items and weights by the beginning of their fingerprint.",
        comparison.differing,
        Column("Setting", lambda row: row.name),
        *values,
    )
    return ReportSection("differs", "What differs", said, tables=titled({"": shown}))


def _value(text: str | None, note: str = "") -> Cell | None:
    """A text; a long one in small print, where it may be broken into lines."""
    if text is None:
        return None
    if len(text) <= _LONGEST_VALUE:
        return Cell(text, "", note)
    return Cell("", "", f"{text}; {note}" if note else text)


def _stack_section(comparison: StudyComparison) -> ReportSection:
    stacks = comparison.stacks
    remarks = [f"{STACK_SHIFT}."] if comparison.kind == "stacks" else []
    if len(stacks) == 1:
        facts = {_part_name(name): value for name, value in stacks[0].parts.items()}
        return ReportSection("stacks", "Software stack", remarks, tables=[TitledTable("", facts)])
    names = dict.fromkeys(name for stack in stacks for name in stack.parts)
    values: list[Column[str]] = [
        Column(stack.name, lambda name, stack=stack: _value(stack.parts.get(name)), is_text=True)
        for stack in stacks
    ]
    same = [name for name in names if len({stack.parts.get(name) for stack in stacks}) == 1]
    made = [f"{study.name} on {study.stack_words}" for study in comparison.studies]
    shown = Table.grouped(
        f"Made: {quantities.listed(made)}.",
        [("Different", "", [name for name in names if name not in same]), ("The same", "", same)],
        Column("Part", _part_name),
        *values,
    )
    return ReportSection("stacks", "Software stacks", remarks, tables=[TitledTable("", shown)])


def _part_name(name: str) -> str:
    """Device rather than device; packages as they are written."""
    return name.capitalize() if name in ("device", "precision", "products") else name
