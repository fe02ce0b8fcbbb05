"""A study on a card that refuses flex attention's kernels: products do their work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from rankwise.engine.models import packed_kernels
from rankwise.engine.scoring.tree import attention as tree_attention
from rankwise.records.folder import StudyFolder
from rankwise.records.study_file import load_config
from rankwise.study.planning.plan import plan_study
from rankwise.study.run import run_study
from tests.support.observers import Silent

SETTINGS = (
    "methods.full=null",
    "methods.lora.ranks=[2]",
    "train.epochs=1",
    "analysis={heads: false, spectra: false}",
)
# as inductor says it
REFUSAL = RuntimeError(
    "No valid triton configs. OutOfMemoryError: out of resource: triton_tem_fused_0 "
    "Required: 147456 Hardware limit: 101376"
)


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        return out.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise REFUSAL


def attend(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
    """What flex attention computes, whose backward pass is refused."""
    at = [torch.arange(x.shape[2]) for x in (query, key)]
    seen = given["block_mask"].mask_mod(None, None, at[0][:, None], at[1])
    k, v = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ k.mT * given["scale"]).masked_fill(~seen, -torch.inf)
    out: Any = _Refused.apply(scores.softmax(dim=-1) @ v)
    return out


def refused(*_: Any, **__: Any) -> Tensor:
    raise REFUSAL


@pytest.mark.parametrize("place", ["trial", "forward", "backward"])
def test_a_study_is_finished_by_products(
    place: str,
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = plan_study(load_config(study_file, SETTINGS))
    triton = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: object()))
    monkeypatch.setattr(packed_kernels, "importlib", triton)
    for name in ("_tiles_left", "_said"):
        monkeypatch.setattr(packed_kernels, name, type(getattr(packed_kernels, name))())
    monkeypatch.setattr(packed_kernels, "chosen_kernel", lambda *_, **__: "flex")
    monkeypatch.setattr(tree_attention, "_takes_flex", lambda *_: True)
    monkeypatch.setattr(flex, "flex_attention", attend if place == "backward" else refused)
    if place != "trial":
        monkeypatch.setattr(packed_kernels, "check_flex", lambda *_: None)
    outcome = run_study(plan, StudyFolder(tmp_path / "study"), Silent())
    assert outcome.failures == ()
    assert all(run.run is not None and run.items for run in outcome.results.runs)
    known = packed_kernels._tiles_left
    assert {case.is_trained for case in known} == {False, True}
    assert all(not left for case, left in known.items() if case.is_trained or place != "backward")
    assert len(caplog.records) == 1
    assert "Hardware limit" in caplog.text
