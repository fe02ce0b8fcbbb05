"""What stands in the report of a study's heads: maps, tables and files."""

from __future__ import annotations

import pytest

from rankwise.findings.heads import TrainTaskHeads, head_findings
from rankwise.findings.options import option_gains
from rankwise.records import quantities
from rankwise.records.heads import HeadMode, TaskHeadEffects
from rankwise.records.results import StudyResults
from rankwise.report.parts import Figure, ReportSection, Table
from rankwise.report.sections.heads import head_section
from tests.planted.heads import effects, looked_into, named, with_effects
from tests.planted.results import planted_study
from tests.support.sentences import Sentences
from tests.support.tables import csv_rows


def heads_of(results: StudyResults) -> tuple[TrainTaskHeads, ...]:
    found = map(head_findings, option_gains(results))
    return tuple(heads for heads in found if heads is not None)


def section(results: StudyResults) -> ReportSection:
    return head_section(heads_of(results), results)


@pytest.fixture(scope="module")
def plain() -> ReportSection:
    """Of a study with four runs, whose maps are known and whose effects are not."""
    return section(looked_into(planted_study()))


def table(found: ReportSection, title: str) -> Table:
    (only,) = (each.table for each in found.tables if title in each.title)
    assert isinstance(only, Table)
    return only


def maps(found: ReportSection, part: str) -> list[Figure]:
    return [each for each in found.figures if part in each.name]


def test_the_section_has_maps_tables_and_files() -> None:
    study = planted_study()
    name = study.runs[1].name
    own = (
        effects(name, "kinship"),
        effects(name, "syllogism", 0.0),
        effects(name, "syllogism", mode="ablate-mean"),
    )
    results = looked_into(study, {1: {"head_effects": own}})
    found = section(results)
    assert [figure.name.rpartition("-")[2] for figure in found.figures] == [
        "output", "attention", "ablate", "mean",
    ]  # fmt: skip
    assert all(figure.drawing is not None for figure in found.figures)
    titles = [each.title for each in found.tables]
    assert titles[:2] == ["Change of the heads", "Change and effect"]
    assert sum(title.startswith("Heads set to zero") for title in titles) == 2
    assert sum(title.startswith("Heads set to its mean") for title in titles) == 1
    rows = csv_rows("heads", results)
    assert len(rows) == len(results.runs) * 40
    assert float(rows[39]["output_change"]) == pytest.approx(0.1)
    assert rows[0]["delta_share_query"] == ""
    rows = csv_rows("head-effects", results)
    assert len(rows) == 3 * 2 * 40
    assert [row["mode"] for row in rows[::80]] == ["ablate", "ablate", "ablate-mean"]


def test_runs_without_maps_are_named_with_the_reason() -> None:
    results = looked_into(planted_study())
    (heads,) = heads_of(results)
    odd = heads.model_copy(update={"not_analysed": {"a run": "its heads are laid out oddly"}})
    assert named(head_section([odd], results).remarks, "a run: its heads are laid out oddly")


@pytest.mark.parametrize(("width", "num_tasks"), [(32, 3), (8, 4), (64, 5)])
def test_every_task_is_on_a_map_behind_the_change(width: int, num_tasks: int) -> None:
    study = planted_study()
    name = study.runs[0].name
    tasks = [f"task {number}" for number in range(num_tasks)]
    own = [effects(name, task, width=width) for task in tasks]
    (drawn,) = maps(section(with_effects(study, 0, *own, width=width)), "map-effects")
    titles = [part.split(":")[0] for part in drawn.drawing.words.split("; ")]
    assert titles == ["Change of the output, %", *(f"{task}, nats" for task in tasks)]


@pytest.mark.parametrize("width", [8, 32, 64])
def test_every_measure_is_on_a_map_and_the_caption_says_what_is_drawn(width: int) -> None:
    (drawn,) = maps(section(looked_into(planted_study(), width=width)), "map-attention")
    words = {
        "Entropy, nats": "entropy",
        "Divergence, nats": "jensen-shannon",
        "First token, %": "first token",
        "Output, %": "relative change of the output",
    }
    assert [part.split(":")[0] for part in drawn.drawing.words.split("; ")] == list(words)
    assert all(word in drawn.caption.lower() for word in words.values())


