"""The card of a recommended run, as model hubs read it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from rankwise.errors import ConfigError
from rankwise.integrations.formats import export_study
from rankwise.records import quantities
from rankwise.records.folder import StudyFolder
from rankwise.study.conclusion import conclude
from tests.planted.folders import write_study
from tests.planted.results import planted_study

HOSTILE = "<img src=x onerror=alert(1)> ![](http://x)|`<b>`"


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    """A study that recommends rank 16."""
    folder = StudyFolder(tmp_path / "study")
    write_study(folder, planted_study())
    return folder


def card(folder: StudyFolder, run: str | None = None) -> ModelCard:
    (done,) = export_study(folder, "model-card", run=run)
    assert done.file == folder.root / "export" / "model-card" / "README.md"
    return ModelCard(done.file.read_text(encoding="utf-8"))


def test_the_hub_reads_its_scores(folder: StudyFolder) -> None:
    data = card(folder).data
    assert (data.base_model, data.library_name) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "peft")
    assert data.tags == ["lora", "rankwise"]
    assert data.eval_results is not None
    scores = {each.dataset_name: each.metric_value for each in data.eval_results}
    # planted for rank 16
    assert scores["kinship"] == 0.8
    assert scores["capitals"] == 0.9
    assert scores["pydoc_topics"] == pytest.approx(2.54)


def test_it_says_how_it_was_trained_and_what_it_changed(folder: StudyFolder) -> None:
    text = card(folder).text
    assert "# A rank-16 adapter, trained on kinship" in text
    assert "| rank | 16 |" in text
    assert "| learning rate | 2e-4 |" in text
    assert "| rows a step | 8 |" in text
    # 0.80 after 0.50, planted
    assert "| kinship | in-domain | acc, points | 300 | 50.0 | 80.0 | +30.0 points (" in text
    assert "| capitals | retention | acc, points | 200 | 90.0 | 90.0 | " in text
    chosen = conclude(folder).recommendation.by_train_task[0].chosen
    assert chosen is not None
    assert quantities.with_interval(chosen.gain, "points") in text


def test_a_fully_fine_tuned_model_is_no_adapter(folder: StudyFolder) -> None:
    chosen = card(folder, "kinship-full")
    assert "# A fully fine-tuned model, trained on kinship" in chosen.text
    assert "Chosen by hand. " in chosen.text
    assert (chosen.data.library_name, chosen.data.tags) == (None, ["rankwise"])


def test_names_of_tasks_are_text(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    tasks = {"in_domain_tasks": (HOSTILE,), "retention_tasks": (f"r {HOSTILE}",)}
    write_study(folder, planted_study(**tasks, base={HOSTILE: 0.5, f"r {HOSTILE}": 0.9}))
    text = card(folder).text
    assert "&lt;img src=x onerror=alert(1)&gt; !\\[\\](http://x)\\|`&lt;b&gt;`" in text
    assert not re.search(r"<|(?<!\\)[\[\]]", text)
    rows = [line for line in text.splitlines() if line.startswith("| r &lt;img")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [8]


def test_a_card_of_a_study_that_is_not_settled_says_so(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    write_study(folder, planted_study(dict.fromkeys((4, 16, 64), 0.52), num_in_domain=60))
    text = card(folder).text
    assert "\nThe best bet. Not s" in text


def test_where_it_is_best_not_to_fine_tune_there_is_no_card(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    write_study(folder, planted_study(dict.fromkeys((4, 16, 64), 0.30)))
    with pytest.raises(ConfigError, match="there is no best bet"):
        export_study(folder, "model-card")
    assert not (tmp_path / "export").exists()
