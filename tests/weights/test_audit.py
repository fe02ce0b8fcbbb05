"""Audits: planted answers for adapters and checkpoints, and refusals by name."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from rankwise.engine.models.adapter_folder import WEIGHTS_FILE
from rankwise.errors import ModelError, UnchangedOutputsError
from rankwise.records.audits import AuditRecord
from rankwise.records.spectra import EPSILONS, MatrixSpectrum, intruders_of
from rankwise.report.page import audit_page
from rankwise.report.rendering import rendered
from rankwise.weights.audit import AuditScores, audit, find_audited
from tests.support.audited_models import (
    PREFIX,
    Q,
    adapter,
    checkpoint,
    edited,
    load,
    merged,
    plant_intruder,
    rewritten,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def look(base: Path, target: Path, **options: Any) -> AuditRecord:
    found = find_audited(str(base), target, **options)
    return audit(found, top_k=20, null_draws=1)


def by_module(record: AuditRecord) -> dict[str, MatrixSpectrum]:
    return {each.module: each for each in record.matrices}


# what is found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {
            "use_rslora": True,
            "rank_pattern": {"down_proj": 7},
            "alpha_pattern": {"layers.0.*": 3},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_norms_and_ranks_are_those_of_peft_s_delta(
    options: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = adapter(tiny_model_folder, tmp_path / "a", **options)
    record = look(tiny_model_folder, tmp_path / "a")
    found = by_module(record)
    assert len(found) == 4
    for name, each in found.items():
        layer = model.get_submodule(f"{PREFIX}{name}")
        delta: Tensor = layer.get_delta_weight("default").detach().double()
        assert each.update.frobenius_norm == pytest.approx(float(delta.norm()), rel=1e-5)
        S = torch.linalg.svdvals(delta)
        assert each.update.rank == int((1e-5 * S[0] < S).sum())
        share = S.square().cumsum(0) / S.square().sum()
        assert each.update.energy_rank_90 == int((share < 0.9).sum()) + 1
    ranks = {each.update.rank for each in found.values()}
    assert record.ranks == tuple(sorted(each for each in ranks if each is not None))
    total = sum(each.update.frobenius_norm**2 for each in found.values()) ** 0.5
    assert record.frobenius_norm == pytest.approx(total)
    assert record.warnings == ()


def test_what_a_cut_keeps_is_computed_by_hand(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = adapter(tiny_model_folder, tmp_path / "a", r=12)
    record = look(tiny_model_folder, tmp_path / "a")
    squares = [
        torch.linalg.svdvals(module.get_delta_weight("default").detach().double()).square()
        for module in model.modules()
        if hasattr(module, "get_delta_weight")
    ]
    assert [each.rank for each in record.kept] == list(range(1, 13))
    for each in record.kept:
        kept = [float(s[: each.rank].sum() / s.sum()) for s in squares]
        together = sum(float(s[: each.rank].sum()) for s in squares)
        assert each.share == pytest.approx(together / sum(float(s.sum()) for s in squares))
        assert each.lowest == pytest.approx(min(kept))
    assert record.cut is not None
    assert (record.cut.rank, record.cut.share) == (12, pytest.approx(1.0))
    assert "needs its full rank" in record.statements[0]


def test_a_matrix_that_uses_few_dimensions_can_be_cut(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", r=16)

    def flatten(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name:
                tensor[:, 3:] *= 1e-3

    rewritten(tmp_path / "a", flatten)
    record = look(tiny_model_folder, tmp_path / "a")
    assert record.cut is not None
    assert record.cut.rank == 4
    assert record.cut.share > 0.9999
    assert record.statements[0].startswith("This rank-16 adapter uses about ")
    assert record.statements[0].endswith("Truncated to rank 4 it keeps 99.9 % of its energy.")


def test_the_modules_and_layers_that_use_their_rank_are_named(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a", r=8, target_modules=["q_proj", "v_proj"])

    def flatten(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "lora_B" in name and "q_proj" in name:
                tensor[:, 1:] *= 1e-4  # one dimension
            elif "lora_B" in name and "layers.1." in name:
                tensor[:, 2:] *= 1e-4

    rewritten(tmp_path / "a", flatten)
    record = look(tiny_model_folder, tmp_path / "a")
    text = record.statements[1]
    v_proj, q_proj = (float(part.split()[1]) for part in re.findall(r"[vq]_proj [0-9.]+", text))
    assert q_proj == 1.0 < v_proj
    assert text.index("v_proj") < text.index("q_proj")
    assert "most in layer 0 (" in text
    assert "least in layer 1 (" in text


def test_a_planted_intruder_is_found_beside_none_under_random_directions(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    record = look(tiny_model_folder, plant_intruder(tiny_model_folder, tmp_path / "a"))
    counts = {
        each.module: intruders_of(each.change, each.leading, EPSILONS) for each in record.matrices
    }
    assert counts[Q] == 1
    assert sum(counts.values()) == 1
    assert any(text.startswith("1 intruder dimension in 1 matrix is") for text in record.statements)
    assert any("of 2 is unchanged" in text for text in record.statements)


def test_a_zero_adapter_turns_nothing(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a", std=0.0)
    record = look(tiny_model_folder, tmp_path / "a")
    assert record.is_zero
    assert (record.kept, record.cut) == ((), None)
    for each in record.matrices:
        assert each.change.left.index_matched == pytest.approx([1.0] * len(each.leading))
        assert intruders_of(each.change, each.leading, EPSILONS) == 0
        assert each.gaussian_null is None
        assert each.update.stable_rank == each.update.effective_rank == 0.0
    assert record.statements == (
        "This rank-4 adapter changes no weight matrix: its update is zero.",
    )
    assert "its update is zero" in rendered(audit_page(record))


def test_a_merged_adapter_is_found_in_the_checkpoint(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = adapter(tiny_model_folder, tmp_path / "a", std=0.2)
    own = by_module(look(tiny_model_folder, tmp_path / "a"))
    record = look(tiny_model_folder, merged(tiny_model_folder, tmp_path / "m", model))
    full = by_module(record)
    assert record.kind == "checkpoint"
    assert record.ranks == ()
    assert len(full) == 14  # every linear layer below the head
    for name, each in full.items():
        if name not in own:
            assert each.update.frobenius_norm == 0.0
            continue
        wanted = own[name]
        assert each.update.rank is None
        norm = pytest.approx(wanted.update.frobenius_norm, rel=1e-4)
        assert each.update.frobenius_norm == norm
        assert each.update.energy_rank_99 == wanted.update.energy_rank_99
        assert each.update.energy_rank_90 == wanted.update.energy_rank_90
        matched = each.change.left.index_matched
        assert matched == pytest.approx(wanted.change.left.index_matched, abs=1e-4)
        assert each.change.intruders == wanted.change.intruders
    assert record.other_changes == ()
    assert any("10 matrices of 14 are unchanged" in text for text in record.statements)
    assert record.statements[-1] == "Nothing outside the linear layers below the head changed."


def test_what_a_checkpoint_changed_beside_its_matrices(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] *= 1.5
        tensors["model.embed_tokens.weight"] *= 1.25

    record = look(tiny_model_folder, checkpoint(tiny_model_folder, tmp_path / "c", change))
    assert record.is_zero
    changes = {each.name: each.relative_norm for each in record.other_changes}
    assert changes == {
        "model.norm.weight": pytest.approx(0.5),
        "model.embed_tokens.weight": pytest.approx(0.25),  # tied to the head: once
    }
    assert record.other_changes[0].name == "model.norm.weight"
    assert "model.norm.weight changed (by 50 %), and 1 parameter less" in record.statements[-1]


def test_an_untied_head_counts_for_itself(tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = checkpoint(tiny_model_folder, tmp_path / "c", lambda tensors: None)
    untie(folder)
    rewritten(folder, lambda t: t["model.embed_tokens.weight"].mul_(1.25), "model.safetensors")
    rewritten(folder, lambda t: t["lm_head.weight"].mul_(1.5), "model.safetensors")
    changes = {
        each.name: each.relative_norm for each in look(tiny_model_folder, folder).other_changes
    }
    assert changes == {
        "lm_head.weight": pytest.approx(0.5),
        "model.embed_tokens.weight": pytest.approx(0.25),
    }


def untie(folder: Path) -> None:
    """Give the head separate weights."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": False}))

    def copy(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewritten(folder, copy, "model.safetensors")


def test_what_was_zero_is_no_other_size(tiny_model_folder: Path, tmp_path: Path) -> None:
    def zero(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"].zero_()

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] += 0.5
        tensors["model.layers.0.input_layernorm.weight"] *= 1.5

    base = checkpoint(tiny_model_folder, tmp_path / "base", zero)
    record = look(base, checkpoint(base, tmp_path / "c", change))
    first, second = record.other_changes
    assert (first.name, first.change) == ("model.layers.0.input_layernorm.weight", "moved")
    assert (second.name, second.change) == ("model.norm.weight", "from_zero")
    assert second.norm == pytest.approx(0.5 * 48**0.5)
    assert second.relative_norm is None
    assert record.statements[-1].endswith("changed (by 50 %), and 1 other parameter changed too.")
    alone = look(base, checkpoint(base, tmp_path / "d", lambda t: t["model.norm.weight"].add_(0.5)))
    assert alone.statements[-1].endswith("changed (from zero to a norm of 3.46).")


def test_another_size_is_told_and_stands_first(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load(tiny_model_folder)
    model.model.norm.weight.data *= 1.5
    model.resize_token_embeddings(model.config.vocab_size + 8)
    model.save_pretrained(tmp_path / "c")
    record = look(tiny_model_folder, tmp_path / "c")
    assert [each.change for each in record.other_changes][-1] == "moved"
    assert record.other_changes[0].change == "resized"
    assert "model.embed_tokens.weight has another size" in record.statements[-1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_taken_as_their_exact_values(
    dtype: torch.dtype, tiny_model_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    load(base).to(dtype).save_pretrained(base)
    exact = tmp_path / "exact"
    shutil.copytree(base, exact)
    load(base).save_pretrained(exact)
    adapter(base, tmp_path / "a")
    rewritten(tmp_path / "a", lambda t: t.update({n: w.to(dtype) for n, w in t.items()}))
    half, single = (look(each, tmp_path / "a", any_base=True) for each in (base, exact))
    assert half.matrices == single.matrices
    assert half.frobenius_norm > 0


def test_a_rank_above_the_matrix_s(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a", r=64)
    record = look(tiny_model_folder, tmp_path / "a")
    assert record.ranks == (64,)
    assert record.kept[-1].rank == 48
    assert record.kept[-1].share == pytest.approx(1.0)


def test_another_model_is_told_by_its_size(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = load(tiny_model_folder)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = LlamaForCausalLM(model.config)
    other.save_pretrained(tmp_path / "other")
    (warning,) = look(tiny_model_folder, tmp_path / "other").warnings
    assert "no fine-tuning is that large" in warning


def test_a_checkpoint_that_answers_as_its_base_does_is_not_believed(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q}.weight"] *= 1.5

    target = checkpoint(tiny_model_folder, tmp_path / "c", change)
    found = find_audited(str(tiny_model_folder), target)
    same = AuditScores(precision="float32", answers_as_base=True)
    with pytest.raises(UnchangedOutputsError, match="the base was scored in its place"):
        audit(found, 20, 0, scored=same)
    copy = checkpoint(tiny_model_folder, tmp_path / "copy", lambda tensors: None)
    untouched = find_audited(str(tiny_model_folder), copy)
    assert audit(untouched, 20, 0, scored=same).is_zero


# what is refused


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("use_dora", {"use_dora": True}),
        ("modules_to_save", {"modules_to_save": ["lm_head"]}),
        ("lora_bias", {"lora_bias": True, "target_modules": ["q_proj"]}),
        ("bias", {"bias": "all"}),
    ],
)
def test_more_than_plain_lora_is_refused_by_name(
    name: str, options: dict[str, Any], tiny_model_folder: Path, tmp_path: Path
) -> None:
    if name == "lora_bias":
        adapter(tiny_model_folder, tmp_path / "a")
        edited(tmp_path / "a", lora_bias=True)
    else:
        adapter(tiny_model_folder, tmp_path / "a", **options)
    with pytest.raises(ModelError, match=rf"more than plain LoRA \({name}"):
        look(tiny_model_folder, tmp_path / "a")


def test_target_parameters_are_refused_by_name(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    edited(tmp_path / "a", target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(ModelError, match=r"more than plain LoRA \(target_parameters"):
        look(tiny_model_folder, tmp_path / "a")


def test_pickled_weights_are_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    (tmp_path / "a" / WEIGHTS_FILE).rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"other formats can run code"):
        look(tiny_model_folder, tmp_path / "a")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(
    bad: float, tiny_model_folder: Path, tmp_path: Path
) -> None:
    adapter(tiny_model_folder, tmp_path / "a")
    rewritten(tmp_path / "a", lambda t: t[f"{PREFIX}{Q}.lora_A.weight"].fill_(bad))
    with pytest.raises(ModelError, match=rf"{Q}: .*NaN or infinite"):
        look(tiny_model_folder, tmp_path / "a")
    for name in (f"{Q}.weight", "model.norm.weight"):
        folder = tmp_path / name
        checkpoint(tiny_model_folder, folder, lambda t, name=name: t[name].view(-1)[:1].fill_(bad))
        with pytest.raises(ModelError, match=rf"NaN or infinite weights in {name[:12]}"):
            look(tiny_model_folder, folder)


def test_a_checkpoint_that_lacks_weights_is_refused(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    folder = checkpoint(tiny_model_folder, tmp_path / "c", lambda t: t.pop(f"{Q}.weight"))
    with pytest.raises(ModelError, match=rf"lacks 1 of its model's weights, such as {Q}"):
        look(tiny_model_folder, folder)


def test_neither_adapter_nor_checkpoint(tiny_model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"neither adapter_config.json .* nor config.json"):
        look(tiny_model_folder, tmp_path)
    with pytest.raises(ModelError, match="not a folder"):
        look(tiny_model_folder, tmp_path / "nowhere")
