"""The table for a paper: numbers with their intervals, and nothing that LaTeX stumbles on."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rankwise.integrations.formats import export_study
from rankwise.integrations.tables import escaped, markdown, paper_tables
from rankwise.records.folder import StudyFolder
from rankwise.study.conclusion import conclude
from tests.planted.folders import write_study
from tests.planted.results import planted_study


def study(folder: Path, name: str = "my_study", **planted: Any) -> StudyFolder:
    results = planted_study(**planted)
    config = results.study.config.model_copy(update={"name": name})
    named = results.study.model_copy(update={"config": config})
    write_study(StudyFolder(folder), results.model_copy(update={"study": named}))
    return StudyFolder(folder)


def latex(folder: StudyFolder) -> str:
    (written,) = export_study(folder, "latex")
    assert written.file == folder.root / "export" / "latex" / "results.tex"
    return written.file.read_text(encoding="utf-8")


def test_a_row_has_its_numbers_with_their_intervals(tmp_path: Path) -> None:
    lines = latex(study(tmp_path)).splitlines()
    (row,) = [line for line in lines if line.startswith("LoRA rank 16")]
    # 240 of 300 right after 150: planted; Wilson's interval of 0.8 by hand: 75.1 to 84.1
    assert row.startswith("LoRA rank 16 recommended & 32 & 2e-4 & ")
    assert "& 80.0 (75.1 to 84.1) & +30.0 (" in row
    assert r"& $-$2.0 (" in next(line for line in lines if line.startswith("LoRA rank 64"))


def test_every_row_has_as_many_cells_as_there_are_columns(tmp_path: Path) -> None:
    text = latex(
        study(tmp_path, in_domain_accuracy={4: [0.7, 0.71], 16: [0.8, 0.79]}, seeds=(0, 1))
    )
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", text)
    body = text[text.index(r"\toprule") : text.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 1 + 4  # the headings, the base, two ranks of two seeds
    assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert "Seed" in rows[0]


def test_what_latex_reads_as_commands_is_escaped(tmp_path: Path) -> None:
    assert escaped(r"a_b & 5% of $x #1 {y} \z ~ ^") == (
        r"a\_b \& 5\% of \$x \#1 \{y\} \textbackslash{}z \textasciitilde{} \textasciicircum{}"
    )
    assert escaped("−1.5 × 10 — δ\u00a0=\u00a02\n\nnext") == (
        r"$-$1.5 $\times$ 10 --- $\delta$~=~2  next"
    )
    text = latex(study(tmp_path))
    assert r"\caption{The study my\_study, trained on kinship." in text
    assert r"\label{tab:my_study-kinship}" in text
    printed = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert printed.isascii()


def test_latex_compiles_it(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no LaTeX is installed")
    (tmp_path / "results.tex").write_text(latex(study(tmp_path / "study")))
    (tmp_path / "paper.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs,graphicx}"
        r"\begin{document}\input{results}\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "Overfull" not in done.stdout


def test_markdown_has_one_line_for_each_model(tmp_path: Path) -> None:
    (written,) = export_study(study(tmp_path, name="planted", diverged=[(64, 0)]), "markdown")
    text = written.file.read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + 5
    (chosen,) = [row for row in rows if "rank 16" in row]
    assert chosen.startswith("| LoRA rank 16 recommended | 32 | 2e-4 | 1.84 M 1.4 % | 80.0 (75.1 ")
    assert "diverged and was not scored" in text
    assert "Other intervals are 95\u00a0%" in text


def test_markdown_takes_names_for_text(tmp_path: Path) -> None:
    hostile = "<img src=x onerror=alert(1)> [a](http://x)"
    (shown,) = paper_tables(conclude(study(tmp_path, name="planted")))
    text = markdown(shown._replace(title=hostile, statement=hostile, notes=(hostile,)))
    assert text.count("&lt;img src=x onerror=alert(1)&gt; \\[a\\](http://x)") == 3
    assert "<img" not in text
