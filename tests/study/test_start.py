"""Studies that start from an adapter: it is merged into the base, which runs are compared with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from rankwise.engine.models.start import fetch_weights
from rankwise.errors import ModelError, PlanError
from rankwise.integrations.exports import export_runs, write_card, write_setup
from rankwise.integrations.trl import TRL
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.report.facts import base_model_name
from rankwise.study.planning.plan import plan_study
from tests.support.audited_models import PREFIX, adapter, edited, load, merged, rewritten
from tests.support.sentences import Sentences
from tests.support.small_studies import write_study
from tests.support.studies import run

SETTINGS = """
train:
  task: colours
  epochs: 1
  learning_rate: {lora: 1e-2, full: 1e-3}
  precision: float32
  batch_size: 2
methods: {lora: {ranks: [2], target_modules: [q_proj, v_proj], start: start}, full: {}}
analysis: {heads: false, gauges: false, null_draws: 0}
evaluation: {retention: [sums], num_train_items: 0}
"""
LORA = "methods.lora="


@pytest.fixture
def study_file(tmp_path: Path, tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    adapter(tiny_model_folder, tmp_path / "start", std=0.1)
    return write_study(tmp_path, tiny_model_folder, SETTINGS)


def items_and_losses(outcome: Any, folder: StudyFolder) -> list[Any]:
    results = outcome.results
    found: list[Any] = []
    for model in (results.base, *results.runs):
        found += [list(items.values) for _, items in sorted(model.items.items())]
    for planned in results.study.runs:
        lines = folder.metrics_file(planned.name).read_text().splitlines()
        found += [[json.loads(line)["loss_nats"] for line in lines]]
    return found


def test_it_is_the_study_of_the_model_that_peft_merges(
    study_file: Path, tmp_path: Path, tiny_model_folder: Path, sentence: Sentences
) -> None:
    whole = merged(
        tiny_model_folder,
        tmp_path / "whole",
        peft.PeftModel.from_pretrained(load(tiny_model_folder), str(tmp_path / "start")),
    )
    folders = [StudyFolder(tmp_path / name) for name in ("started", "merged", "plain")]
    no_start = f"{LORA}{{ranks: [2], target_modules: [q_proj, v_proj]}}"
    started, _ = run(study_file, folders[0].root)
    expected, _ = run(study_file, folders[1].root, no_start, f"base_model={whole}")
    plain, _ = run(study_file, folders[2].root, no_start, "methods.full=null")
    ours, theirs = items_and_losses(started, folders[0]), items_and_losses(expected, folders[1])
    assert len(ours) == len(theirs) == 8
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    assert ours[-2] != pytest.approx(items_and_losses(plain, folders[2])[-1], abs=1e-3)
    # what is said of it
    study = started.results.study
    sentence(base_model_name(study.config), names=("tiny-llama", "start"))
    (exported,) = export_runs(
        folders[0], tmp_path, study.runs[0].name, tmp_path, write=partial(write_setup, tool=TRL)
    )
    assert f"model_name_or_path: {study.base_elsewhere}\n" in exported.file.read_text()
    assert any("merge_and_unload" in remark for remark in exported.remarks)
    (card,) = export_runs(folders[0], tmp_path, study.runs[0].name, tmp_path, write=write_card)
    text = card.file.read_text()
    assert base_model_name(study.config) in text
    assert "base_model" not in text
    # what PEFT loads
    saved = folders[0].weights_folder(study.runs[0])
    loaded: Any = peft.AutoPeftModelForCausalLM.from_pretrained(str(saved))
    beside: Any = peft.PeftModel.from_pretrained(load(whole), str(saved))
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(loaded(tokens).logits, beside(tokens).logits, atol=1e-5, rtol=0)
    assert (Path(study.base_elsewhere) / "tokenizer.json").is_file()


def of_head(base: Path, folder: Path) -> Path:
    """An adapter of the head, without the copy of its weights that PEFT saves beside it."""
    adapter(base, folder, target_modules=["q_proj", "lm_head"])
    return rewritten(folder, lambda tensors: tensors.pop(f"{PREFIX}lm_head.base_layer.weight"))


def test_other_bytes_are_another_study(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    def fingerprints() -> set[str]:
        record = plan_study(load_config(study_file)).record
        return {record.base_model_fingerprint, *(each.fingerprint for each in record.runs)}

    on_hub = load_config(study_file, ["methods.lora.start=org/name"])
    assert on_hub.methods.start == Path("org/name")
    assert "org/name" in base_model_name(on_hub)
    before = fingerprints()
    copy = shutil.copytree(tmp_path / "start", tmp_path / "copy")
    again = plan_study(load_config(study_file, [f"methods.lora.start={copy}"]))
    assert again.record.base_model_fingerprint in before  # its place does not matter
    rewritten(copy, lambda tensors: next(iter(tensors.values())).flatten()[:1].add_(0.1))
    with pytest.raises(ModelError) as caught:
        fetch_weights(again.base)
    sentence(caught.value, names=(copy,))
    shutil.rmtree(tmp_path / "start")
    copy.rename(tmp_path / "start")
    assert not fingerprints() & before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder, _: shutil.rmtree(folder), "start"),
        (lambda folder, _: (folder / "adapter_model.safetensors").unlink(), "adapter_model"),
        (lambda folder, _: edited(folder, base_model_name_or_path="org/other"), "org/other"),
        (lambda folder, base: adapter(base, folder, use_dora=True), "use_dora"),
        (
            lambda folder, base: adapter(base, folder, modules_to_save=["lm_head"]),
            "modules_to_save",
        ),
        (lambda folder, base: of_head(base, folder), "lm_head"),
    ],
    ids=["gone", "no weights", "of another base", "DoRA", "modules to save", "of the head"],
)
def test_what_cannot_be_merged_is_a_problem_of_the_plan(
    study_file: Path,
    tmp_path: Path,
    tiny_model_folder: Path,
    change: Callable[[Path, Path], Any],
    named: str,
    sentence: Sentences,
) -> None:
    change(tmp_path / "start", tiny_model_folder)
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file))
    sentence(caught.value, names=("methods.lora.start: ", named))


def test_an_adapter_of_the_plain_base_is_not_imported_beside_it(
    study_file: Path, tmp_path: Path, sentence: Sentences
) -> None:
    with pytest.raises(PlanError) as caught:
        plan_study(load_config(study_file, [f"methods.imported=[{{adapter: {tmp_path}/start}}]"]))
    sentence(caught.value, names=("methods.imported[0]: ", "methods.lora.start"))
