"""Variants of LoRA and other ways to train few weights, as one table; the mathematics is PEFT's.

A row says what PEFT needs and what else training and scoring must know. Every row passes one
contract test. What a row is called in tables is in ``records.config.variants``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import peft
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor

from rankwise.engine.models.base import LinearShape
from rankwise.errors import ModelError
from rankwise.records.config.variants import VariantName

RATE_RATIO = 16.0
"""LoRA+: the rate of B over that of A, which its authors recommend (arXiv:2402.12354)."""

MOST_RANK = 4096
"""Where a rank is looked for by its number of weights. VeRA trains one weight for a whole row and
column of its shared matrices, so that LoRA's number would need matrices larger than the model."""

# Shares of the steps before ranks are taken away and after the last one is, and the first rank over
# the target: those of PEFT's comparison of methods on MetaMathQA (200 and 500 of 5,000 steps; 64
# and 32), where the authors of AdaLoRA (arXiv:2303.10512) have other ones for each task.
_ADALORA_FIRST, _ADALORA_LAST, _ADALORA_EXCESS = 0.04, 0.1, 2


class VariantSetting(NamedTuple):
    """What the config of a variant is made from.

    Attributes:
        rank: of LoRA's kinds; VeRA's shared rank, AdaLoRA's mean rank at the end, OFT's block size.
        scaling: factor before B @ A, where there are such.
        target_modules: the adapted layers, as PEFT takes them.
        seed: of what is drawn.
        num_steps: of the whole training.
    """

    rank: int
    scaling: float
    target_modules: tuple[str, ...]
    seed: int
    num_steps: int


MakeOptimizer = Callable[[Any, float, float], torch.optim.Optimizer]
"""From PEFT's model, a learning rate and a weight decay."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    config: Callable[[VariantSetting], peft.PeftConfig]
    """PEFT's config."""
    weights_of: Callable[[LinearShape, int], int]
    """How many weights of a layer are trained at a rank."""
    has_rank: bool = True
    """Whether it has a size to choose; otherwise every rank gives the same."""
    has_scaling: bool = True
    """Whether its update is scaled as LoRA's is, by what follows from alpha."""
    is_plain: bool = True
    """Whether what is saved is plain LoRA, which the engine scores beside other adapters."""
    draws_like_lora: bool = False
    """Whether A is drawn as LoRA's is; then it begins at the A that LoRA of its seed begins at."""
    takes_rank: Callable[[LinearShape, int], bool] = lambda *_: True
    """Whether a layer can have this rank as it is."""
    takes_conv1d: bool = True
    """Whether PEFT can put it on GPT-2's linear layers, which hold their weights transposed."""
    changes_base: bool = False
    """Whether it takes its beginning out of the base's weights; what is saved is the difference."""
    reads_examples: bool = False
    """Whether it begins at what the base computes on training rows."""
    optimizer: MakeOptimizer | None = None
    """Of more than one rate, or with something to do after a step; None: AdamW."""
    penalise: Callable[[Any], None] | None = None
    """Adds the gradient of a penalty on the weights of PEFT's model; None: there is none."""

    def num_weights(self, shapes: Iterable[LinearShape], rank: int) -> int:
        """How many weights are trained in layers of these shapes."""
        counts = Counter(shapes)
        return sum(count * self.weights_of(shape, rank) for shape, count in counts.items())

    def rank_near(self, rank: int, shapes: Iterable[LinearShape]) -> int:
        """The nearest rank that all of these layers take, the lower one of two as near.

        Raises:
            ModelError: there is none.
        """
        return min(self._ranks(shapes), key=lambda other: abs(other - rank))

    def rank_with(self, num_weights: int, shapes: Iterable[LinearShape]) -> int:
        """The same with nearest to so many trained weights; none above ``MOST_RANK`` is tried.

        Where a variant has no rank, every one is as near.

        Raises:
            ModelError: there is none.
        """
        every = list(shapes)
        return min(
            self._ranks(every), key=lambda rank: abs(self.num_weights(every, rank) - num_weights)
        )

    def _ranks(self, shapes: Iterable[LinearShape]) -> list[int]:
        every = set(shapes)
        ranks = [
            rank
            for rank in range(1, MOST_RANK + 1)
            if all(self.takes_rank(shape, rank) for shape in every)
        ]
        if not ranks:
            raise ModelError(
                "no block size of OFT divides the inputs of all adapted layers. Leave it out of "
                "methods.variants, or choose other target_modules."
            )
        return ranks


def _settings(setting: VariantSetting) -> dict[str, Any]:
    modules = list(setting.target_modules)
    return {"task_type": peft.TaskType.CAUSAL_LM, "target_modules": modules}


