"""The page of an audit: the section of weights for one planted model, in both colour schemes."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rankwise.findings.weights import audited_weights
from rankwise.records.audits import AuditRecord, KeptEnergy
from rankwise.report.page import audit_page, target_name
from rankwise.report.rendering import rendered
from rankwise.weights.audit import audit, find_audited
from tests.support.audited_models import adapter, checkpoint, plant_intruder
from tests.support.pages import Page, colours, words
from tests.support.sentences import Sentences

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def look(base: Path, target: Path, draws: int = 1, top_k: int = 20) -> AuditRecord:
    return audit(find_audited(str(base), target), top_k, draws)


def page_of(record: AuditRecord) -> str:
    return rendered(audit_page(record))


def text_of(page: str) -> str:
    """The page's text without tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture(scope="module")
def with_intruder(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AuditRecord:
    folder = tmp_path_factory.mktemp("audit") / "a"
    return look(tiny_model_folder, plant_intruder(tiny_model_folder, folder))


def test_every_colour_has_a_partner_on_a_dark_page(with_intruder: AuditRecord) -> None:
    paired, alone = colours(Page(page_of(with_intruder)).charts)
    assert paired > 3
    assert alone == []


def test_the_one_model_has_the_section_of_a_study(with_intruder: AuditRecord) -> None:
    (weights,) = (each for each in audit_page(with_intruder).sections if each.name == "weights")
    assert not weights.is_folded
    assert [figure.name for figure in weights.figures] == [
        "map-norm",
        "map-turned",
        "map-intruders",
    ]
    found = audited_weights(with_intruder)
    text = text_of(page_of(with_intruder))
    numbers = f"rank-1 adapter {found.frobenius_norm:.3g} {100 * found.relative_norm:.2g}"
    assert numbers in text
    for statement in with_intruder.statements:
        assert statement in text


def test_intruders_stand_beside_both_nulls(with_intruder: AuditRecord) -> None:
    page = page_of(with_intruder)
    assert {"trained", "Gaussian", "Haar"} <= {*words(Page(page).charts["map-intruders"])}


def test_without_intruders_there_is_no_map_of_them(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=1e-3)
    page = page_of(look(tiny_model_folder, tmp_path / "a"))
    assert {*Page(page).charts} == {"map-norm", "map-turned"}


def test_without_draws_nothing_is_said_of_random_updates(
    tiny_model_folder: Path, tmp_path: Path, sentence: Sentences
) -> None:
    record = look(tiny_model_folder, plant_intruder(tiny_model_folder, tmp_path / "a"), draws=0)
    page = page_of(record)
    assert "Gaussian" not in {*words(Page(page).charts)}
    assert {*Page(page).charts} == {"map-norm", "map-turned", "map-intruders"}
    sentence(record.statements, "statements")
    (weights,) = (each for each in audit_page(record).sections if each.name == "weights")
    said = [*weights.remarks, *(figure.caption for figure in weights.figures)]
    sentence([*said, *(each.table.caption for each in weights.tables)], "section")


def test_fewer_vectors_are_said_to_be_so_many(tiny_model_folder: Path, tmp_path: Path) -> None:
    source = plant_intruder(tiny_model_folder, tmp_path / "a")
    record = look(tiny_model_folder, source, top_k=5)
    assert {each.leading for each in record.matrices} == {(5,)}
    assert any("5 leading" in text for text in record.statements)
    text = text_of(page_of(record))
    assert text.count("5 leading") >= 3
    for other in ("k = 10", "10 leading"):
        assert other not in text
    assert "10 leading" in text_of(page_of(look(tiny_model_folder, source)))


def test_medians_of_a_checkpoint_are_over_what_it_changed(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"] += 0.01 * torch.eye(96, 48)

    record = look(tiny_model_folder, checkpoint(tiny_model_folder, tmp_path / "c", change))
    found = audited_weights(record)
    assert (found.option.label, found.option.rank, found.num_matrices) == ("checkpoint", None, 1)
    assert found.effective_rank == pytest.approx(48.0, rel=1e-3)
    assert found.frobenius_norm == pytest.approx(record.frobenius_norm)
    base = sum(each.base_frobenius_norm**2 for each in record.matrices) ** 0.5
    assert found.relative_norm == pytest.approx(record.frobenius_norm / base)
    page = page_of(record)
    assert "rankwise repair" not in page  # it is for adapters


def test_an_adapter_can_be_cut_and_a_zero_one_has_no_section(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.1)
    record = look(tiny_model_folder, tmp_path / "a")
    assert "rankwise repair" not in page_of(record)  # it needs its full rank
    cut = KeptEnergy(rank=2, share=0.995, lowest=0.99)
    assert "--by energy=0.9" in page_of(record.model_copy(update={"cut": cut}))
    adapter(tiny_model_folder, tmp_path / "zero", std=0.0)
    page = audit_page(look(tiny_model_folder, tmp_path / "zero"))
    assert [section.name for section in page.sections] == ["provenance"]


def test_names_are_text(with_intruder: AuditRecord) -> None:
    record = with_intruder.model_copy(update={"target": "/models/<b>&", "warnings": ("a<b",)})
    page = page_of(record)
    assert "<b>" not in page.replace("<b>Figure", "")
    assert "&lt;b&gt;&amp;" in page
    assert "a&lt;b" in page


def test_a_common_name_takes_its_folder_along() -> None:
    assert target_name(Path("/runs/r64/adapter")) == "r64/adapter"
    assert target_name(Path("/runs/r64/checkpoint-500")) == "r64/checkpoint-500"
    assert target_name(Path("/models/my-llama")) == "my-llama"
    assert target_name(Path("adapter")) == "adapter"
