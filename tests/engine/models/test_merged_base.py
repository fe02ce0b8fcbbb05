"""An adapter merged into its base: the same weights as PEFT's merging, made once."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from rankwise.engine.models import start
from rankwise.engine.models.adapter_folder import AdapterFolder
from rankwise.engine.models.base_folder import BaseModel
from rankwise.engine.models.loading import load_model
from rankwise.engine.models.start import fetch_weights
from tests.support.saved_adapters import PATTERNS, saved


@pytest.mark.parametrize("family", ["Llama", "GPT2"])  # whose layers are (in, out)
def test_the_weights_are_those_that_peft_merges(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    adapted = saved(tmp_path / "adapter", family, use_rslora=True, **PATTERNS)
    copy.deepcopy(adapted).unload().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    plain = BaseModel("base", tmp_path / "base", "folder:x")
    adapter = AdapterFolder(tmp_path / "adapter")
    base = start.with_start(plain, str(adapter.path), adapter)
    folder = fetch_weights(base)
    assert str(folder) == base.recorded_name
    with torch.no_grad():  # what the files hold: the merging itself is in float32
        for name, weight in adapted.named_parameters():
            if "lora" not in name:
                weight.copy_(weight.to(torch.bfloat16))
    expected = dict(adapted.merge_and_unload().named_parameters())
    found = dict(load_model(folder, torch.float32).named_parameters())
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=0)
    (tmp_path / "base" / "model.safetensors").unlink()
    assert fetch_weights(base) == folder  # it is there
