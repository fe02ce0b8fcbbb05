"""Changed updates on disk: what PEFT reads of them, and what the config keeps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from rankwise.engine.models.adapter_config import CONFIG_FILE
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.errors import ModelError
from rankwise.weights.lowrank import LowRankUpdate, read_updates, save_updates
from tests.support.saved_adapters import PATTERNS, rewritten, saved
from tests.support.tiny_models import tiny


def delta(update: LowRankUpdate) -> Tensor:
    return update.scaling * update.lora_B.double() @ update.lora_A.double()


def truncated(updates: dict[str, LowRankUpdate], rank: int) -> dict[str, LowRankUpdate]:
    return {name: update.truncated(rank) for name, update in updates.items()}


FAMILIES = ["Llama", "GPT2"]
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora and patterns": {**PATTERNS, "use_rslora": True},
    "conv1d": {"fan_in_fan_out": True},
}


def peft_deltas(folder: Path, family: str) -> dict[str, Tensor]:
    """What PEFT makes of the folder, (out, in)."""
    model: Any = peft.PeftModel.from_pretrained(tiny(family), str(folder))
    found: dict[str, Tensor] = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight"):
            own = module.get_delta_weight("default").double()
            found[name] = own.T if module.fan_in_fan_out else own
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:The following:RuntimeWarning")
@torch.no_grad()
def test_peft_loads_what_was_written_and_has_the_same_delta(
    family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    saved(tmp_path / "whole", family, **options)
    updates = read_updates(AdapterFolder(tmp_path / "whole"))
    for rank in (1, 3):
        found = truncated(updates, rank)
        save_updates(found, tmp_path / str(rank), source=AdapterFolder(tmp_path / "whole"))
        theirs = peft_deltas(tmp_path / str(rank), family)
        assert theirs.keys() == updates.keys()
        for name, own in found.items():
            assert torch.allclose(theirs[name], delta(own), atol=1e-5)
            assert torch.linalg.matrix_rank(theirs[name], rtol=1e-5) <= rank
        again = read_updates(AdapterFolder(tmp_path / str(rank)))
        assert {n: u.rank for n, u in again.items()} == {
            n: min(rank, u.rank) for n, u in updates.items()
        }


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::UserWarning")
@torch.no_grad()
def test_ranks_of_their_own_in_every_layer_are_found_by_peft(family: str, tmp_path: Path) -> None:
    saved(tmp_path / "whole", family)
    updates = read_updates(AdapterFolder(tmp_path / "whole"))
    varied = {
        name: update.truncated(1 + number % 4)
        for number, (name, update) in enumerate(updates.items())
    }
    save_updates(varied, tmp_path / "varied", source=AdapterFolder(tmp_path / "whole"))
    config = json.loads((tmp_path / "varied" / CONFIG_FILE).read_text())
    assert len({config["r"], *config["rank_pattern"].values()}) == 4
    theirs = peft_deltas(tmp_path / "varied", family)
    for name, own in varied.items():
        assert torch.allclose(theirs[name], delta(own), atol=1e-5)


def test_the_config_keeps_what_it_said_of_the_base(tmp_path: Path) -> None:
    saved(tmp_path / "whole", use_rslora=True, lora_dropout=0.25)
    updates = read_updates(AdapterFolder(tmp_path / "whole"))
    save_updates(truncated(updates, 2), tmp_path / "cut", source=AdapterFolder(tmp_path / "whole"))
    before, after = (
        json.loads((tmp_path / name / CONFIG_FILE).read_text()) for name in ("whole", "cut")
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {
        *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"),
        "eva_config",
    }
    assert (after["r"], after["lora_alpha"], after["use_rslora"]) == (2, 2, False)


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    rewritten(tmp_path, lambda tensors: tensors[key].fill_(math.nan))
    with pytest.raises(ModelError, match=r"q_proj: .*NaN or infinite"):
        read_updates(AdapterFolder(tmp_path))


def test_what_is_written_is_the_rounded_update(tmp_path: Path) -> None:
    saved(tmp_path / "whole")
    found = truncated(read_updates(AdapterFolder(tmp_path / "whole")), 2)
    save_updates(found, tmp_path / "cut", source=AdapterFolder(tmp_path / "whole"))
    for name, update in read_updates(AdapterFolder(tmp_path / "cut")).items():
        assert torch.equal(update.lora_A, found[name].as_written.lora_A)
        assert torch.equal(update.lora_B, found[name].as_written.lora_B)
        assert update.scaling == 1.0
