"""Variants of LoRA and other ways to train few weights, as one table; the mathematics is PEFT's.

A row says what training and scoring must know. Those that are LoRA with another scaling, optimizer
or initialisation are trained in a pass with LoRA; PEFT trains the others alone. Every row passes
one contract test. What a row is called in tables is in ``records.config.variants``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import peft
import torch
from peft.optimizers.lorafa import LoraFAOptimizer
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn

from rankwise.engine.models.initialisation import (
    input_directions,
    leading_vectors,
    orthogonal_basis,
)
from rankwise.engine.models.structure import LinearShape
from rankwise.engine.models.trained_adapters import Adapter, LoraFactors
from rankwise.records.config.variants import VariantName
from rankwise.records.study import PlannedRun
from rankwise.tasks.training_rows import Example

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
        rank: of LoRA's kinds; VeRA's shared rank, AdaLoRA's mean rank at the end.
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


class Initialisation(NamedTuple):
    """What an adapter begins at.

    Attributes:
        factors: of each layer; of a lower rank, the rest is zero.
        unsettled_share: of the layers, those in which EVA's directions still turned when they were
            taken; None for other initialisations.
    """

    factors: Mapping[str, LoraFactors]
    unsettled_share: float | None = None


Initialise = Callable[[nn.Module, Adapter, Sequence[Example]], Initialisation]
"""Makes a beginning from the frozen base, an adapter as LoRA begins, and examples in the order of
the training."""

MakeOptimizer = Callable[[Any, float, float], torch.optim.Optimizer]
"""Makes an optimizer from an adapter, or PEFT's model, a learning rate and a weight decay."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    weights_of: Callable[[LinearShape, int], int]
    """How many weights of a layer are trained at a rank."""
    config: Callable[[VariantSetting], peft.PeftConfig] | None = None
    """PEFT's config, where PEFT trains it alone on the base."""
    has_scaling: bool = True
    """Whether its update is scaled as LoRA's is, by what follows from alpha."""
    draws_like_lora: bool = False
    """Whether PEFT draws an A; then it begins at the A that LoRA of its seed begins at."""
    initialise: Initialise | None = None
    """What A and B begin at; None: as those of LoRA."""
    is_in_base: bool = False
    """Whether the base's weights hold what it begins at; what is added is the difference."""
    optimizer: MakeOptimizer | None = None
    """An optimizer with more than one rate, or with something to do in a step; None: AdamW."""
    penalise: Callable[[Any], None] | None = None
    """Adds the gradient of a penalty on the weights of PEFT's model; None: there is none."""

    @property
    def is_plain(self) -> bool:
        """Whether it is trained in a pass with LoRA, saved as plain LoRA, and scored as such."""
        return self.config is None

    def num_weights(self, shapes: Iterable[LinearShape], rank: int) -> int:
        """How many weights are trained in layers of these shapes."""
        counts = Counter(shapes)
        return sum(count * self.weights_of(shape, rank) for shape, count in counts.items())

    def rank_with(self, num_weights: int, shapes: Iterable[LinearShape]) -> int:
        """The rank with nearest to so many trained weights, the lower one of two as near.

        None above ``MOST_RANK`` is tried.
        """
        counted = list(shapes)
        return min(
            range(1, MOST_RANK + 1),
            key=lambda rank: abs(self.num_weights(counted, rank) - num_weights),
        )


def _settings(setting: VariantSetting) -> dict[str, Any]:
    modules = list(setting.target_modules)
    return {"task_type": peft.TaskType.CAUSAL_LM, "target_modules": modules}


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


def _weights_of_lora(shape: LinearShape, rank: int) -> int:
    return rank * sum(shape)


def _in_weights(
    of_layer: Callable[[nn.Module, int, float], LoraFactors],
    base_model: nn.Module,
    adapter: Adapter,
    _: Sequence[Example],
) -> Initialisation:
    """Begins at a part of the weights of each layer, under the adapter's rank and scaling."""
    layers = {name: base_model.get_submodule(name) for name in adapter.factors}
    rank, scaling = adapter.rank, adapter.scaling
    return Initialisation({name: of_layer(layers[name], rank, scaling) for name in layers})


def _in_inputs(
    base_model: nn.Module, adapter: Adapter, examples: Sequence[Example]
) -> Initialisation:
    """EVA: A is where the inputs of each layer vary most, B is zero."""
    found = input_directions(base_model, adapter.factors, adapter.rank, examples)
    factors = {
        name: LoraFactors(rows, torch.zeros_like(adapter.factors[name].lora_B))
        for name, rows in found.rows.items()
    }
    return Initialisation(factors, len(found.unsettled) / len(factors))


