"""Optimizers of adapters and full models: float32 or bfloat16 weights, 8-bit moments."""

from __future__ import annotations

import importlib
import math
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from rankwise.errors import ModelError, to_install
from rankwise.records.study import OptimizerName

EIGHT_BIT_BLOCK = 256
"""Numbers of an 8-bit moment that share one float32 scale, in torchao and in bitsandbytes."""

_FLOAT32_BYTES = 4
_SMALLEST_8BIT_WEIGHT = 4096  # torchao and bitsandbytes keep the moments of smaller ones as floats
MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names in the state of an AdamW
_LOW_BITS = 1 << 16  # bfloat16 is the upper 16 bits of a float32


def make_optimizer(
    weights: Sequence[nn.Parameter],
    *,
    name: OptimizerName,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> torch.optim.Optimizer:
    """An AdamW (betas 0.9 and 0.999, epsilon 1e-8, decoupled weight decay) for these weights.

    ``adamw`` is torch's own for float32 weights (fused on CPU and CUDA, which differs from the
    unfused one by float32 rounding only) and :class:`StochasticRoundingAdamW` as soon as a weight
    is bfloat16. ``adamw_8bit`` is torchao's, which rounds bfloat16 weights stochastically too. If
    torchao is missing it is bitsandbytes', for float32 weights only: it rounds bfloat16 weights to
    the nearest and loses small steps.

    torchao's learning rate is a tensor that has to be changed in place.

    Args:
        weights: to train, on one device, float32 or bfloat16.
        name: of the optimizer.
        learning_rate: of the first step; schedulers may change it.
        weight_decay: share of a weight that is subtracted per step, times the learning rate.
        seed: of the stochastic rounding. torchao draws from torch's global generator, which is
            seeded from this and the step's number before every step.

    Raises:
        ModelError: another dtype or several devices; for ``adamw_8bit``, no package that has it is
            installed, or the C++ compiler that torchao needs on a CPU is missing.
    """
    dtypes = {weight.dtype for weight in weights}
    others = dtypes - {torch.float32, torch.bfloat16}
    if others:
        raise ModelError(
            f"weights of {', '.join(sorted(map(str, others)))} cannot be trained. "
            "Load the model in float32 or bfloat16."
        )
    if name == "adamw_8bit":
        return _adamw_8bit(weights, learning_rate, weight_decay, seed)
    if torch.bfloat16 in dtypes:
        return StochasticRoundingAdamW(
            weights, lr=learning_rate, weight_decay=weight_decay, seed=seed
        )
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights)
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay, fused=fused)
    for weight in weights:  # torch would make it at the first step, when memory may be short
        step = torch.zeros((), device=weight.device if fused else None)
        optimizer.state[weight] = {"step": step} | _moments_of(weight)
    return optimizer


def _moments_of(weight: Tensor) -> dict[str, Tensor]:
    """float32 moments, at zero."""
    return {name: torch.zeros_like(weight, dtype=torch.float32) for name in MOMENTS}


def optimizer_state_bytes(num_weights: int, weights_dtype: torch.dtype, name: OptimizerName) -> int:
    """Bytes of gradients and moments, without the weights themselves.

    A gradient has its weight's dtype. Moments take 8 bytes per weight as float32; in 8 bits 2
    bytes, and one float32 scale per moment and block of 256. Tensors of fewer than 4096 weights,
    which keep their moments as floats, are counted like the others.
    """
    gradients = num_weights * weights_dtype.itemsize
    if name == "adamw":
        return gradients + 2 * num_weights * _FLOAT32_BYTES
    scales = math.ceil(num_weights / EIGHT_BIT_BLOCK)
    return gradients + 2 * (num_weights + scales * _FLOAT32_BYTES)


class StochasticRoundingAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights without a float32 copy of them.

    A bfloat16 number has 8 significant bits: a step below 1/512 of a weight is lost when the sum is
    rounded to the nearest. Here the step is computed in float32, with float32 moments, and the new
    weight is rounded up or down at random, so that its mean is the float32 result. The update is
    ``torch.optim.AdamW``'s. float32 weights in the same optimizer are not rounded.

    The random numbers come from the optimizer's own generator, whose state is in ``state_dict``: a
    training that is resumed equals one that never stopped.

    Arguments are as in ``make_optimizer``; ``lr`` is the learning rate.

    Raises:
        ModelError: weights on several devices, or of another dtype.
    """

    def __init__(
        self,
        weights: Sequence[nn.Parameter],
        *,
        lr: float,
        weight_decay: float = 0.01,
        seed: int = 0,
    ) -> None:
        devices = sorted({str(weight.device) for weight in weights})
        dtypes = {weight.dtype for weight in weights}
        if len(devices) > 1 or dtypes - {torch.float32, torch.bfloat16}:
            raise ModelError(
                f"weights of {', '.join(sorted(map(str, dtypes)))} on {', '.join(devices)} cannot "
                "be rounded stochastically. Put all on one device, as bfloat16 or float32."
            )
        # betas are the decay of the two moments, eps is added to the root of the second
        defaults = {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": weight_decay}
        super().__init__(weights, defaults)
        self.generator = torch.Generator(device=weights[0].device).manual_seed(seed)
        for weight in weights:  # now and not at the first step, when memory may be short
            self.state[weight] = {"step": 0} | _moments_of(weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every weight that has a gradient; the closure's loss if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[weight]
        state["step"] += 1
        rate, (beta1, beta2) = float(group["lr"]), group["betas"]
        gradient = cast(Tensor, weight.grad).float()
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # bias corrections as in torch's AdamW: both moments start at zero
        scale = square.sqrt().div_(math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
        new = weight.float().mul(1 - rate * group["weight_decay"])
        new.addcdiv_(mean, scale, value=-rate / (1 - beta1 ** state["step"]))
        if weight.dtype == torch.bfloat16:
            new = round_stochastically(new, self.generator)
        weight.copy_(new)

    def state_dict(self) -> dict[str, Any]:
        """Moments, settings, and the generator's state as ``generator``."""
        return {**super().state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a ``state_dict``; its moments are copied.

        Raises:
            ModelError: it holds no generator's state, so it is another optimizer's.
        """
        if "generator" not in state_dict:
            raise ModelError(
                "an optimizer state without the state of its random generator was not saved by "
                "StochasticRoundingAdamW. Start the training from the beginning."
            )
        super().load_state_dict(state_dict)
        _restore_float32_moments(self, state_dict)
        self.generator.set_state(state_dict["generator"].cpu())


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to one of the two nearest bfloat16 numbers, at random; the mean is exact.

    A random number below 2^16 is added to the low bits, which are then cut off: the chance of a
    carry is the distance from the number below. NaN, infinity, and numbers that bfloat16 can hold
    do not change.

    Args:
        values: float32, any shape.
        generator: on their device.
    """
    noise = torch.randint(
        _LOW_BITS, values.shape, generator=generator, dtype=torch.int32, device=values.device
    )
    # -_LOW_BITS is the mask of the upper 16 bits
    rounded = noise.add_(values.view(torch.int32)).bitwise_and_(-_LOW_BITS).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def _restore_float32_moments(
    optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]
) -> None:
    """Restore moments that torch has cast to the dtype of their weight when it loaded them."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    for weight, key in zip(weights, keys, strict=True):
        for name, value in state_dict["state"].get(key, {}).items():
            if name in MOMENTS and type(value) is Tensor and value.dtype == torch.float32:
                optimizer.state[weight][name] = value.to(weight.device, copy=True)


def _adamw_8bit(
    weights: Sequence[nn.Parameter], learning_rate: float, weight_decay: float, seed: int
) -> torch.optim.Optimizer:
    has_bfloat16 = any(weight.dtype == torch.bfloat16 for weight in weights)
    try:
        torchao: Any = importlib.import_module("torchao.optim")
    except ImportError as no_torchao:
        try:
            bitsandbytes: Any = importlib.import_module("bitsandbytes.optim")
        except ImportError:
            raise ModelError(
                "optimizer adamw_8bit needs torchao or bitsandbytes, and neither can be imported "
                f"({no_torchao}). Install one: {to_install('torchao')}."
            ) from no_torchao
        if has_bfloat16:
            raise ModelError(
                "optimizer adamw_8bit needs torchao for bfloat16 weights, and torchao cannot be "
                f"imported ({no_torchao}); bitsandbytes would lose small steps. "
                f"Install it: {to_install('torchao')}."
            ) from no_torchao
        return bitsandbytes.AdamW8bit(weights, lr=learning_rate, weight_decay=weight_decay)
    if any(weight.device.type == "cpu" for weight in weights):
        _require_compiler()
    optimizer: torch.optim.Optimizer = torchao.AdamW8bit(
        weights, lr=learning_rate, weight_decay=weight_decay, bf16_stochastic_round=has_bfloat16
    )
    if has_bfloat16:
        _keep_float32_moments(optimizer, weights)

        def before(*_: Any) -> None:
            """Make the random numbers of a step independent of interruptions before it."""
            steps = (int(state["step"]) for state in optimizer.state.values())
            torch.manual_seed(seed * _LOW_BITS + max(steps, default=0))

        optimizer.register_step_pre_hook(before)
    return optimizer


def has_8bit_adamw(device: torch.device) -> bool:
    """Whether ``adamw_8bit`` can train bfloat16 weights there, as far as this installation knows.

    torchao can be imported, and on a CPU there is the compiler that its step needs.
    """
    try:
        importlib.import_module("torchao.optim")
        if device.type == "cpu":
            _require_compiler()
    except (ImportError, ModelError):
        return False
    return True


def _keep_float32_moments(
    optimizer: torch.optim.Optimizer, weights: Sequence[nn.Parameter]
) -> None:
    """Keep moments that torchao does not hold in 8 bits as float32; its own would be bfloat16.

    In bfloat16 a second moment of decay 0.999 cannot fall: each step subtracts less than half of
    its last bit.
    """
    for weight in weights:
        in_blocks = weight.numel() >= _SMALLEST_8BIT_WEIGHT and not weight.numel() % EIGHT_BIT_BLOCK
        if weight.dtype == torch.bfloat16 and not in_blocks:
            optimizer.state[weight] = {"step": torch.tensor(0.0)} | _moments_of(weight)
    loaded: dict[str, Any] = {}
    optimizer.register_load_state_dict_pre_hook(lambda _, state: loaded.update(state))

    def after(target: torch.optim.Optimizer) -> None:
        _restore_float32_moments(target, loaded)
        loaded.clear()

    optimizer.register_load_state_dict_post_hook(after)


def _require_compiler() -> None:
    """Refuse now, not at the first step, if the compiler that torchao's step needs is missing."""
    usual = {"linux": "g++", "darwin": "clang++"}.get(sys.platform)
    compiler = os.environ.get("CXX") or usual
    if compiler and shutil.which(compiler) is None:
        raise ModelError(
            f"optimizer adamw_8bit compiles its step, and there is no C++ compiler {compiler}. "
            "Install one or name it in the environment variable CXX, or use optimizer adamw."
        )
