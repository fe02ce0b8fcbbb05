"""A rank pattern among ranks: a verdict on it is about its weights, and no finding takes it for one
of the ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rankwise.errors import ConfigError
from rankwise.findings.options import OptionGains, ladders
from rankwise.findings.recommendation import recommend, recommend_for
from rankwise.findings.study import study_findings
from rankwise.integrations.formats import export_study
from rankwise.integrations.sources import read_source
from rankwise.records.config.study import RecommendationConfig
from rankwise.records.folder import StudyFolder
from rankwise.records.results import StudyResults
from rankwise.records.study import PlannedRun
from rankwise.report.page import study_page
from rankwise.report.rendering import rendered
from tests.planted.folders import write_study
from tests.planted.results import planted_study, with_plans
from tests.support.sentences import Sentences

MARGINS = RecommendationConfig(delta_points=5.0, epsilon_points=6.0)
LAYERS = (("model.layers.0.self_attn.q_proj", 4), ("model.layers.0.self_attn.v_proj", 16))


def with_pattern(mean: float, in_domain: dict[int | str, float]) -> StudyResults:
    """A study in which the middle one of three ranks was a pattern of this mean rank."""
    low, middle, high = sorted(rank for rank in in_domain if isinstance(rank, int))
    kept = dict.fromkeys(in_domain, 0.9)
    results = planted_study(in_domain, kept, kept, {}, held_out_tasks=(), recommendation=MARGINS)  # type: ignore[arg-type]

    def changed(plan: PlannedRun) -> PlannedRun:
        if plan.rank != middle:
            return plan
        rank = round(mean)
        return plan.model_copy(
            update={
                "rank": rank,
                "mean_rank": mean,
                "layer_ranks": LAYERS,
                "alpha": 2.0 * rank,
                "num_trainable_parameters": round(115_200 * mean),
            }
        )

    assert low < mean < high + 1
    return with_plans(results, changed)


def test_half_the_weights_and_the_same_gain_is_a_verdict(sentence: Sentences) -> None:
    results = with_pattern(8.3, {4: 0.70, 8: 0.80, 16: 0.80})
    answer = recommend_for(results.of("kinship"))
    assert answer.outcome == "recommended"
    assert answer.chosen is not None
    assert answer.chosen.label == "rank pattern (mean 8.3)"
    assert (answer.rank, answer.mean_rank) == (8, 8.3)
    assert [verdict.label for verdict in answer.verdicts] == [
        "rank 4",
        "rank pattern (mean 8.3)",
        "rank 16",
    ]
    sentence(answer.statement, names=("rank pattern",))
    assert any("1.93 times the trainable parameters" in reason for reason in answer.reasons)


@pytest.mark.parametrize(("mean", "place"), [(15.6, 1), (16.4, 2)])
def test_it_stands_where_its_weights_are_and_not_where_its_rounded_rank_is(
    mean: float, place: int
) -> None:
    answer = recommend_for(with_pattern(mean, {4: 0.7, 8: 0.8, 16: 0.8}).of("kinship"))
    labels = [verdict.label for verdict in answer.verdicts]
    assert labels.index(f"rank pattern (mean {mean})") == place
    assert labels.index("rank 16") == 3 - place


def test_where_it_is_worse_the_rank_is_recommended() -> None:
    answer = recommend_for(with_pattern(8.3, {4: 0.60, 8: 0.65, 16: 0.80}).of("kinship"))
    assert (answer.outcome, answer.rank, answer.mean_rank) == ("recommended", 16, None)
    assert answer.statement.startswith("Use rank 16 (alpha 32,")


def test_no_series_of_ranks_and_no_trend_has_it() -> None:
    results = with_pattern(15.6, {4: 0.70, 8: 0.80, 16: 0.80})
    (series,) = ladders(OptionGains(results.of("kinship")))
    assert [rung.label for rung in series.rungs] == ["rank 4", "rank 16"]


def test_the_page_names_it_everywhere() -> None:
    results = with_pattern(11.3, {4: 0.70, 8: 0.80, 16: 0.80})
    recommendation = recommend(results)
    html = rendered(study_page(results, recommendation, study_findings(results, recommendation)))
    assert "rank pattern (mean 11.3)" in html
    assert "rank 11" not in html
    assert "alpha 22" not in html


# what is given away


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, with_pattern(8.3, {4: 0.70, 8: 0.80, 16: 0.80}))
    return folder


def test_a_config_of_peft_has_the_ranks_of_the_layers(folder: StudyFolder) -> None:
    peft = pytest.importorskip("peft")
    (done,) = export_study(folder, "peft")
    content = json.loads(done.file.read_text())
    config = peft.LoraConfig.from_pretrained(str(done.file.parent))
    assert config.target_modules == {name for name, _ in LAYERS}
    from peft.utils.other import get_pattern_key

    for name, rank in LAYERS:
        own = {
            entry: content[f"{entry}_pattern"].get(
                get_pattern_key(content[f"{entry}_pattern"], name), content[default]
            )
            for entry, default in {"rank": "r", "alpha": "lora_alpha"}.items()
        }
        assert own == {"rank": rank, "alpha": 2 * rank}


@pytest.mark.parametrize("name", ["trl", "unsloth", "axolotl", "llamafactory"])
def test_a_tool_with_one_rank_is_refused(
    folder: StudyFolder, name: str, sentence: Sentences
) -> None:
    with pytest.raises(ConfigError) as caught:
        export_study(folder, name)
    sentence(caught.value, names=("take peft",))


def test_its_card_names_no_rank_that_it_has_not(folder: StudyFolder) -> None:
    (done,) = export_study(folder, "model-card")
    text = done.file.read_text()
    assert "# An adapter of mean rank 8.3, trained on kinship" in text
    assert "| pattern (mean 8.3) |" in text
    assert "| 2r |" in text
    assert "rank-8" not in text
    assert re.search(r"(?<!mean )rank 8\b", text) is None


def test_a_study_file_made_of_it_says_where_ranks_of_layers_go(folder: StudyFolder) -> None:
    (done,) = export_study(folder, "peft")
    said = [text for text in read_source(done.file).not_carried if "rank_pattern" in text]
    assert said == [
        "rank_pattern, a rank for each layer: name the adapter's folder in "
        "methods.lora.rank_pattern"
    ]