def _two_rates(adapter: Adapter, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """LoRA+ as PEFT has it, for a trainee that sets one rate before every step."""
    of_A, of_B = zip(*adapter.matrices(), strict=True)
    groups = [{"params": of_A}, {"params": of_B}]
    optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=weight_decay, fused=True)

    def before(*_: Any) -> None:
        optimizer.param_groups[1]["lr"] *= RATE_RATIO

    optimizer.register_step_pre_hook(before)
    return optimizer


def _b_alone(adapter: Adapter, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """PEFT's optimizer of LoRA-FA over the frozen A and the B of each layer.

    It reads from names which of them belong together, and its moments lie under these.
    """
    params, names = list[Tensor](), list[str]()
    for layer, (of_A, of_B) in zip(adapter.factors, adapter.matrices(), strict=True):
        params += [of_A.requires_grad_(False), of_B]
        names += [f"{layer}.lora_A", f"{layer}.lora_B"]
    scalings = [adapter.scaling] * len(params)
    group: Any = {"params": params, "names": names, "scaling_factors": scalings}
    optimizer = LoraFAOptimizer([group], lr=rate, weight_decay=weight_decay)
    devices = {f"{layer}.lora": of_A.device for layer, (of_A, _) in adapter.factors.items()}

    def after(loaded: torch.optim.Optimizer) -> None:
        # torch moves the moments of parameters to their device, and leaves those under names
        states: Any = loaded.state
        for key, state in states.items():
            for name, value in state.items():
                state[name] = value.to(devices[key]) if isinstance(value, Tensor) else value

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
        self._config: Any = self._tuner.peft_config[self._tuner.trainable_adapter_name]
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
        allocator.exp_avg_ipt, allocator.exp_avg_unc = (
            {name: tensor.to(device) for name, tensor in found[kind].items()}
            for kind in ("importance", "uncertainty")
        )
        allocator.ipt = dict(allocator.exp_avg_ipt)  # made anew in a step; where it is there
        self._num_steps, self._config.rank_pattern = found["num_steps"], found["rank_pattern"]


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
    "rslora": Variant(_weights_of_lora),
    # a larger rate for B than for A, arXiv:2402.12354
    "lora_plus": Variant(_weights_of_lora, optimizer=_two_rates),
    # the length of each output's weights apart from their direction, arXiv:2402.09353
    "dora": Variant(
        lambda shape, rank: _weights_of_lora(shape, rank) + shape.out_features,
        lambda setting: peft.LoraConfig(
            r=setting.rank,
            lora_alpha=setting.scaling * setting.rank,  # pyright: ignore[reportArgumentType] (a float is allowed)
            use_dora=True,
            **_settings(setting),
        ),
        draws_like_lora=True,
    ),
    # begins at the base's leading singular vectors, arXiv:2404.02948
    "pissa": Variant(
        _weights_of_lora, initialise=partial(_in_weights, leading_vectors), is_in_base=True
    ),
    # begins at an orthogonal basis of the base's first outputs, arXiv:2406.01775
    "olora": Variant(
        _weights_of_lora, initialise=partial(_in_weights, orthogonal_basis), is_in_base=True
    ),
    # begins at the directions in which a layer's inputs vary most, arXiv:2410.07170
    "eva": Variant(_weights_of_lora, initialise=_in_inputs),
    # A stays as drawn, arXiv:2308.03303
    "lora_fa": Variant(lambda shape, rank: rank * shape.out_features, optimizer=_b_alone),
    # vectors between two random matrices that all layers share, arXiv:2310.11454
    "vera": Variant(
        lambda shape, rank: rank + shape.out_features,
        lambda setting: peft.VeraConfig(
            r=setting.rank,
            projection_prng_key=setting.seed,
            save_projection=True,
            **_settings(setting),
        ),
        has_scaling=False,
    ),
    # singular values, of which those of little importance are taken away, arXiv:2303.10512
    "adalora": Variant(
        lambda shape, rank: _ADALORA_EXCESS * rank * (sum(shape) + 1),
        _adalora,
        optimizer=_AllocatingAdamW,
        penalise=_orthogonal,
    ),
}
"""The variants by the names of the study file."""


def shares_a_pass(run: PlannedRun) -> bool:
    """Whether a run is trained, and scored, together with others on one base.

    A full model has no frozen base, and what is not plain LoRA PEFT puts on the base alone.
    """
    return run.method == "lora" and (run.variant is None or VARIANTS[run.variant].is_plain)
