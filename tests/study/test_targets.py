"""Layers that LoRA cannot be put on, or that PEFT would put it elsewhere on, are told at plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rankwise.engine.models import peft_adapters
from rankwise.engine.models.adapter_folder import CONFIG_FILE
from rankwise.engine.models.peft_adapters import save_adapter
from rankwise.engine.models.trained_adapters import Adapter
from rankwise.errors import StageFailedError
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.checks import target_layers
from rankwise.study.planning.issues import Issues
from rankwise.study.planning.model import study_model
from tests.support.sentences import Sentences
from tests.support.small_studies import SMALL
from tests.support.studies import run
from tests.support.tiny_models import tiny_mixture
from tests.support.tiny_tasks import tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


def issues_of(study_file: Path, family: str, targets: str, path: Path) -> Issues:
    """What planning finds in the targets on a tiny mixture of experts."""
    tokenizer = tiny_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    tiny_mixture(family, **sizes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    overrides = [f"base_model={path}", f"methods.lora.target_modules={targets}"]
    config, issues = load_config(study_file, overrides), Issues()
    target_layers(config, study_model(config, lambda _: None), issues)
    return issues


@pytest.mark.parametrize(
    ("family", "targets", "lost", "kept"),
    [
        ("Dots1", "all-linear", "gate_proj, up_proj, down_proj", "q_proj, k_proj, v_proj, o_proj"),
        ("Dots1", "mlp", "gate_proj, up_proj, down_proj", "attention"),
        ("Afmoe", "attention", "self_attn.gate_proj", "q_proj, k_proj, v_proj, o_proj"),
    ],
)
def test_targets_that_peft_takes_for_something_else_are_refused(
    family: str,
    targets: str,
    lost: str,
    kept: str,
    study_file: Path,
    tmp_path: Path,
    sentence: Sentences,
) -> None:
    (problem,) = issues_of(study_file, family, targets, tmp_path / "base").problems
    sentence(problem, names=(lost, kept))


def test_experts_and_routers_that_are_not_adapted_are_named(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    issues = issues_of(study_file, "Qwen3Moe", "all-linear", tmp_path / "base")
    assert issues.problems == []
    sentence(issues.warnings[0], names=("all-linear", "mlp.experts", "mlp.gate"))
    assert issues_of(study_file, "Qwen3Moe", "[q_proj]", tmp_path / "base") == Issues()


def test_an_adapter_that_peft_loads_otherwise_is_not_trained(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    def damaged(adapter: Adapter, folder: Path, **settings: Any) -> int:
        size = save_adapter(adapter, folder, **settings)
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["lora_alpha"] *= 2
        (folder / CONFIG_FILE).write_text(json.dumps(config))
        return size

    monkeypatch.setattr(peft_adapters, "save_adapter", damaged)
    with pytest.raises(StageFailedError) as caught:
        run(study_file, tmp_path / "study", *SMALL)
    sentence(caught.value, names=("model.layers.0",))
    folder = StudyFolder(tmp_path / "study")
    assert [folder.finished_run(each) for each in folder.read_study().runs] == [None, None]
