"""What the analysis of weights takes, by arithmetic from shapes and device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.engine.models.devices import Machine
from rankwise.engine.models.structure import LinearShape
from rankwise.records.config.study import AnalysisConfig
from rankwise.records.study_file import load_config
from rankwise.study.observer import StageOutline
from rankwise.study.planning.plan import plan_study
from rankwise.study.stages.graph import stages
from rankwise.study.stages.spectra import decompositions
from rankwise.study.times import Rates, seconds_left

CUDA = torch.device("cuda")
# Llama-3.1-8B on all linear layers: in, out, number
LLAMA_8B = [(4096, 4096, 64), (4096, 1024, 64), (4096, 14336, 64), (14336, 4096, 32)]
PRESETS = Path(__file__).resolve().parents[2] / "rankwise" / "records" / "presets"


def of_8b(machine: Machine) -> Any:
    shapes = [LinearShape(*shape) for *shape, number in LLAMA_8B for _ in range(number)]
    return decompositions(machine, shapes, 8_030_000_000)


def test_shapes_are_counted_and_what_is_kept_of_them_is_known() -> None:
    found = of_8b(Machine(CUDA, 80 * 10**9))
    assert found.shapes == (
        (1024, 4096, 64),
        (4096, 4096, 64),
        (4096, 14336, 32),
        (14336, 4096, 64),
    )
    assert found.kept_bytes == pytest.approx(38.9e9, rel=1e-2)
    assert found.flops == 1e12


@pytest.mark.parametrize(
    ("machine", "flops"),
    [(Machine(CUDA, 24 * 10**9), 200e9), (Machine(torch.device("cpu")), 50e9)],
)
def test_a_card_that_multiplies_float64_slowly_leaves_it_to_the_cpu(
    machine: Machine, flops: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert of_8b(machine).flops == pytest.approx(flops)


@pytest.mark.parametrize(("num_parameters", "expected"), [(10**9, (500, 2)), (10**9 + 1, (128, 0))])
def test_a_large_base_is_analysed_less_closely_unless_it_is_asked_for(
    num_parameters: int, expected: tuple[int, int]
) -> None:
    def chosen(analysis: AnalysisConfig) -> tuple[int, int]:
        return analysis.top_k_of(num_parameters), analysis.null_draws_of(num_parameters)

    assert chosen(AnalysisConfig()) == expected
    assert chosen(AnalysisConfig(top_k=20, null_draws=3)) == (20, 3)
    assert chosen(AnalysisConfig(null_draws=0))[1] == 0


@pytest.mark.parametrize("name", ["paper-llama", "paper-qwen"])
def test_the_presets_of_the_paper_state_its_protocol(name: str) -> None:
    analysis = load_config(PRESETS / f"{name}.yaml").analysis
    assert (analysis.top_k, analysis.null_draws) == (500, 2)


def test_a_study_counts_each_run_and_the_base_once(study_file: Path) -> None:
    settings = ["evaluation.held_out_text=[]", "analysis.null_draws=0", "analysis.top_k=5"]
    here = Machine(torch.device("cpu"), 10**11)
    record = plan_study(load_config(study_file, settings), machine=here).record
    (stage,) = [stage for stage in stages(record) if stage.kind == "spectra"]
    base = sum(
        number * (6 * max(shape) * min(shape) ** 2 + 20 * min(shape) ** 3)
        for *shape, number in record.decompositions.shapes
    )
    adapters = sum(
        number * 20 * min(shape) * min(5 + 8 * rank, min(shape)) ** 2
        for *shape, number in record.decompositions.shapes
        for rank in (2, 4)
    )
    # the base, what full fine-tuning changed, and the sum
    seconds = (3 * base + adapters) / record.decompositions.flops
    assert stage.seconds_by_arithmetic == pytest.approx(seconds)
    off = plan_study(load_config(study_file, [*settings, "analysis.spectra=false"]), machine=here)
    assert off.record.decompositions.shapes == ()


def test_what_is_known_by_arithmetic_counts_until_its_kind_was_seen() -> None:
    weights = StageOutline(
        "w", "spectra", "spectra", "runs", 400.0, None, 100.0, by_arithmetic=80.0
    )
    scoring = StageOutline("s", "scoring", "sums", "base", 50.0, 50, 50.0)
    assert seconds_left([weights, scoring], 10.0) == {"w": 20.0, "s": 5.0}
    assert seconds_left([weights]) == {"w": 20.0}
    done = weights._replace(id="d", work_left=0.0, is_finished=True, seconds=800.0)  # 2 s a unit
    rates = Rates()
    rates.planned([done, weights])
    assert rates.seconds_left({}, 0.0)["w"] > 150.0
