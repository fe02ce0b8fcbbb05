"""Lists and figures that pages repeat are those of the code and of the pages that they are from."""

from __future__ import annotations

import re
import signal

import yaml

from rankwise import api, errors
from rankwise.cli import adapter_verbs, application
from rankwise.findings.signatures.signature import TITLES
from rankwise.records.study_file import preset_names, preset_text
from tests.support.command_line import rankwise, words
from tests.support.documented import ROOT, blocks


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of each row of all tables, without their heads."""
    lines = [line.strip().strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_every_signature_has_a_symptom_and_something_to_do() -> None:
    found = [row for row in rows(text_of("docs/got-worse.md")) if len(row) == 3]
    named = {name for row in found for name in re.findall(r"\*([^*]+)\*", row[1])}
    missing = {title.lower() for title in TITLES.values()} - {name.lower() for name in named}
    assert missing == set()


def card_of(page: str) -> str:
    """The first card on a page, as the terminal prints it."""
    first = text_of(page).split("```text\nUse rank ")[1].split("```")[0]
    return f"Use rank {first}"


def test_the_card_of_scores_is_what_the_command_prints() -> None:
    options = ("--retention", "local_arc_easy,capitals", "--delta", "10")
    done = rankwise("verdict", ROOT / "docs/scores/sciq.csv", "--score", "p_right", *options)
    assert words(done.stdout).startswith(words(card_of("docs/have-trained.md")))


def test_the_readme_begins_with_the_card_of_the_first_study() -> None:
    assert card_of("docs/first-study.md").startswith(card_of("README.md"))


def test_the_presets_are_all_listed() -> None:
    text = text_of("docs/study-file.md")
    table = text.split("## Presets")[1].split("##")[0]
    named = {name for row in rows(table) for name in re.findall(r"`([^`]+)`", row[0])}
    assert named == set(preset_names())


def test_the_page_of_the_study_file_has_the_file_that_init_writes() -> None:
    shown = [each.text for each in blocks("docs/study-file.md") if each.language == "yaml"]
    assert shown[-1] == preset_text("quickstart"), "copy rankwise/records/presets/quickstart.yaml"


def test_the_page_about_python_has_every_public_name() -> None:
    named = {
        name
        for row in rows(text_of("docs/api.md"))
        for name in re.findall(r"(?:rw\.)?(\w+)(?=\(|`)", row[0])
    }
    members = {name for name in vars(api.Study) if not name.startswith("_")}
    raised = {
        name
        for name, each in vars(errors).items()
        if isinstance(each, type) and issubclass(each, errors.RankwiseError)
    }
    functions = {"new", "open", "verdict", "audit", "load_config"}
    assert members | functions | raised - {"RankwiseError"} == named


def test_the_rates_are_those_that_were_measured() -> None:
    own = rows(text_of("docs/hyper-parameters.md"))
    measured = rows(text_of("docs/PERFORMANCE.md").split("## A whole study")[0])
    rates = [row for row in own if re.fullmatch(r"\d.*e-\d", row[0])]
    assert len(rates) == 4
    assert all(row in measured for row in rates)


def test_figures_of_arms_are_those_of_the_study() -> None:
    own = text_of("docs/hyper-parameters.md").split("## Against forgetting")[1]
    kinship = text_of("docs/studies/mitigation.md").split("\n## Overruling")[0]
    study = {row[0]: row for row in rows(kinship)}
    names = {
        "as trained": "as trained",
        "rate × 0.25": "rate × 0.25",
        "rate × 0.1": "rate × 0.1",
        "KL to the base, on prompts": "KL on prompts",
        "KL to the base, on its own texts": "KL on own texts",
        "10 % of the rows are the base's own texts": "10 % own texts",
        "weight decay 10": "weight decay 10",
        "alpha × 0.25": "alpha × 0.25",
    }
    table = {row[0]: row[1:] for row in rows(own) if row[0] in names}
    assert table.keys() == names.keys()
    for arm, (gain, retention) in table.items():
        _, its_gain, _, its_retention, *_ = study[names[arm]]
        assert its_gain.startswith(f"{gain} points")
        assert its_retention.startswith(f"{retention} points")


def test_what_agents_are_told_has_a_name_and_all_exit_codes() -> None:
    _, head, text = text_of("SKILL.md").split("---\n", 2)
    about = yaml.safe_load(head)
    assert about.keys() == {"name", "description"}
    assert about["name"] == "rankwise"
    assert len(about["description"]) <= 1024
    listed = {int(code) for row in rows(text) for code in row[0].split(", ") if code.isdigit()}
    errors = {application.RUN_FAILED, application.USAGE, application.INTERRUPTED}
    stopped = {128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    assert listed == errors | stopped | set(adapter_verbs.EXIT_CODES.values())
