"""The report: complete, self-contained, escaped, and equal to the records."""

from __future__ import annotations

import base64
import csv
import hashlib
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rankwise.findings.models import seeded_labels, summarise
from rankwise.findings.options import option_gains
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.statements import reasons_beside_verdicts, with_folder
from rankwise.findings.study import study_findings
from rankwise.records import quantities
from rankwise.records.recommendation import Recommendation
from rankwise.records.results import ModelResults, StudyResults, TrainTaskResults
from rankwise.records.study import MetricScore
from rankwise.report.cells import Cell
from rankwise.report.facts import study_warnings
from rankwise.report.page import study_page, write_report
from rankwise.report.parts import Table
from rankwise.report.rendering import figure_files
from rankwise.report.sections.overview import study_figures
from rankwise.report.summaries import verdict_table
from rankwise.report.tables import prospect_table, relation_table
from tests.planted.results import planted_runs, planted_study, with_rslora
from tests.support.pages import Page, without_scripts
from tests.support.sentences import Sentences

FIGURES = (
    "gain-and-retention",
    "score-by-rank",
    "difference-by-task",
    "forgetting-on-prose",
    "transfer",
    "retention-by-subject",
)
HOSTILE = "<script>alert('x')</script>\"&"


def made(folder: Path, **planted: Any) -> tuple[TrainTaskResults, Recommendation, str]:
    """Write the report of a planted study and read the page."""
    results = planted_study(**planted)
    recommendation = recommend(results)
    path = write_report(folder, results, recommendation, study_findings(results, recommendation))
    (part,) = recommendation.by_train_task
    return results.of("kinship"), part, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, StudyResults, Recommendation, str]:
    folder = tmp_path_factory.mktemp("study")
    return (folder, *made(folder))


