"""Optimizers of full fine-tuning against torch's AdamW and planted answers."""

from __future__ import annotations

import importlib
import io
import math
import sys
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise.engine.training.optimizers import (
    StochasticRoundingAdamW,
    has_8bit_adamw,
    make_optimizer,
    optimizer_state_bytes,
    round_stochastically,
)
from rankwise.errors import ModelError

BELOW_ONE = 2.0**-8  # distance from 1.0 to the next smaller bfloat16 number


def weight_of(values: Tensor, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
    return nn.Parameter(values.to(dtype, copy=True))


def train(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[Tensor]) -> None:
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()


def rounded(values: Tensor, seed: int) -> Tensor:
    return round_stochastically(values, torch.Generator().manual_seed(seed))


def gradients_like(weight: Tensor, steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(weight.shape, generator=generator) + 0.3 for _ in range(steps)]


def test_the_mean_of_stochastic_rounding_is_the_number() -> None:
    for value in (1.0 + 0.3 * 2**-7, -1.0 - 0.3 * 2**-7, 3.1415926, -1.7e-30, 1e-40):
        number = float(torch.tensor(value))
        draws = rounded(torch.full((100_000,), number), seed=0).double()
        low, high = float(draws.min()), float(draws.max())
        assert low < number < high
        share = (number - low) / (high - low)
        error = (high - low) * math.sqrt(share * (1 - share) / len(draws))
        assert abs(float(draws.mean()) - number) < 5 * error
        assert len(draws.unique()) == 2
        assert float(torch.nextafter(draws.min().bfloat16(), draws.max().bfloat16())) == high


def test_what_bfloat16_holds_is_never_changed() -> None:
    held = torch.randn(5_000).bfloat16().float()
    held = torch.cat([held, torch.tensor([0.0, -0.0, 1.0, -1.0])])
    for seed in range(20):
        assert torch.equal(rounded(held, seed).float(), held)


def test_nan_and_infinity_stay() -> None:
    # quiet, with a payload in the low bits alone, with every bit set, and the two infinities
    bits = [0x7FC00000, 0x7F800001, 0x7F80FFFF, 0x7FFFFFFF, -1, -(1 << 23) + 1, 0x7F800000]
    values = torch.tensor([*bits, -(1 << 23)], dtype=torch.int32).view(torch.float32)
    for seed in range(50):
        result = rounded(values, seed)
        assert result[:6].isnan().all()
        assert result[6:].tolist() == [math.inf, -math.inf]
    largest = torch.full((50,), torch.finfo(torch.float32).max)
    allowed = {torch.finfo(torch.bfloat16).max, math.inf}
    assert set(rounded(largest, 0).tolist()) <= allowed
    assert set(rounded(-largest, 0).tolist()) <= {-each for each in allowed}


def test_a_nan_gradient_gives_a_nan_weight_and_leaves_the_others() -> None:
    weight = weight_of(torch.ones(3))
    gradient = torch.tensor([math.nan, 1.0, 1.0])
    train(weight, StochasticRoundingAdamW([weight], lr=0.1, seed=0), [gradient])
    assert weight.isnan().tolist() == [True, False, False]


def test_steps_far_below_the_resolution_arrive_in_the_mean() -> None:
    rate, steps, count = 1e-4, 20, 40_000
    gradients = [torch.ones(count)] * steps  # of constant sign: AdamW's step is the rate itself
    plain = weight_of(torch.ones(count))
    train(plain, torch.optim.AdamW([plain], lr=rate, weight_decay=0.0), gradients)
    assert torch.equal(plain, torch.ones_like(plain))  # rounding to the nearest loses them all

    weight = weight_of(torch.ones(count))
    optimizer = make_optimizer([weight], name="adamw", learning_rate=rate, weight_decay=0.0, seed=3)
    assert isinstance(optimizer, StochasticRoundingAdamW)
    train(weight, optimizer, gradients)
    moved = 1 - float(weight.detach().double().mean())
    error = math.sqrt(steps * rate * BELOW_ONE / count)
    assert abs(moved - steps * rate) < 5 * error


def test_over_seeds_the_mean_weight_is_that_of_float32() -> None:
    start = torch.linspace(0.5, 2.0, 16).bfloat16().float()
    gradients = gradients_like(start, 10)
    exact = weight_of(start, torch.float32)
    train(exact, torch.optim.AdamW([exact], lr=3e-4, weight_decay=0.1), gradients)
    ends = []
    for seed in range(400):
        weight = weight_of(start)
        optimizer = StochasticRoundingAdamW([weight], lr=3e-4, weight_decay=0.1, seed=seed)
        train(weight, optimizer, gradients)
        ends.append(weight.detach().double())
    draws = torch.stack(ends)
    error = draws.std(0) / math.sqrt(len(draws))
    # gradients are rounded to bfloat16 on the way, which moves the exact answer by 1e-6 or so
    assert ((draws.mean(0) - exact.detach()).abs() < 4.5 * error + 5e-6).all()


def test_one_step_is_a_neighbour_of_the_float32_step() -> None:
    start = torch.randn(5_000).bfloat16().float()
    gradient = torch.randn(5_000).bfloat16().float()
    exact, weight = weight_of(start, torch.float32), weight_of(start)
    train(exact, torch.optim.AdamW([exact], lr=1e-3, weight_decay=0.1), [gradient])
    train(weight, StochasticRoundingAdamW([weight], lr=1e-3, weight_decay=0.1), [gradient])
    difference = (weight.detach().float() - exact.detach()).abs()
    assert (difference <= exact.detach().abs() * 2**-7 + 1e-7).all()
    assert difference.max() > 0


def test_a_float32_trajectory_is_that_of_torch() -> None:
    start = torch.randn(40, 30)
    gradients = gradients_like(start, 60)
    expected, weight = weight_of(start, torch.float32), weight_of(start, torch.float32)
    train(expected, torch.optim.AdamW([expected], lr=1e-2, weight_decay=0.3), gradients)
    train(weight, StochasticRoundingAdamW([weight], lr=1e-2, weight_decay=0.3), gradients)
    torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_trajectory_stays_near_that_of_torch() -> None:
    start = torch.randn(4_000).bfloat16().float()
    gradients = [each.bfloat16().float() for each in gradients_like(start, 100)]
    exact, weight = weight_of(start, torch.float32), weight_of(start)
    train(exact, torch.optim.AdamW([exact], lr=1e-2, weight_decay=0.1), gradients)
    train(weight, StochasticRoundingAdamW([weight], lr=1e-2, weight_decay=0.1), gradients)
    difference = (weight.detach().float() - exact.detach()).double()
    travelled = (exact.detach() - start).double()
    # 100 roundings of weights of size 1 to steps of 2^-8 or 2^-7 are a random walk
    assert float(difference.square().mean().sqrt()) < 10 * 2**-8
    assert abs(float(difference.mean())) < 5 * 10 * 2**-8 / math.sqrt(4_000)
    assert abs(float(difference.mean())) < 0.01 * abs(float(travelled.mean()))


def test_decay_is_decoupled_from_the_gradient() -> None:
    weight = weight_of(torch.full((20_000,), 2.0))
    optimizer = StochasticRoundingAdamW([weight], lr=1e-2, weight_decay=0.1)
    train(weight, optimizer, [torch.zeros(20_000)] * 10)
    assert float(weight.detach().double().mean()) == pytest.approx(2 * (1 - 1e-3) ** 10, abs=5e-4)
    moments = optimizer.state[weight]
    assert not moments["exp_avg"].any()
    assert not moments["exp_avg_sq"].any()


def test_a_saved_training_goes_on_bit_for_bit() -> None:
    start = torch.randn(300)
    gradients = gradients_like(start, 12)
    weight = weight_of(start)
    optimizer = StochasticRoundingAdamW([weight], lr=1e-3, weight_decay=0.1, seed=5)
    train(weight, optimizer, gradients[:5])
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    middle = weight.detach().clone()
    train(weight, optimizer, gradients[5:])

    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    ends = {}
    for seed in (99, 100):
        resumed = weight_of(middle)
        other = StochasticRoundingAdamW([resumed], lr=0.5, weight_decay=0.0, seed=seed)
        other.load_state_dict(saved)
        if seed == 100:
            other.generator.manual_seed(seed)
        assert other.state[resumed]["exp_avg_sq"].dtype == torch.float32
        train(resumed, other, gradients[5:])
        ends[seed] = resumed.detach()
    assert torch.equal(ends[99], weight)
    assert not torch.equal(ends[100], weight)  # the moments alone do not make it so
    del saved["generator"]
    with pytest.raises(ModelError, match="random generator"):
        other.load_state_dict(saved)


def test_the_seed_decides() -> None:
    ends = []
    for seed in (1, 1, 2):
        weight = weight_of(torch.ones(1_000))
        optimizer = StochasticRoundingAdamW([weight], lr=1e-3, seed=seed)
        torch.manual_seed(len(ends))  # the global generator has no say
        train(weight, optimizer, [torch.ones(1_000)] * 3)
        ends.append(weight.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_schedulers_closures_and_frozen_weights() -> None:
    moving, frozen = weight_of(torch.ones(4), torch.float32), weight_of(torch.ones(4))
    optimizer = StochasticRoundingAdamW([moving, frozen], lr=0.5, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = moving.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    scheduler.step()
    optimizer.step(closure)
    assert moving.detach().tolist() == pytest.approx([1 - 0.5 - 0.25] * 4)
    assert frozen.detach().tolist() == [1.0] * 4


def test_float32_weights_get_torch_s_adamw() -> None:
    start = torch.randn(30, 20)
    expected, weight = weight_of(start, torch.float32), weight_of(start, torch.float32)
    gradients = gradients_like(start, 20)
    optimizer = make_optimizer([weight], name="adamw", learning_rate=1e-3, weight_decay=0.1, seed=0)
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults["fused"]
    train(expected, torch.optim.AdamW([expected], lr=1e-3, weight_decay=0.1), gradients)
    train(weight, optimizer, gradients)
    torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


def test_other_dtypes_and_several_devices_are_refused() -> None:
    half = weight_of(torch.ones(3), torch.float16)
    with pytest.raises(ModelError, match=r"torch\.float16 cannot be trained"):
        make_optimizer([half], name="adamw", learning_rate=1.0, weight_decay=0.0, seed=0)
    elsewhere = nn.Parameter(torch.ones(3, device="meta", dtype=torch.bfloat16))
    with pytest.raises(ModelError, match="on cpu, meta cannot"):
        StochasticRoundingAdamW([weight_of(torch.ones(3)), elsewhere], lr=1.0)


def test_bytes_of_gradient_and_moments() -> None:
    assert optimizer_state_bytes(1_000, torch.float32, "adamw") == 12_000
    assert optimizer_state_bytes(1_000, torch.bfloat16, "adamw") == 10_000
    assert optimizer_state_bytes(1_024, torch.bfloat16, "adamw_8bit") == 1_024 * 4 + 2 * 4 * 4
    assert optimizer_state_bytes(1_025, torch.float32, "adamw_8bit") == 1_025 * 6 + 2 * 5 * 4


def eight_bit(weights: list[nn.Parameter], rate: float = 1e-3) -> Any:
    return make_optimizer(weights, name="adamw_8bit", learning_rate=rate, weight_decay=0.0, seed=0)


def test_8bit_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ModelError, match=r"pip install '\.\[torchao\]'"):
        eight_bit([weight_of(torch.ones(3), torch.float32)])


def test_8bit_of_bitsandbytes_alone_refuses_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    module = SimpleNamespace(AdamW8bit=torch.optim.SGD)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    with pytest.raises(ModelError, match="lose small steps"):
        eight_bit([weight_of(torch.ones(3))])
    made = eight_bit([weight_of(torch.ones(3), torch.float32)])
    assert type(made) is torch.optim.SGD
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (1e-3, 0.0)


def test_8bit_without_a_compiler_fails_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", SimpleNamespace())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ModelError, match="no C\\+\\+ compiler no-such-compiler"):
        eight_bit([weight_of(torch.ones(3))])


def test_whether_8_bits_can_be_trained_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim", SimpleNamespace())
    monkeypatch.setenv("CXX", "no-such-compiler")
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert (has_8bit_adamw(cpu), has_8bit_adamw(card)) == (False, True)
    monkeypatch.setenv("CXX", sys.executable)
    assert has_8bit_adamw(cpu)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    assert (has_8bit_adamw(cpu), has_8bit_adamw(card)) == (False, False)


def importable(name: str) -> Any:
    return pytest.importorskip(name, exc_type=ImportError)


def test_8bit_of_torchao_follows_adamw_and_rounds_stochastically() -> None:
    importable("torchao.optim")
    start = torch.randn(64, 128)
    gradients = gradients_like(start, 6)
    expected, exact = weight_of(start, torch.float32), weight_of(start, torch.float32)
    train(expected, torch.optim.AdamW([expected], lr=1e-3, weight_decay=0.0), gradients)
    train(exact, eight_bit([exact]), gradients)
    distance = (exact - expected).detach().norm() / (expected.detach() - start).norm()
    assert 0 < float(distance) < 0.03

    weight = weight_of(torch.ones(64, 128))
    optimizer = eight_bit([weight], rate=2e-4)
    torch.manual_seed(0)
    train(weight, optimizer, [torch.ones(64, 128)] * 6)
    moved = 1 - float(weight.detach().double().mean())
    error = math.sqrt(6 * 2e-4 * BELOW_ONE / weight.numel())
    assert abs(moved - 6 * 2e-4) < 5 * error


def test_8bit_of_torchao_keeps_small_moments_in_float32_when_loaded() -> None:
    importable("torchao.optim")
    weight = weight_of(torch.ones(100))
    optimizer = eight_bit([weight])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (step + 1))
    gradients = gradients_like(weight, 4)
    for gradient in gradients:
        train(weight, optimizer, [gradient])
        scheduler.step()
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3 / 5)
    saved = deepcopy(optimizer.state_dict())  # torch shares the step count otherwise
    copy = weight_of(weight.detach())
    resumed = eight_bit([copy])
    resumed.load_state_dict(saved)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert resumed.state[copy][moment].dtype == torch.float32
        assert torch.equal(resumed.state[copy][moment], optimizer.state[weight][moment])
    for each, its in ((weight, optimizer), (copy, resumed)):
        torch.manual_seed(id(each))  # what was drawn before does not matter
        train(each, its, gradients)
    assert torch.equal(weight, copy)


def test_8bit_of_bitsandbytes_follows_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    importable("bitsandbytes.optim")
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    start = torch.randn(64, 128)
    gradients = gradients_like(start, 6)
    expected, weight = weight_of(start, torch.float32), weight_of(start, torch.float32)
    train(expected, torch.optim.AdamW([expected], lr=1e-3, weight_decay=0.0), gradients)
    optimizer = eight_bit([weight])
    assert isinstance(optimizer, importlib.import_module("bitsandbytes.optim").AdamW8bit)
    train(weight, optimizer, gradients)
    distance = (weight - expected).detach().norm() / (expected.detach() - start).norm()
    assert 0 < float(distance) < 0.03
