"""The benchmark of cards: its checks pass, on a CPU at toy size too, and they can fail."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as benchmark
from benchmarks.gpu import kernels, ratios, scoring, spectra, training
from benchmarks.gpu.__main__ import SECTIONS, Section, failed, in_a_process, run_section
from benchmarks.gpu.setting import CPU, Found, Setup, no_other_reads
from rankwise.engine.models.frozen_adapters import FrozenBank
from rankwise.engine.models.packed_kernels import grouped_attention
from rankwise.engine.training import loop

ROOT = Path(__file__).resolve().parents[1]
TOY = Setup(CPU, is_tiny=True)
OF_8B = {name for name, section in SECTIONS.items() if section.gigabytes}  # no check on a CPU
quiet = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


# those of 3B and 1B have the parts of 8B's, and at toy size its model
ALL_PARTS = [name for name, section in SECTIONS.items() if section.size == "8b"]


@quiet
@pytest.mark.parametrize("name", ALL_PARTS)
def test_every_section_runs_at_toy_size_on_a_cpu(name: str) -> None:
    found = run_section(name, TOY)
    assert failed(found.checks) == []
    assert found.checks or found.timings
    judged = [check for check in found.checks.values() if "ok" in check]
    assert all(check["why"] for check in judged)
    skipped = [check["skipped"] for check in found.checks.values() if "skipped" in check]
    assert all(skipped)
    assert bool(judged) == (name not in OF_8B)
    json.dumps(vars(found), allow_nan=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", sorted(SECTIONS.keys() - OF_8B))
def test_every_check_holds_on_a_card(name: str) -> None:
    assert failed(run_section(name, Setup(torch.device("cuda", 0))).checks) == []


def test_the_command_prints_one_object_and_writes_it(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = ["-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, *command, "--section", "attention"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    summary = json.loads(done.stdout.splitlines()[-1])
    assert set(summary) == {"ok", "failed", "env", "checks", "timings", "seconds"}
    assert (summary["ok"], summary["failed"]) == (True, [])
    assert summary["env"]["torch"] == torch.__version__
    assert any(name.startswith("attention.grouped.float32") for name in summary["checks"])
    assert json.loads(output.read_text()) == summary


def test_it_needs_neither_lm_eval_nor_datasets_to_begin() -> None:
    asked = (
        "import sys, benchmarks.gpu.__main__;"
        "print({'lm_eval', 'datasets', 'pytest'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


def test_a_smaller_card_is_timed_with_smaller_models() -> None:
    def usual(gigabytes: float | None) -> set[str]:
        return {
            name
            for name, section in SECTIONS.items()
            if section.is_usual(gigabytes) and section.gigabytes <= (gigabytes or 1e9)
        }

    assert usual(80.0) == {*ALL_PARTS}
    of_24_gb = {
        f"{kind}_{size}" for kind in ("train_ratio", "score_ratio") for size in ("1b", "3b")
    }
    assert usual(24.0) == {*ALL_PARTS} - OF_8B | of_24_gb | {"memory_3b"}
    assert usual(None) == {*ALL_PARTS}
    for name in of_24_gb:
        assert SECTIONS[name].others == SECTIONS[name[:-3]].others


def test_what_is_not_meant_to_be_read_from_the_card_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with no_other_reads(Setup(torch.device("cuda", 0))) as read:
        assert torch.ones(2).tolist() == [1.0, 1.0]
        assert modes == ["error", "default", "error"]
    assert modes[-1] == "default"
    assert read == []  # it was not on the card
    with no_other_reads(TOY) as read:
        torch.ones(2).cpu()
        torch.ones(2).tolist()
    assert read == ["cpu", "tolist"]
    assert torch.ones(1).tolist() == [1.0]
    assert len(read) == 2


# what goes wrong


def test_a_process_that_ends_or_takes_too_long_costs_its_section(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "false")
        ended = in_a_process("spectra", [], {})
    assert ended == {"checks": {"spectra": {"ok": False, "error": "it ended with 1"}}}
    monkeypatch.setitem(SECTIONS, "spectra", Section(0))
    slow = in_a_process("spectra", ["--device", "cpu"], {})
    assert slow == {"checks": {"spectra": {"ok": False, "error": "not done after 0 s"}}}
    assert capsys.readouterr().err.count("failed: spectra") == 2


def test_the_others_go_on_and_the_exit_code_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(name: str, *_: Any) -> dict[str, Any]:
        return {"checks": {name: {"ok": name != "train"}}, "timings": {f"{name}_s": 1.0}}

    monkeypatch.setattr(benchmark, "in_a_process", answered)
    assert benchmark.main(["--device", "cpu", "--quick"]) == 1
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["ok"], summary["failed"]) == (False, ["train"])
    quick = {name for name, section in SECTIONS.items() if section.quick}
    assert set(summary["checks"]) == quick == {"attention", "train", "score", "oom"}
    assert benchmark.main(["--device", "cpu", "--section", "spectra"]) == 0


def test_a_part_that_raises_is_a_failed_check_and_the_next_one_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def breaks(setup: Setup, found: Found) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def holds(setup: Setup, found: Found) -> None:
        found.check("next", 1.0, 2.0, "planted")

    monkeypatch.setitem(SECTIONS, "spectra", Section(9, (), (breaks, holds)))
    found = run_section("spectra", TOY)
    (name,) = failed(found.checks)
    assert name.endswith(".breaks")
    assert "illegal memory access" in found.checks[name]["error"]
    assert found.checks["next"]["ok"]


@pytest.mark.parametrize(("value", "is_ok"), [(2.0, True), (2.1, False), (math.nan, False)])
def test_a_value_may_not_be_above_its_limit(value: float, is_ok: bool) -> None:
    found = Found()
    found.check("planted", value, 2.0, "why")
    assert found.checks["planted"]["ok"] is is_ok
    json.dumps(found.checks, allow_nan=False)


def test_a_kernel_that_sees_its_neighbours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def as_one(query: Any, key: Any, value: Any, layout: Any, terms: Any) -> torch.Tensor:
        whole = type(layout)((layout.num_tokens,))
        return grouped_attention(query, key, value, whole, terms)

    monkeypatch.setitem(kernels.KERNELS, "grouped", as_one)
    found = Found()
    kernels.attention(TOY, found)
    assert len(failed(found.checks)) == 4


def test_an_error_of_memory_that_is_not_survived_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(answer: Any, *_: Any) -> Any:  # training tries no second time
        return answer(lambda _: None)

    monkeypatch.setattr(loop, "in_smaller_steps", once)
    found = run_section("oom", TOY)
    assert failed(found.checks) == ["oom.training.out_of_memory"]
    assert found.checks["oom.score"]["ok"]


def test_an_optimizer_that_goes_on_without_memory_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "no_memory_for", lambda _: contextlib.nullcontext())
    found = Found()
    training.out_of_optimizer_memory(TOY, found)
    assert failed(found.checks) == [
        "oom.optimizer.moments.refused",
        "oom.optimizer.step.refused",
    ]


@pytest.mark.parametrize(
    ("allocated", "reserved", "bad"),
    [(8.0, 8.8, []), (11.2, 11.2, ["full"]), (10.0, 12.0, ["full.reserved"])],
)
def test_memory_of_more_than_the_plan_is_found(
    allocated: float, reserved: float, bad: list[str]
) -> None:
    found = Found()
    held = {"allocated": int(allocated * 1e9), "reserved": int(reserved * 1e9)}
    card = Setup(torch.device("cuda", 0))
    training.compare(card, found, "full", int(10e9), held, may_take_less=True)
    assert failed(found.checks) == bad
    exact = Found()
    training.compare(card, exact, "lora", int(10e9), held)
    assert ("lora" in failed(exact.checks)) == (abs(allocated - 10) > 1)


@pytest.mark.parametrize(
    ("card", "peak"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("AMD EPYC", None)],
)
def test_the_share_of_a_cards_peak(card: str, peak: float | None) -> None:
    # 4 FLOP for each of 8 billion weights and 10,000 tokens in a second
    share = ratios.mfu(10_000.0, 8_000_000_000, card)
    assert share == (None if peak is None else pytest.approx(3.2e14 / peak, rel=1e-3))


def test_a_guard_that_lets_everything_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(*_: Any) -> None: ...

    monkeypatch.setattr(scoring, "refuse_unapplied", blind)
    found = Found()
    scoring.guard(TOY, found)
    assert found.checks["guard"]["value"] == 3


def test_adapters_on_the_wrong_rows_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of = FrozenBank.rows_of

    def swapped(self: FrozenBank, pieces: Sequence[Any]) -> Any:
        turned = [piece.adapter for piece in reversed(pieces)]
        return rows_of(self, [p._replace(adapter=a) for p, a in zip(pieces, turned, strict=True)])

    monkeypatch.setattr(FrozenBank, "rows_of", swapped)
    found = Found()
    scoring.company(TOY, found)
    assert "score.company.25" in failed(found.checks)


def test_singular_vectors_that_are_off_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(matrix: torch.Tensor) -> Any:
        found = spectra.Svd(*torch.linalg.svd(matrix.double(), full_matrices=False))
        return found._replace(U=found.U.flip(1))

    monkeypatch.setattr(spectra, "gram_svd", off)
    found = Found()
    spectra.decompositions(TOY, found)
    assert {name.rpartition(".")[2] for name in failed(found.checks)} == {"vectors"}
