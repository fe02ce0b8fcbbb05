"""The numbers of a study for other programs and for a paper, and its charts as files."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rankwise.findings.model_card import markdown_table, markdown_text
from rankwise.findings.models import summarise
from rankwise.integrations.exports import Exported
from rankwise.integrations.sharing import shared_outcome
from rankwise.records.files import write_atomically
from rankwise.records.folder import StudyFolder
from rankwise.report.page import study_page, study_tables
from rankwise.report.parts import Table, file_name
from rankwise.report.rendering import figure_files
from rankwise.report.rows import Row, column_names
from rankwise.report.summaries import verdict_notes, verdict_table
from rankwise.study.conclusion import StudyOutcome


def export_tables(
    folder: StudyFolder, place: Path, *, suffix: str, encode: Callable[[list[Row]], str | bytes]
) -> list[Exported]:
    """Write every table as ``<name>.<suffix>``; a cell is empty where nothing was measured.

    Args:
        folder: a finished study's.
        place: the folder to write into.
        suffix: of the files.
        encode: the rows of a table as the content of its file.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    tables = study_tables(*shared_outcome(folder))
    exported = [Exported(name, place / f"{name}.{suffix}") for name in tables]
    for each, rows in zip(exported, tables.values(), strict=True):
        write_atomically(each.file, encode(rows))
    return exported


def export_figures(folder: StudyFolder, place: Path) -> list[Exported]:
    """Write every chart as ``<name>.svg`` and ``<name>.png``.

    Args:
        folder: a finished study's.
        place: the folder to write into.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: a file cannot be written.
    """
    outcome = shared_outcome(folder)
    losses = {run.name: folder.read_losses(run.name) for run in outcome.results.runs}
    exported: list[Exported] = []
    for name, contents in figure_files(study_page(*outcome, losses)).items():
        for suffix, content in contents.items():
            exported.append(Exported(name, place / f"{name}.{suffix}"))
            write_atomically(exported[-1].file, content)
    return exported


def parquet_bytes(rows: list[Row]) -> bytes:
    """Rows as a Parquet file; a cell is null where nothing was measured."""
    import pyarrow
    from pyarrow import parquet

    columns = {name: [row.get(name) for row in rows] for name in column_names(rows)}
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


_LEFT_OUT = ("Worst retention task", "Training time", "Peak memory")
# What LaTeX reads as a command, and what its fonts lack.
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\u2212": "$-$",
    "—": "---",
    "–": "--",
    "×": r"$\times$",
    "→": r"$\to$",
    "δ": r"$\delta$",
    "ε": r"$\varepsilon$",
    "\u00a0": "~",
    "\n": " ",  # an empty line would end the caption
}


class PaperTable(NamedTuple):
    """The base and every run of one trained task, and what is said of them.

    Attributes:
        title: the study and its trained task.
        statement: the verdict in words.
        table: each cell with its interval.
        notes: on intervals, and on runs without scores.
        label: for references.
    """

    title: str
    statement: str
    table: Table
    notes: tuple[str, ...]
    label: str


def export_paper(
    folder: StudyFolder, place: Path, *, file: str, write: Callable[[PaperTable], str]
) -> list[Exported]:
    """Write the main table of every trained task into one file.

    Args:
        folder: a finished study's.
        place: the folder to write into.
        file: its name.
        write: a table as text.

    Raises:
        RecordError: the study is not finished, or a record cannot be read.
        StorageError: the file cannot be written.
    """
    outcome = shared_outcome(folder)
    write_atomically(place / file, "\n".join(map(write, paper_tables(outcome))))
    return [Exported(outcome.results.study.config.name, place / file)]


def paper_tables(outcome: StudyOutcome) -> Iterator[PaperTable]:
    """The table of every trained task."""
    name = outcome.results.study.config.name
    left_out = _LEFT_OUT if len(outcome.results.study.config.seeds) > 1 else (*_LEFT_OUT, "Seed")
    for part in outcome.recommendation.by_train_task:
        results = outcome.results.of(part.train_task)
        summaries = summarise(results, part)
        yield PaperTable(
            title=f"The study {name}, trained on {part.train_task}.",
            statement=part.statement,
            table=verdict_table(results, part, summaries, left_out),
            notes=tuple(verdict_notes(part, summaries)),
            label=f"tab:{file_name(name)}-{file_name(part.train_task)}",
        )


def markdown(shown: PaperTable) -> str:
    """The table with one line for each model: 81.0 (76.2 to 85.0)."""
    lines = [
        f"**{markdown_text(shown.title)}** {markdown_text(shown.table.caption)}",
        "",
        *markdown_table(*_texts(shown.table)),
        "",
        markdown_text(shown.statement),
        "",
        markdown_text(" ".join(shown.notes)),
    ]
    return "\n".join(lines) + "\n"


def latex(shown: PaperTable) -> str:
    """The same table in LaTeX, as wide as the page."""
    headings, rows = _texts(shown.table)
    columns = "".join("l" if place in shown.table.texts else "r" for place in range(len(headings)))
    caption = " ".join([shown.title, shown.table.caption, *shown.notes])
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        f"% {' '.join(shown.statement.split())}",
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\label{{{shown.label}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        _cells(headings),
        r"\midrule",
        *map(_cells, rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text as LaTeX prints it."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def _texts(table: Table) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, each cell with its interval."""
    headings = [f"{title} ({detail})" if detail else title for title, detail in table.headings]
    return headings, [[str(cell) for cell in row] for group in table.groups for row in group.rows]


def _cells(texts: Sequence[str]) -> str:
    return f"{' & '.join(map(escaped, texts))} \\\\"