def _lora(**options: Any) -> Callable[[VariantSetting], peft.PeftConfig]:
    """LoRA's config with more options; alpha follows from the scaling."""
    root = options.get("use_rslora", False)

    def config(setting: VariantSetting) -> peft.PeftConfig:
        divisor = math.sqrt(setting.rank) if root else setting.rank
        return peft.LoraConfig(
            r=setting.rank,
            lora_alpha=setting.scaling * divisor,  # pyright: ignore[reportArgumentType] (a float is allowed)
            bias="none",
            **_settings(setting),
            **options,
        )

    return config


def _eva(setting: VariantSetting) -> peft.PeftConfig:
    # rho 1 gives each layer the same rank: PEFT's default of 2 would move ranks between layers. All
    # tokens count: an answer may have a single one.
    eva = peft.EvaConfig(rho=1.0, use_label_mask=False)
    return _lora(init_lora_weights="eva", eva_config=eva)(setting)


def _vera(setting: VariantSetting) -> peft.PeftConfig:
    return peft.VeraConfig(
        r=setting.rank, projection_prng_key=setting.seed, save_projection=True, **_settings(setting)
    )


def _adalora(setting: VariantSetting) -> peft.PeftConfig:
    first_rank = _ADALORA_EXCESS * setting.rank
    steps = max(setting.num_steps, 2)  # the budget falls between two steps at least
    last = min(int(_ADALORA_LAST * steps), steps - 2)
    return peft.AdaLoraConfig(
        target_r=setting.rank,
        init_r=first_rank,
        tinit=int(_ADALORA_FIRST * steps),
        tfinal=last,
        total_step=steps,
        lora_alpha=setting.scaling * first_rank,  # pyright: ignore[reportArgumentType] (a float is allowed)
        **_settings(setting),
    )


def _ia3(setting: VariantSetting) -> peft.PeftConfig:
    # no feed-forward modules: a vector rescales the output of each layer, not the input of some
    return peft.IA3Config(feedforward_modules=[], **_settings(setting))


def _oft(setting: VariantSetting) -> peft.PeftConfig:
    return peft.OFTConfig(r=0, oft_block_size=setting.rank, **_settings(setting))


def _weights_of_oft(shape: LinearShape, block_size: int) -> int:
    """The rotations of a layer's inputs: entries above the diagonal of each block."""
    return shape.in_features // block_size * (block_size * (block_size - 1) // 2)


def _is_oft_block(shape: LinearShape, block_size: int) -> bool:
    return block_size > 1 and shape.in_features % block_size == 0  # PEFT would take another one


def _weights_of_lora(shape: LinearShape, rank: int) -> int:
    return rank * sum(shape)