def test_page_has_the_statement_every_run_and_every_interval(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    folder, results, recommendation, html = report
    text = Page(html).text
    assert re.sub(r"\s+", " ", with_folder(recommendation.statement, folder)) in text
    assert all(reason in text for reason in reasons_beside_verdicts(recommendation))
    for rank in (4, 16, 64):
        assert f"LoRA rank {rank}" in text
    assert "full fine-tuning" in text
    for row in recommendation.comparisons:
        sign = -1 if row.relation == "held_out_text" else 1
        shown = row.difference
        low, high = sorted((sign * shown.lower, sign * shown.upper))
        assert quantities.change_interval(low, high, row.unit) in text
    for verdict in recommendation.verdicts:
        bound = verdict.gain
        assert quantities.change_interval(bound.lower, bound.upper, "points") in text
    for name in (results.study.fingerprint, "rankwise run study.yaml", "any single task"):
        assert name in text


def test_page_fetches_nothing_and_its_ids_are_its_own(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    html = report[3]
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "image", "img", "use")
        for name, value in attributes.items():
            if name in ("src", "srcset", "action", "data", "href", "xlink:href"):
                assert (value or "").startswith("#"), (tag, name, value)
            assert not name.startswith("on"), (tag, name)
    types = Counter(attributes.get("type") for tag, attributes in page.tags if tag == "script")
    assert types == {"application/json": len(page.charts) + 1, None: 2}
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [
        base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in scripts
    ]
    named = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src {named}\"" in html
    html = without_scripts(html)
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert re.findall(r"https?://[^\s\"'<]+", html) == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for target in (attributes.get("aria-labelledby") or "").split():
            assert target in ids


def test_page_is_well_ordered_for_those_who_hear_it(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    page = Page(report[3])
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    tags = [tag for tag, _ in page.tags]
    assert tags.count("caption") == tags.count("table") > 5
    images = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(images) == tags.count("figcaption") == len(page.charts) >= len(FIGURES)
    assert all(attributes["aria-label"] for attributes in images)
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_figures_are_drawn_as_files_when_asked_for() -> None:
    results = planted_study()
    recommendation = recommend(results)
    findings = study_findings(results, recommendation)
    drawn = figure_files(study_page(results, recommendation, findings, {}))
    assert {*FIGURES} <= drawn.keys()
    for name, files in drawn.items():
        assert files["png"][:4] == b"\x89PNG"
        assert len(files["png"]) > 20_000
        svg = files["svg"]
        assert isinstance(svg, str)
        assert "light-dark" not in svg
        texts = [element.text or "" for element in ElementTree.fromstring(svg).iter()]
        assert any("n\u00a0=\u00a0" in text for text in texts), name


def test_the_folder_beside_the_page_has_tables_alone(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    files = list((report[0] / "report").iterdir())
    assert len(files) > 5
    assert {path.suffix for path in files} == {".csv"}


def test_csv_numbers_equal_the_records(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    folder, results, recommendation, _ = report
    listed = read_csv(folder / "report" / "differences.csv")
    assert len(listed) == len(recommendation.comparisons)
    rows = {(row["run"], row["task"]): row for row in listed}
    for record in recommendation.comparisons:
        row = rows[record.run, record.task]
        for name in ("base_score", "adapted_score", "stderr"):
            assert float(row[name]) == getattr(record, name)
        for end in ("", "_lower", "_upper"):
            bound = getattr(record.difference, end.removeprefix("_") or "estimate")
            assert float(row[f"difference{end}"]) == bound
    runs = {row["run"]: row for row in read_csv(folder / "report" / "runs.csv")}
    assert set(runs) == {"base", *(model.name for model in results.runs)}
    for record in recommendation.comparisons:
        if record.relation == "in_domain":
            assert float(runs[record.run]["gain"]) == record.difference.estimate
    scores = read_csv(folder / "report" / "scores.csv")
    values = {(row["model"], row["task"], row["metric"]): float(row["value"]) for row in scores}
    for model in (results.base, *results.runs):
        for task, evaluation in model.evaluations.items():
            decision = evaluation.decision
            assert values[model.name, task, decision.metric] == decision.value
    ranks = read_csv(folder / "report" / "ranks.csv")
    assert [float(row["gain_lower"]) for row in ranks] == [
        verdict.gain.lower for verdict in recommendation.verdicts
    ]


def comparison(results: TrainTaskResults, recommendation: Recommendation) -> Table:
    return verdict_table(results, recommendation, summarise(results, recommendation))


def models_in(table: Table) -> list[str]:
    """The first cell of every row."""
    return [row[0].value for row in table.groups[0].rows]


def cell_of(table: Table, row: int, title: str) -> Cell:
    """What stands in a row under a heading."""
    return table.groups[0].rows[row][[each.title for each in table.headings].index(title)]


def test_table_says_what_the_page_says(
    report: tuple[Path, StudyResults, Recommendation, str],
) -> None:
    _, results, recommendation, html = report
    text = Page(html).text
    table = comparison(results, recommendation)
    assert models_in(table) == [
        "base", "LoRA rank 4", "LoRA rank 16", "LoRA rank 64", "full fine-tuning",
    ]  # fmt: skip
    rows = table.groups[0].rows
    assert [row[0].is_marked for row in rows] == [False, False, True, False, False]
    assert cell_of(table, 2, "In-domain score") == Cell("80.0", "75.1 to 84.1")
    assert str(cell_of(table, 2, "Gain")).startswith("+30.0 (+")
    assert cell_of(table, 2, "Trainable parameters") == Cell("1.84 M", "", "1.4 %")
    assert cell_of(table, 0, "Forgetting").value == "loss 2.500"
    assert cell_of(table, 4, "Forgetting").value == "+0.250"
    for row in rows:
        for heading, cell in zip(table.headings, row, strict=True):
            if heading.title != "Seed":
                assert all(part.replace("\u00a0", " ") in text for part in cell[:3] if part)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    results, _, html = made(tmp_path, in_domain_tasks=(HOSTILE,), retention_tasks=("<b>", "]]>"))
    page = Page(html)
    scripts = [attributes.get("type") for tag, attributes in page.tags if tag == "script"]
    assert scripts.count(None) == 2  # our own
    assert HOSTILE in page.text
    assert HOSTILE not in html
    assert HOSTILE in {
        row["group"].split("\n")[0]
        for row in page.charts["difference-by-task"]["datasets"]["rows 2"]
    }
    rows = read_csv(tmp_path / "report" / "differences.csv")
    assert HOSTILE in {row["task"] for row in rows}
    assert len(results.runs) == 4


def test_without_retention_it_says_so_and_removes_the_old_table(tmp_path: Path) -> None:
    _, _, before = made(tmp_path)
    assert "gain-and-retention" in Page(before).charts
    assert (tmp_path / "report" / "retention.csv").exists()
    nothing: dict[str, Any] = {
        "retention_tasks": (),
        "held_out_tasks": (),
        "out_of_domain_tasks": (),
    }
    _, _, html = made(tmp_path, **nothing)
    text = Page(html).text
    assert not (tmp_path / "report" / "retention.csv").exists()
    assert text.count("not measured") == 2  # the statement and a reason, and no section
    drawn = Page(html).charts.keys()
    assert {"score-by-rank", "difference-by-task"} <= drawn
    assert "gain-and-retention" not in drawn
    for name in ("gain-and-retention", "forgetting-on-prose", "transfer", "retention-by-subject"):
        assert f"{name}-title" not in drawn


def test_without_full_fine_tuning(tmp_path: Path) -> None:
    results, recommendation, html = made(tmp_path, in_domain_accuracy={4: 0.7, 16: 0.8})
    table = comparison(results, recommendation)
    assert models_in(table) == ["base", "LoRA rank 4", "LoRA rank 16"]
    assert "full fine-tuning" not in " ".join(
        figure.drawing.words
        for figure in study_figures(results, recommendation, summarise(results, recommendation))
    )
    assert "Full fine-tuning" not in Page(html).text


def test_diverged_run_is_named_and_not_scored(tmp_path: Path, sentence: Sentences) -> None:
    results, recommendation, html = made(tmp_path, diverged=[(16, 0)])
    table = comparison(results, recommendation)
    for title in ("In-domain score", "Gain", "Forgetting"):
        assert cell_of(table, 2, title) == Cell(quantities.NOT_MEASURED)
    study = StudyResults(study=results.study, base=results.base, models=results.runs)
    (said,) = [warning for warning in study_warnings(study) if "diverged" in warning]
    sentence(said, names=("kinship-lora-r016-",))
    assert "diverged" in Page(html).text


@pytest.mark.parametrize(
    "planted",
    [
        {"diverged": [(4, 0), (16, 0), (64, 0), ("full", 0)]},
        {"in_domain_accuracy": {"full": 0.8}},
        {"in_domain_accuracy": {16: 0.8}},
        {"in_domain_accuracy": {4: 0.51, 16: 0.52, "full": 0.5}},
        {
            "in_domain_unit": "nats",
            "in_domain_accuracy": {4: 2.1, 16: 2.0},
            "base": {"kinship": 2.4},
        },
        {"in_domain_tasks": ("kinship", "cousins"), "retention_tasks": ("capitals",)},
    ],
    ids=["all-diverged", "only-full", "one-rank", "no-evidence", "nats", "two-in-domain"],
)
def test_other_studies_render(tmp_path: Path, planted: dict[str, Any]) -> None:
    results, recommendation, html = made(tmp_path, **planted)
    said = with_folder(recommendation.statement, tmp_path).replace("`", "")  # commands stand apart
    assert said in Page(html).text
    assert len(models_in(comparison(results, recommendation))) == 1 + len(results.runs)
    assert "None" not in re.findall(r"\b\w+\b", Page(html).text)
    assert "nan" not in re.findall(r"\b\w+\b", Page(html).text)


def test_three_seeds_have_a_row_and_a_label_each(tmp_path: Path) -> None:
    results, recommendation, html = made(
        tmp_path,
        seeds=(0, 1, 2),
        in_domain_accuracy={4: [0.70, 0.71, 0.69], 16: [0.80, 0.79, 0.81], "full": 0.81},
    )
    table = comparison(results, recommendation)
    seeds = [cell_of(table, row, "Seed").value for row in range(10)]
    assert seeds == [quantities.NOT_MEASURED, *("012" * 3)]
    labels = seeded_labels(results.study.runs)
    assert labels[results.study.runs[4].name] == "rank 16, seed 1"
    text = Page(html).text
    assert "seeds 0, 1, 2" in text
    assert all(label in text for label in labels.values())


def test_many_tasks_are_all_in_the_table_and_the_worst_are_drawn(tmp_path: Path) -> None:
    tasks = tuple(f"subject_{number}" for number in range(12))
    results = planted_runs(retention_tasks=tasks)
    recommendation = recommend_for(results)
    figure = study_figures(results, recommendation, summarise(results, recommendation))[2]
    assert "4 more" in figure.caption
    table = relation_table(results, recommendation, summarise(results, recommendation), "retention")
    assert table is not None
    assert tuple(group.title for group in table.groups) == tasks


def test_other_metrics_own_data_and_warnings_are_shown(tmp_path: Path, sentence: Sentences) -> None:
    results = planted_study()
    config = results.study.config
    train = config.train.model_copy(update={"task": (), "data": Path("/home/someone/rows.jsonl")})
    name = config.base_model.model_copy(update={"name": "/home/someone/tiny-model"})
    config = config.model_copy(update={"train": train, "base_model": name})
    models = [with_strict_metric(model) for model in (results.base, *results.runs)]
    first = models[1].run
    assert first is not None
    other = first.provenance.model_copy(update={"package_versions": {"torch": "9.9"}})
    run = first.model_copy(update={"num_truncated": 3, "provenance": other})
    models[1] = models[1].model_copy(update={"run": run})
    results = results.model_copy(
        update={
            "study": results.study.model_copy(update={"config": config, "warnings": ("Beware.",)}),
            "base": models[0],
            "models": tuple(models[1:]),
        }
    )
    html = write_report(
        tmp_path, results, recommend(results), study_findings(results, recommend(results))
    ).read_text(encoding="utf-8")
    text = Page(html).text
    assert "rows.jsonl" in text
    assert "tiny-model" in text
    assert "/home/someone" not in html
    assert "exact_match, strict-match" in text
    assert "0.125" in text
    assert "Beware." in text
    for case, name in (("cut", "480"), ("versions", "9.9, none")):
        sentence(study_warnings(results), case, names=(name,), part=True)
    assert all(warning in text for warning in study_warnings(results))


def with_strict_metric(model: ModelResults) -> ModelResults:
    """The same with a second metric, which does not decide, on every task."""
    strict = MetricScore(
        metric="exact_match",
        filter="strict-match",
        value=0.125,
        stderr=None,
        num_examples=300,
        higher_is_better=True,
    )
    return model.model_copy(
        update={
            "evaluations": {
                task: each.model_copy(update={"metrics": (*each.metrics, strict)})
                for task, each in model.evaluations.items()
            }
        }
    )


def test_macro_means_count_every_task_the_same() -> None:
    results = planted_runs(retention_tasks=("capitals", "elements"))
    recommendation = recommend_for(results)
    for summary in summarise(results, recommendation)[1:]:
        rows = [
            row
            for row in recommendation.comparisons
            if row.run == summary.name and row.relation == "retention"
        ]
        change = summary.retention_change
        assert change is not None
        assert change.estimate == pytest.approx(
            sum(row.difference.estimate for row in rows) / len(rows)
        )
        # ranks have the bounds of their verdicts: 1 - 0.04 / 4 for three of them
        quantile = 1.96 if summary.kind == "full" else 2.326
        half = sum(row.stderr**2 for row in rows) ** 0.5 / len(rows) * quantile
        reach = min(change.upper - change.estimate, change.estimate - change.lower)
        # a verdict's quantile is that of 4,096 draws, of which the standard error is 2.5 %
        assert reach == pytest.approx(half, rel=0.02 if summary.kind == "full" else 0.075)
        assert summary.worst_retention is min(rows, key=lambda row: row.difference.estimate)


def test_what_a_rank_gains_and_keeps_has_one_interval() -> None:
    results = planted_study(retention_tasks=("capitals",))
    recommendation = recommend(results)
    (part,) = recommendation.by_train_task
    (card,) = study_findings(results, recommendation).cards
    (source,) = option_gains(results, recommendation)
    by_run = {summary.name: summary for summary in summarise(results.of("kinship"), part)}
    for verdict in part.verdicts:
        (run,) = verdict.runs
        assert verdict.retention_loss is not None
        kept = verdict.retention_loss.negated()
        option = next(each for each in source.options if each.label == verdict.label)
        (on_card,) = (row for row in card.rows if row.label == verdict.label)
        gains = [by_run[run].gain, source.change(option.runs, ("kinship",)), on_card.gain]
        keeps = [by_run[run].retention_change, source.change(option.runs, ("capitals",))]
        keeps.append(on_card.retention)
        rows = {row.task: row.difference for row in part.comparisons if row.run == run}
        for wanted, shown in (
            (verdict.gain, [*gains, rows["kinship"]]),
            (kept, [*keeps, rows["capitals"]]),
        ):
            for each in shown:
                assert each is not None
                assert (each.lower, each.upper) == (wanted.lower, wanted.upper)
        # another task has an interval of its own
        own = source.test(option.runs[0], "syllogism").difference
        assert rows["syllogism"] == own


def test_the_table_has_the_intervals_of_the_findings() -> None:
    """Two in-domain tasks and one seed: a row is an option, so its numbers are the findings'."""
    results = planted_study(in_domain_tasks=("kinship", "cousins"), seeds=(0,))
    recommendation = recommend(results)
    part, its = results.of("kinship"), recommendation.by_train_task[0]
    (source,) = option_gains(results, recommendation)
    tasks, kept = ("kinship", "cousins"), ("capitals", "elements")
    (retention,) = study_findings(results, recommendation).retention
    line = next(group for group in retention.groups if group.tasks == kept)
    base, *runs = summarise(part, its)
    assert base.retention == line.base_score
    assert base.in_domain == source.base_score(tasks)
    for summary, option, change in zip(runs, source.options, line.changes, strict=True):
        assert summary.label == option.label == change.label
        assert summary.gain == source.change(option.runs, tasks)
        assert summary.retention_change == change.change
    table = verdict_table(part, its, (base, *runs))
    cell = cell_of(table, models_in(table).index("LoRA rank 4"), "Gain")
    gain = source.change(source.options[0].runs, tasks)
    assert cell.interval == quantities.change_interval(gain.lower, gain.upper, "points")
    (row,) = (row for row in table.rows if row["run"] == runs[0].name)
    assert (row["gain_lower"], row["gain_upper"]) == (gain.lower, gain.upper)


def test_the_table_says_which_alpha_is_of_rslora() -> None:
    results = with_rslora(planted_study())
    recommendation = recommend(results)
    part, its = results.of("kinship"), recommendation.by_train_task[0]
    table = comparison(part, its)
    shown = {name: cell_of(table, at, "Alpha").value for at, name in enumerate(models_in(table))}
    assert shown["LoRA rank 16"] == "32 with rsLoRA"
    assert shown["full fine-tuning"] == "—"


def test_reporting_reaches_no_torch() -> None:
    code = (
        "import sys, rankwise.report.page, rankwise.findings.recommendation; "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_dial_shows_the_odds_for_every_acceptable_loss(tmp_path: Path) -> None:
    _, recommendation, html = made(
        tmp_path,
        in_domain_accuracy={4: 0.69, 16: 0.88, 64: 0.91},
        retention_accuracy={4: 0.87, 16: 0.82, 64: 0.75},
    )
    bet = recommendation.best_bet
    assert bet is not None
    dial = re.search(r'<fieldset class="dial">(.*?)</fieldset>', html, re.DOTALL)
    assert dial is not None
    shown = re.findall(r'<meter min="0" max="1" value="([0-9.]+)"', dial.group(1))
    odds = [share for row in bet.by_epsilon for share in row.right]
    assert [float(value) for value in shown] == pytest.approx(odds, abs=0.0005)
    # without a script: one radio button for each block, the study's own loss first chosen
    assert dial.group(1).count('type="radio"') == dial.group(1).count('class="setting"')
    (checked,) = re.findall(r'id="epsilon-(\d+)" checked', dial.group(1))
    assert bet.by_epsilon[int(checked) - 1].epsilon_points == recommendation.epsilon_points
    # each place has a rule that shows its block
    assert all(
        f".dial input:nth-of-type({place + 1}):checked ~ .setting:nth-of-type({place + 1})" in html
        for place in range(len(bet.by_epsilon))
    )


@pytest.mark.parametrize(("probability", "is_listed"), [(0.0, False), (0.5, True)])
def test_what_would_settle_it_is_listed_where_something_would(
    probability: float, is_listed: bool
) -> None:
    (part,) = recommend(planted_study(num_in_domain=60)).by_train_task
    growth = part.prospects[0].model_copy(update={"probability": probability})
    shown = prospect_table(part.model_copy(update={"prospects": (growth,)}))
    assert bool(shown.groups) == is_listed


def test_without_retention_there_is_no_dial(tmp_path: Path) -> None:
    _, _, html = made(tmp_path, retention_tasks=())
    assert "<fieldset" not in html
    assert "not measured" in Page(html).text
