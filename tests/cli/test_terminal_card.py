"""The card that a study ends in: short, right, and its command works."""

from __future__ import annotations

import html
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest

from rankwise.records.folder import StudyFolder
from tests.planted.folders import write_study
from tests.planted.results import planted_study
from tests.support.command_line import rankwise
from tests.support.documented import command_problems

STUDIES: dict[str, dict[str, Any]] = {
    "settled": {},
    "few items": {"num_in_domain": 60},
    "nothing gained": {"in_domain_accuracy": dict.fromkeys((4, 16, 64), 0.52), "num_in_domain": 60},
    "loses elsewhere": {"out_of_domain_accuracy": {4: 0.3, 16: 0.3, 64: 0.25, "full": 0.2}},
    "worse": {"in_domain_accuracy": dict.fromkeys((4, 16, 64), 0.30)},
    "many ranks": {
        "in_domain_accuracy": {2**n: 0.5 + 0.02 * n for n in range(12)},
        "retention_accuracy": {2**n: 0.9 for n in range(12)},
    },
}


def card_of(root: Path, options: dict[str, Any]) -> list[str]:
    write_study(StudyFolder(root), planted_study(**options))
    done = rankwise("report", root)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_ends_in_a_card_of_twelve_lines(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    *card, _ = card_of(Path("study"), STUDIES[name])
    folded = [part for line in card for part in textwrap.wrap(line.rstrip(), 80)]
    assert len(folded) <= 12
    assert max(len(line.rstrip()) for line in card if "±" in line) <= 80
    assert len(card[0].split()) <= 40
    (command,) = (line.removeprefix("Next: ") for line in card if line.startswith("Next: "))
    page = Path("study/report.html").read_text(encoding="utf-8")
    advised = [html.unescape(text) for text in re.findall(r"<code>(.*?)</code>", page)]
    assert advised[0] == command
    for each in advised:
        program, *arguments = shlex.split(each)
        assert program == "rankwise"
        # what the others need is tested where studies are extended and adapters repaired
        if arguments[0] not in ("extend", "repair"):
            assert rankwise(*arguments).exit_code == 0
        if arguments[0] == "repair":
            folder = StudyFolder(Path("study"))
            adapters = [*map(folder.weights_folder, folder.read_study().runs)]
            assert Path(arguments[2]) in adapters
        assert command_problems(each) == []


def test_the_card_has_what_was_planted(tmp_path: Path) -> None:
    lines = card_of(tmp_path, {})
    assert lines[0].startswith("Use rank 16. ")
    (chosen,) = (line for line in lines if line.endswith("<- use this"))
    assert re.match(r"rank 16 +80\.0 +\+30\.0 ±\d\.\d +0\.0 ±\d\.\d +1\.84 M +30 s ", chosen)
    (base,) = (line for line in lines if line.startswith("base "))
    assert base.split()[:2] == ["base", "50.0"]
    (full,) = (line for line in lines if line.startswith("full fine-tuning "))
    assert re.match(r"full fine-tuning +81\.0 +\+31\.0 ±\d\.\d +−10\.0 ±\d\.\d ", full)
    said = "".join("".join(lines).split())  # a long path folds
    assert "".join(f"Next: rankwise export {tmp_path} --format peft".split()) in said


def test_the_command_that_settles_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = planted_study(num_in_domain=200)
    write_study(StudyFolder(Path("study")), study)
    page = rankwise("report", "study").stdout
    (said,) = re.findall(r"extend .* --seeds (\d+) \(about ([\d.]+) min\)", page)
    # the study has one seed: a new one takes what it took
    trained = sum(run.run.train_seconds for run in study.runs if run.run)
    evaluations = [each for m in (study.base, *study.runs) for each in m.evaluations.values()]
    scored = sum(each.score_seconds for each in evaluations)
    assert float(said[1]) == pytest.approx(int(said[0]) * (trained + scored) / 60, abs=0.1)
    html_page = Path("study/report.html").read_text(encoding="utf-8")
    assert f"(about {said[1]} min)" in html_page


def test_of_many_options_the_best_are_shown(tmp_path: Path) -> None:
    lines = card_of(tmp_path, STUDIES["many ranks"])
    ranks = [int(found[1]) for line in lines if (found := re.match(r"rank (\d+) ", line))]
    assert 2048 in ranks
    assert 1 not in ranks
    assert any(line.startswith("and ") and " more" in line for line in lines)


def test_a_status_has_fifteen_lines(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    write_study(folder, planted_study(**STUDIES["many ranks"]))
    first = folder.read_study().runs[0]
    folder.evaluation_file(first.name, "capitals").unlink()
    lines = rankwise("status", tmp_path).stdout.rstrip().splitlines()
    assert len(lines) <= 15
    (row,) = (line for line in lines if line.startswith("rank 1 "))
    assert "4 of 5 tasks" in row
    assert "capitals" in row.split("tasks")[1]
    # the base, which is done, and the two last of twelve ranks, whose weights were not analysed
    assert any(re.match(r"and 3 more .* something in 2$", line.rstrip()) for line in lines)
    assert lines[-1] == f"Next: rankwise run {tmp_path}"
