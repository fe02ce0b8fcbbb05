"""The page of an audit: what stands on it for planted records, in both colour schemes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rankwise.records.audits import AuditRecord, AuditScore
from rankwise.report.audit_page import audit_page, target_name
from rankwise.weights.audit import audit, find_audited
from tests.support.audited_models import adapter, checkpoint, plant_intruder
from tests.support.pages import Page, colours, words

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def look(base: Path, target: Path, draws: int = 1, top_k: int = 20) -> AuditRecord:
    return audit(find_audited(str(base), target), top_k, draws)


def score(task: str, difference: float, unit: str = "points") -> AuditScore:
    return AuditScore(
        task=task,
        task_version="1.0",
        metric="acc" if unit == "points" else "loss_nats",
        filter="none",
        unit=unit,  # pyright: ignore[reportArgumentType]
        higher_is_better=unit == "points",
        num_examples=1319,
        num_fewshot=5,
        chat_template=False,
        limit=None,
        base_score=50.0,
        base_stderr=1.38,
        adapted_score=50.0 + difference,
        adapted_stderr=1.37,
        difference=difference,
        stderr=1.0,
        lower=difference - 1.96,
        upper=difference + 1.96,
        num_learned=80 if unit == "points" else None,
        num_forgotten=40 if unit == "points" else None,
        p_value=0.0003,
    )


def tables(page: str) -> str:
    """The page's text without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


@pytest.fixture(scope="module")
def with_intruder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditRecord:
    folder = tmp_path_factory.mktemp("audit") / "a"
    return look(tiny_model_folder, plant_intruder(tiny_model_folder, folder))


def test_every_colour_has_a_partner_on_a_dark_page(with_intruder: AuditRecord) -> None:
    scored = with_intruder.model_copy(update={"scores": (score("gsm8k", 3.0),)})
    paired, alone = colours(Page(audit_page(scored)).charts)
    assert paired > 5
    assert alone == []


def test_intruders_stand_beside_both_nulls(with_intruder: AuditRecord) -> None:
    page = audit_page(with_intruder)
    assert "Intruder dimensions, rank-1 adapter" in page
    assert {"trained", "Gaussian", "Haar"} <= {*words(Page(page).charts["map-intruders"])}


def test_without_intruders_there_is_no_map_of_them(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=1e-3)
    page = audit_page(look(tiny_model_folder, tmp_path / "a"))
    assert "map-intruders" not in Page(page).charts
    assert "No matrix has an intruder dimension, nor would one under random updates" in page


def test_without_draws_nothing_is_said_of_random_updates(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=1e-3)
    record = look(tiny_model_folder, tmp_path / "a", draws=0)
    page = audit_page(record)
    assert "Gaussian" not in {*words(Page(page).charts)}
    assert not any("andom updates" in sentence for sentence in record.statements)
    text = tables(page)
    assert "No matrix has an intruder dimension: there is no map of them" in text
    assert "no random updates were drawn to compare with" in text
    for said in ("0 draws", "under random updates", "Small numbers", "Beside it the same"):
        assert said not in text


def test_without_draws_maps_have_no_random_updates(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = plant_intruder(tiny_model_folder, tmp_path / "a")
    text = tables(audit_page(look(tiny_model_folder, source, draws=0)))
    assert "Intruder dimensions, rank-1 adapter" in text
    for said in ("under random updates", "means under", "Small numbers"):
        assert said not in text


def test_fewer_vectors_are_said_to_be_so_many(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = plant_intruder(tiny_model_folder, tmp_path / "a")
    record = look(tiny_model_folder, source, top_k=5)
    assert {each.leading for each in record.matrices} == {(5,)}
    assert any("among the 5 leading directions" in text for text in record.statements)
    text = tables(audit_page(record))
    assert "k = 5, ε = 0.5" in text
    assert "of 5 leading vectors" in text
    assert "How many of the 5 leading left singular vectors" in text
    for said in ("k = 10", "10 leading"):
        assert said not in text
    assert "among the 10 leading" in tables(audit_page(look(tiny_model_folder, source)))


def test_scores_have_their_errors_and_n(with_intruder: AuditRecord) -> None:
    scores = (score("gsm8k", 3.0), score("mmlu", -1.0), score("prose", 0.5, "nats"))
    text = tables(audit_page(with_intruder.model_copy(update={"scores": scores})))
    assert (
        "gsm8k 5-shot, no chat template, version 1.0 acc points, higher is better 1,319 50.0 ± 1.4"
        in text
    )
    assert "53.0 ± 1.4 +3.0 +1.0 to +5.0 80 40" in text
    assert "−1.0 −3.0 to +1.0" in text
    assert "nats per token, lower is better" in text


def test_a_checkpoint_s_other_parameters_are_listed(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] *= 1.5
        tensors["model.layers.0.mlp.up_proj.weight"] += 0.01 * torch.eye(96, 48)

    page = audit_page(
        look(tiny_model_folder, checkpoint(tiny_model_folder, tmp_path / "c", change))
    )
    assert "What this checkpoint changes in" in page
    assert "model.norm.weight 50 %" in tables(page)


def test_names_are_text(with_intruder: AuditRecord) -> None:
    record = with_intruder.model_copy(update={"target": "/models/<b>&", "warnings": ("a<b",)})
    page = audit_page(record)
    assert "<b>" not in page.replace("<b>Figure", "")
    assert "&lt;b&gt;&amp;" in page
    assert "a&lt;b" in page


def test_a_common_name_takes_its_folder_along() -> None:
    assert target_name(Path("/runs/r64/adapter")) == "r64/adapter"
    assert target_name(Path("/runs/r64/checkpoint-500")) == "r64/checkpoint-500"
    assert target_name(Path("/models/my-llama")) == "my-llama"
    assert target_name(Path("adapter")) == "adapter"