def test_maps_that_do_not_fit_beside_each_other_stand_below() -> None:
    heights: dict[int, int] = {}
    for width in (8, 64):
        (drawn,) = maps(section(looked_into(planted_study(), width=width)), "map-attention")
        assert drawn.drawing is not None
        heights[width] = -(-4 // drawn.drawing.chart["vconcat"][0]["columns"])
    assert heights == {8: 1, 64: 4}


def test_effects_without_maps_of_change_are_drawn_alone() -> None:
    study = planted_study()
    name = study.runs[0].name
    own = tuple(effects(name, f"task {number}", width=32) for number in range(3))
    without = {"head_changes": None, "head_effects": own}
    (drawn,) = maps(section(looked_into(study, {0: without}, width=32)), "map-effects")
    assert drawn.drawing.words.count("nats") == 3
    assert drawn.caption.startswith("What happens")


def test_a_map_of_some_settings_says_so(plain: ReportSection, sentence: Sentences) -> None:
    ranks = dict.fromkeys((2, 4, 8, 16, 32), 0.7)
    figure = maps(section(looked_into(planted_study(ranks))), "map-output")[0]
    sentence(figure.caption, "five", names=("4 of 5",))
    sentence(maps(plain, "map-output")[0].caption, "four")


def test_seeds_of_one_rank_have_rows_titles_and_maps_of_their_own() -> None:
    study = planted_study(seeds=(0, 1))
    both = {
        number: {"head_effects": (effects(study.runs[number].name, "kinship", follow),)}
        for number, follow in enumerate((1.0, -1.0))
    }
    found = section(looked_into(study, both))
    groups = table(found, "Change and effect").groups
    assert [group.title for group in groups] == [
        "rank 4, seed 0, kinship", "rank 4, seed 1, kinship",
    ]  # fmt: skip
    signs = [not group.rows[0][1].value.startswith(quantities.MINUS) for group in groups]
    assert signs == [True, False]
    titles = [each.title for each in found.tables if each.title.startswith("Heads set")]
    assert titles == [
        "Heads set to zero, rank 4, seed 0 on kinship",
        "Heads set to zero, rank 4, seed 1 on kinship",
    ]
    assert len({each.title for each in found.figures}) == len(found.figures)
    cells = [row[0].value for row in table(found, "Change of the heads").groups[0].rows]
    assert cells[:2] == ["rank 4, seed 0", "rank 4, seed 1"]


def test_tables_of_screened_heads_have_a_reason_and_bounds_over_all_candidates(
    sentence: Sentences,
) -> None:
    study = planted_study()
    own = effects(study.runs[0].name, "kinship", top=12)
    found = section(with_effects(study, 0, own))
    (group,) = table(found, "Change and effect").groups
    assert {row[1].value for row in group.rows} == {"—"}
    (note,) = {row[1].note for row in group.rows}
    sentence(note, "note", names=("12 heads",))
    caption = table(found, "Heads set to zero").caption
    sentence(caption, "screened", names=("12 heads", "40 candidate heads"))
    whole = section(with_effects(study, 0, effects(study.runs[0].name, "kinship")))
    sentence(table(whole, "Heads set to zero").caption, "all")


@pytest.mark.parametrize("mode", ["ablate", "ablate-mean"])
def test_captions_say_what_becomes_of_the_head(mode: HeadMode, sentence: Sentences) -> None:
    study = planted_study()
    own = effects(study.runs[0].name, "kinship", mode=mode)
    found = section(with_effects(study, 0, own))
    (drawn,) = maps(found, "map-effects")
    sentence(drawn.caption, "map")
    sentence(table(found, "Heads set to").caption, "table")


def test_zeros_and_means_are_on_maps_of_their_own() -> None:
    study = planted_study()
    name = study.runs[0].name
    modes: tuple[HeadMode, ...] = ("ablate", "ablate-mean")
    found = section(
        with_effects(study, 0, *(effects(name, "kinship", mode=mode) for mode in modes))
    )
    zeros, means = maps(found, "map-effects")
    assert zeros.name != means.name
    details = [group.detail for group in table(found, "Change and effect").groups]
    assert details == ["heads set to zero", "heads set to its mean"]


def test_the_share_of_delta_is_of_attention(plain: ReportSection) -> None:
    headings = table(plain, "Change of the heads").headings
    assert ("Top tenth", "% of attention's ‖delta‖²") in headings


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_effects_are_conditional_on_the_seed_of_their_run(
    seeds: tuple[int, ...], sentence: Sentences
) -> None:
    study = planted_study(seeds=seeds)
    own: TaskHeadEffects = effects(study.runs[0].name, "kinship")
    with_them, without = section(with_effects(study, 0, own)), section(looked_into(study))
    sentence([each for each in with_them.remarks if each not in without.remarks], "effects")
    sentence(without.remarks, "changes")