def _two_rates(model: Any, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """PEFT's optimizer of LoRA+, for a trainee that sets one rate before every step."""
    optimizer = create_loraplus_optimizer(
        model=model,
        optimizer_cls=torch.optim.AdamW,
        lr=rate,
        loraplus_lr_ratio=RATE_RATIO,
        loraplus_weight_decay=weight_decay,
        fused=True,
    )
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    ratios = [group["lr"] / rate for group in optimizer.param_groups]

    def before(*_: Any) -> None:
        for group, ratio in zip(optimizer.param_groups, ratios, strict=True):
            group["lr"] *= ratio

    optimizer.register_step_pre_hook(before)
    return optimizer


def _b_alone(model: Any, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """PEFT's optimizer of LoRA-FA, which freezes A; its moments lie under names."""
    config = model.active_peft_config
    optimizer = create_lorafa_optimizer(
        model=model, r=config.r, lora_alpha=config.lora_alpha, lr=rate, weight_decay=weight_decay
    )
    device = next(model.parameters()).device

    def after(loaded: torch.optim.Optimizer) -> None:
        # torch moves the moments of parameters to their device, and leaves those under names
        states: Any = loaded.state
        for state in states.values():
            for name, value in state.items():
                state[name] = value.to(device) if isinstance(value, Tensor) else value

    optimizer.register_load_state_dict_post_hook(after)
    return optimizer


class _AllocatingAdamW(torch.optim.AdamW):
    """AdamW that lets AdaLoRA give and take ranks after each step.

    What the allocation depends on is part of the state: a training that is resumed equals one that
    never stopped.
    """

    def __init__(self, model: Any, rate: float, weight_decay: float) -> None:
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        super().__init__(weights, lr=rate, weight_decay=weight_decay, fused=True)
        self._tuner: Any = model.base_model
        self._num_steps = 0

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step, then allocate, while the gradients are still there."""
        loss: Any = super().step(closure)
        self._num_steps += 1
        self._tuner.update_and_allocate(self._num_steps)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """AdamW's, and as ``allocation`` what the next allocation depends on."""
        allocator = self._tuner.rankallocator
        allocation = {
            "num_steps": self._num_steps,
            "importance": dict(allocator.exp_avg_ipt),
            "uncertainty": dict(allocator.exp_avg_unc),
            "rank_pattern": self._config.rank_pattern,
        }
        return {**super().state_dict(), "allocation": allocation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from a ``state_dict``.

        Raises:
            LookupError: it holds no allocation, so it is another optimizer's.
        """
        found = state_dict["allocation"]
        super().load_state_dict(state_dict)
        allocator, device = self._tuner.rankallocator, self.param_groups[0]["params"][0].device
        allocator.exp_avg_ipt = _on(device, found["importance"])
        allocator.exp_avg_unc = _on(device, found["uncertainty"])
        allocator.ipt = dict(allocator.exp_avg_ipt)  # made anew in a step; where it is there
        self._num_steps, self._config.rank_pattern = found["num_steps"], found["rank_pattern"]

    @property
    def _config(self) -> Any:
        return self._tuner.peft_config[self._tuner.trainable_adapter_name]


def _on(device: torch.device, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def _orthogonal(model: Any) -> None:
    """Add the gradient of AdaLoRA's penalty, which keeps A and B near to orthogonal.

    PEFT adds it to the loss in its model's forward, which our loop does not call: here it is called
    on a model without any loss of its own.
    """
    tuner, device = model.base_model, next(model.parameters()).device
    without_loss = SimpleNamespace(
        forward=lambda: SimpleNamespace(loss=torch.zeros((), device=device)),
        named_parameters=tuner.model.named_parameters,
    )
    forward: Any = AdaLoraModel.forward
    of_tuner = SimpleNamespace(
        model=without_loss,
        peft_config=tuner.peft_config,
        trainable_adapter_name=tuner.trainable_adapter_name,
    )
    forward(of_tuner).loss.backward()


VARIANTS: Mapping[VariantName, Variant] = {
    # scaling by the root of the rank, arXiv:2312.03732
    "rslora": Variant(_lora(use_rslora=True), _weights_of_lora, draws_like_lora=True),
    # a larger rate for B than for A, arXiv:2402.12354
    "lora_plus": Variant(_lora(), _weights_of_lora, draws_like_lora=True, optimizer=_two_rates),
    # the length of each output's weights apart from their direction, arXiv:2402.09353
    "dora": Variant(
        _lora(use_dora=True),
        lambda shape, rank: _weights_of_lora(shape, rank) + shape.out_features,
        is_plain=False,
        draws_like_lora=True,
    ),
    # begins at the base's leading singular vectors, arXiv:2404.02948
    "pissa": Variant(_lora(init_lora_weights="pissa"), _weights_of_lora, changes_base=True),
    # begins at an orthogonal basis of the base's first outputs, arXiv:2406.01775
    "olora": Variant(
        _lora(init_lora_weights="olora"), _weights_of_lora, takes_conv1d=False, changes_base=True
    ),
    # begins at the directions in which a layer's inputs vary most, arXiv:2410.07170
    "eva": Variant(_eva, _weights_of_lora, reads_examples=True),
    # A stays as drawn, arXiv:2308.03303
    "lora_fa": Variant(
        _lora(),
        lambda shape, rank: rank * shape.out_features,
        draws_like_lora=True,
        optimizer=_b_alone,
    ),
    # vectors between two random matrices that all layers share, arXiv:2310.11454
    "vera": Variant(
        _vera, lambda shape, rank: rank + shape.out_features, has_scaling=False, is_plain=False
    ),
    # singular values, of which those of little importance are taken away, arXiv:2303.10512
    "adalora": Variant(
        _adalora,
        lambda shape, rank: _ADALORA_EXCESS * rank * (sum(shape) + 1),
        is_plain=False,
        optimizer=_AllocatingAdamW,
        penalise=_orthogonal,
    ),
    # rescales what a layer puts out, arXiv:2205.05638
    "ia3": Variant(
        _ia3, lambda shape, _: shape.out_features, has_rank=False, has_scaling=False, is_plain=False
    ),
    # rotates a layer's input in blocks, arXiv:2306.07280
    "oft": Variant(
        _oft,
        _weights_of_oft,
        has_scaling=False,
        is_plain=False,
        takes_rank=_is_oft_block,
        takes_conv1d=False,
    ),
}
"""By the names of the study file."""
