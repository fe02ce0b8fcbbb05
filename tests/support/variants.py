"""Variants trained on a tiny model, without a study."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer
from torch import Tensor, nn

from rankwise.engine.models.initialisation import input_directions
from rankwise.engine.models.peft_adapters import save_adapter, variant_on
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, AdapterBank, Piece, adapted, drawn_rows
from rankwise.engine.models.variants import RATE_RATIO, VARIANTS, VariantSetting
from rankwise.engine.training import loop as training
from rankwise.engine.training.trainees import AdapterTrainee, Trainee, VariantTrainee, rate_factor
from rankwise.records.config.training import TrainConfig
from rankwise.records.config.variants import VariantName
from rankwise.tasks.training_rows import Example
from tests.support.passes import CPU, TARGETS, Heard, in_order, planned

RANK, SCALING = 4, 2.0


class PlainModel:
    """What is trained in a pass, with the attributes of what PEFT trains (``VariantModel``)."""

    def __init__(
        self, base: Any, bank: AdapterBank, trainee: AdapterTrainee, targets: Sequence[str]
    ) -> None:
        self._base, self._bank, self._targets = base, bank, tuple(targets)
        self.trainee, self.adapter = trainee, trainee.adapter

    @property
    def weights(self) -> list[nn.Parameter]:
        return list(self.trainee._weights)  # pyright: ignore[reportPrivateUsage]

    @property
    def is_zero_update(self) -> bool:
        return self.adapter.is_zero_update

    def model(self, tokens: Tensor, **options: Any) -> Any:
        with self._bank.rows_of([Piece(self.adapter, 0, tokens.numel(), ())]):
            return self._base(tokens, **options)

    def save(self, folder: Path, base_model_name: str) -> int:
        is_root = self.trainee.run.variant == "rslora"
        return save_adapter(
            self.adapter,
            folder,
            alpha=self.adapter.scaling * self.adapter.rank ** (0.5 if is_root else 1.0),
            use_rslora=is_root,
            target_modules=self._targets,
            base_model_name=base_model_name,
        )


def trained(
    base: Any,
    name: VariantName,
    examples: Sequence[Example],
    train: TrainConfig,
    *,
    heard: Heard | None = None,
    state: Path | None = None,
    targets: Sequence[str] = TARGETS,
    gradient_checkpointing: bool = False,
    use: Callable[[Any], Any] = lambda _: None,
    **run_options: Any,
) -> tuple[Heard, Any]:
    """Train a variant on a base to its end, or until ``heard`` interrupts; then ``use`` it.

    A state that exists is gone on from, and one is saved where the training is interrupted.
    """
    heard = Heard() if heard is None else heard
    steps = training.num_optimizer_steps(len(examples), train, train.epochs[0])
    options = {"name": "variant", "variant": name, "epochs": train.epochs[0]} | run_options
    run = planned(steps, **options)
    variant = VARIANTS[name]
    assert run.seed is not None

    def train_it(trainee: Trainee, bank: AdapterBank | None, model: Any) -> tuple[Heard, Any]:
        if state is not None and state.exists():
            trainee.load_state(state)
        try:
            training.train_pass(
                base,
                [trainee],
                bank=bank,
                max_tokens=128,
                precision="float32",
                gradient_checkpointing=gradient_checkpointing,
                observer=heard,
            )
        except KeyboardInterrupt:
            assert state is not None
            trainee.save_state(state)
            return heard, None
        return heard, use(model)

    if not variant.is_plain:
        setting = VariantSetting(run.rank or 1, SCALING, tuple(targets), run.seed, steps)
        with variant_on(base, variant, setting) as model:
            return train_it(VariantTrainee(run, examples, train, model), None, model)
    adapter = Adapter(
        target_shapes(adaptable_shapes(base), targets),
        rank=run.rank or 1,
        scaling=SCALING,
        dropout=0.0,
        seed=run.seed,
        device=CPU,
        dtype=next(base.parameters()).dtype,
    )
    if variant.initialise is not None:
        initial = variant.initialise(base, adapter, in_order(examples, run, train))
        adapter.start_from(initial.factors, is_in_base=variant.is_in_base)
    trainee = AdapterTrainee(run, examples, train, adapter, own_optimizer=variant.optimizer)
    with adapted(base, list(adapter.factors)) as bank:
        return train_it(trainee, bank, PlainModel(base, bank, trainee, targets))


class PeftReference:
    """A variant as PEFT itself builds it, trained text by text on a copy of the base.

    ``name`` None is LoRA. Its A is the one that LoRA of the run's seed begins at, where it is
    drawn; EVA's is what rankwise found, put in by PEFT.
    """

    def __init__(self, base: Any, name: VariantName | None, trainee: Trainee, folder: Path) -> None:
        self.run, self.batches, self._name = trainee.run, trainee.batches, name
        assert self.run.rank is not None
        assert self.run.scaling is not None
        assert self.run.seed is not None
        divisor = self.run.rank ** (0.5 if name == "rslora" else 1.0)
        options: dict[str, Any] = {"use_rslora": name == "rslora"}
        if name in ("pissa", "olora", "eva"):
            options["init_lora_weights"] = name
        self.model: Any = peft.get_peft_model(
            copy.deepcopy(base),
            peft.LoraConfig(
                task_type=peft.TaskType.CAUSAL_LM,
                r=self.run.rank,
                lora_alpha=self.run.scaling * divisor,  # pyright: ignore[reportArgumentType]
                target_modules=list(self.run.target_modules),
                **options,
            ),
        ).eval()
        if name == "eva":
            names = [layer.removeprefix("base_model.model.") for layer, _ in self._layers()]
            rows = input_directions(base, names, self.run.rank, self.batches_of_first_epoch()).rows
            rows = {f"base_model.model.{layer}": found for layer, found in rows.items()}
            peft.initialize_lora_eva_weights(self.model, eva_state_dict=rows)
        elif name not in ("pissa", "olora"):
            with torch.no_grad():
                for layer, module in self._layers():
                    into = module.lora_A["default"].weight
                    layer = layer.removeprefix("base_model.model.")
                    into.copy_(drawn_rows(layer, *into.shape, self.run.seed))
        self._initial = folder / "initial"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save_pretrained(str(self._initial))
        self._before = self._products()
        self.losses: list[float] = []

    def _layers(self) -> list[tuple[str, Any]]:
        return [
            (name, module)
            for name, module in self.model.named_modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        ]

    def batches_of_first_epoch(self) -> list[Example]:
        examples = [example for batch in self.batches for example in batch]
        return examples[: self.run.num_examples]

    def _products(self) -> dict[str, Tensor]:
        return {
            name.removeprefix("base_model.model."): module.scaling["default"]
            * module.lora_B["default"].weight.detach()
            @ module.lora_A["default"].weight.detach()
            for name, module in self._layers()
        }

    @property
    def deltas(self) -> dict[str, Tensor]:
        """What is added to the weights of each layer of the base as it was."""
        is_in_base = self._name in ("pissa", "olora")
        return {
            name: product - self._before[name] if is_in_base else product
            for name, product in self._products().items()
        }

    def train(self, train: TrainConfig) -> None:
        optimizer = self._optimizer(self.run.learning_rate or 0.0, train.weight_decay)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        rates = [group["lr"] for group in optimizer.param_groups]
        factor = rate_factor(train, len(self.batches))
        for step, batch in enumerate(self.batches):
            learned: list[Tensor] = []
            for example in batch:
                logits = self.model(torch.tensor([example.tokens[:-1]])).logits[0]
                targets = torch.tensor(example.tokens[1:])
                losses = nn.functional.cross_entropy(logits, targets, reduction="none")
                learned.append(losses[len(losses) - example.num_loss_tokens :])
            loss = torch.cat(learned).mean()
            self.losses.append(float(loss.detach()))
            loss.backward()
            nn.utils.clip_grad_norm_(weights, train.max_grad_norm)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor(step)
            optimizer.step()
            optimizer.zero_grad()

    def _optimizer(self, rate: float, decay: float) -> torch.optim.Optimizer:
        if self._name == "lora_fa":
            config = self.model.active_peft_config
            return create_lorafa_optimizer(
                self.model, config.r, config.lora_alpha, rate, weight_decay=decay
            )
        if self._name == "lora_plus":
            return create_loraplus_optimizer(
                self.model,
                torch.optim.AdamW,
                lr=rate,
                loraplus_lr_ratio=RATE_RATIO,
                loraplus_weight_decay=decay,
            )
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, lr=rate, weight_decay=decay)

    def save_converted(self, folder: Path) -> None:
        """As plain LoRA on the base as it was, by PEFT's own conversion."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.model.save_pretrained(
                str(folder), path_initial_model_for_weight_conversion=str(self._initial)
            )


@torch.no_grad()
def logits(model: Any, examples: Sequence[Example]) -> list[Tensor]:
    """(tokens, vocab) of each example."""
    return [
        model(torch.tensor([example.tokens]), use_cache=False).logits[0] for example in examples
    ]


def same(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float) -> bool:
    return all(
        torch.allclose(a, b, rtol=tolerance, atol=tolerance)
        for a, b in zip(ours, theirs, strict=True)
    )
