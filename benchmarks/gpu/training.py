"""Training: the card against the CPU, company, resuming, full fine-tuning, and memory."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import tempfile
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.gpu.setting import (
    CPU,
    Found,
    Setup,
    allocated_bytes,
    big_model,
    card_bytes,
    largest,
    no_long_passes,
    random_tokens,
    shapes_of,
    short_of_memory,
    small_model,
    vocabulary,
)
from rankwise.engine.models.devices import is_out_of_memory
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.training import liger, optimizers
from rankwise.engine.training.loop import train_pass
from rankwise.engine.training.memory import AdapterSize, PassMemory, TrainingSetting
from rankwise.engine.training.optimizers import has_8bit_adamw
from rankwise.engine.training.trainees import AdapterTrainee, FullTrainee, StepMetrics
from rankwise.records.study import FullTraining, OptimizerName
from rankwise.tasks.training_rows import Example
from tests.support.passes import Heard, config, planned

STEPS = 12
RANKS = {False: (2, 4, 8, 16, 32, 64), True: (2, 8)}  # by whether the setup is tiny
TRAIN = config(epochs=STEPS, dropout=0.0)
STEP_SIZE = TRAIN.batch_size * TRAIN.gradient_accumulation_steps
ROUNDING = "float32 rounds by 1e-7; twelve steps of AdamW make it about a hundred times that"


def examples(vocab_size: int, seed: int, lengths: tuple[int, int], number: int) -> list[Example]:
    """Random texts of random lengths; half of each is learned."""
    draw = random.Random(seed)
    texts = [random_tokens(draw, vocab_size, draw.randint(*lengths)) for _ in range(number)]
    return [Example(text, len(text) // 2, is_truncated=False) for text in texts]


def new_trainee(
    model: Any, rank: int, *, lengths: tuple[int, int] = (8, 40), num_steps: int = STEPS
) -> AdapterTrainee:
    """One step an epoch; each rank has a seed and data of its own."""
    weight = next(model.parameters())
    rows = examples(vocabulary(model), rank, lengths, STEP_SIZE)
    run = planned(num_steps, name=f"r{rank}", rank=rank, seed=rank, epochs=num_steps)
    adapter = Adapter(
        shapes_of(model), rank=rank, scaling=2.0, dropout=0.0, seed=rank,
        device=weight.device, dtype=weight.dtype,
    )  # fmt: skip
    return AdapterTrainee(run, rows, TRAIN, adapter)


def train(model: Any, trainees: Sequence[Any], heard: Heard | None = None, **options: Any) -> Heard:
    """A pass, of adapters or of one whole model."""
    heard = Heard() if heard is None else heard
    settings: dict[str, Any] = {
        "max_tokens": 256,
        "precision": "float32",
        "gradient_checkpointing": False,
    } | options
    if isinstance(trainees[0], FullTrainee):
        train_pass(model, trainees, bank=None, observer=heard, **settings)
        return heard
    layers = dict.fromkeys(name for each in trainees for name in each.adapter.factors)
    with adapted(model, list(layers)) as bank:
        train_pass(model, trainees, bank=bank, observer=heard, **settings)
    return heard


def apart(one: Mapping[str, list[float]], other: Mapping[str, list[float]]) -> float:
    """The largest relative difference of a loss."""
    return largest(
        [
            abs(a - b) / b
            for name, losses in other.items()
            for a, b in zip(one[name], losses, strict=True)
        ]
    )


def weights_apart(one: Sequence[AdapterTrainee], other: Sequence[AdapterTrainee]) -> float:
    """The largest relative Frobenius norm of a difference of whole adapters."""
    pairs = [
        (a.adapter.weights[0].detach().cpu(), b.adapter.weights[0].detach().cpu())
        for a, b in zip(one, other, strict=True)
    ]
    return largest([float((a - b).norm() / b.norm()) for a, b in pairs])


def cpu_and_device(setup: Setup, found: Found) -> None:
    """The same pass on the CPU and on the device, in float32."""
    sides: list[tuple[Heard, list[AdapterTrainee]]] = []
    for device in (setup.device, CPU):
        model = small_model(setup, device=device)
        trainees = [new_trainee(model, rank) for rank in RANKS[setup.is_tiny]]
        sides.append((train(model, trainees), trainees))
    (ours, mine), (theirs, others) = sides
    found.check("train.cpu_and_device.losses", apart(ours.losses, theirs.losses), 1e-4, ROUNDING)
    found.check("train.cpu_and_device.weights", weights_apart(mine, others), 1e-3, ROUNDING)


def company(setup: Setup, found: Found) -> None:
    """Each adapter alone and all together; in bfloat16 beside what another cut makes."""
    model = small_model(setup)

    def losses(max_tokens: int, ranks: Sequence[int]) -> dict[str, list[float]]:
        return train(model, [new_trainee(model, r) for r in ranks], max_tokens=max_tokens).losses

    def alone(max_tokens: int) -> dict[str, list[float]]:
        return {name: own for rank in ranks for name, own in losses(max_tokens, [rank]).items()}

    ranks = RANKS[setup.is_tiny]
    found.check("train.company.float32", apart(alone(256), losses(256, ranks)), 1e-4, ROUNDING)
    model = model.bfloat16()
    together = losses(256, ranks)
    cut = apart(losses(64, ranks), together)
    found.check(
        "train.company.bfloat16", apart(alone(256), together), max(3 * cut, 1e-2),
        "three times what another cut into micro-batches changes, or bfloat16's rounding",
    )  # fmt: skip


def variants(setup: Setup, found: Found) -> None:
    """Activations computed again and Liger change nothing but rounding."""
    model = small_model(setup)
    rank = RANKS[setup.is_tiny][-1]
    with mock.patch.object(liger, "_fits", return_value=False):
        plain = train(model, [new_trainee(model, rank)]).losses
    by_liger = train(model, [new_trainee(model, rank)])
    if by_liger.results[f"r{rank}"].kernels is None:
        found.skip("train.liger", "liger-kernel is not installed, or this is a CPU")
    else:
        found.check("train.liger", apart(by_liger.losses, plain), 1e-4, ROUNDING)
    again = train(model, [new_trainee(model, rank)], gradient_checkpointing=True).losses
    found.check("train.checkpointing", apart(again, plain), 1e-4, ROUNDING)


def resume(setup: Setup, found: Found) -> None:
    """Stopped at step 5 of 12, saved, and gone on with."""
    model = small_model(setup)
    rank = RANKS[setup.is_tiny][-1]
    expected = train(model, [new_trainee(model, rank)]).losses[f"r{rank}"]
    stopped = new_trainee(model, rank)
    with contextlib.suppress(KeyboardInterrupt):
        train(model, [stopped], Heard(stop_at=5))
    with tempfile.TemporaryDirectory() as folder:
        stopped.save_state(Path(folder) / "training.pt")
        goes_on = new_trainee(model, rank)
        goes_on.load_state(Path(folder) / "training.pt")
    rest = {"rest": train(model, [goes_on]).losses[f"r{rank}"]}
    found.check(
        "train.resume", apart(rest, {"rest": expected[5:]}), 1e-5,
        "equal but for the order in which a card adds up",
    )  # fmt: skip


def full(setup: Setup, found: Found) -> None:
    """Every weight, in each way of keeping weights and moments, against float32 on the CPU."""

    def curve(weights: torch.dtype, optimizer: Any, device: torch.device) -> list[float]:
        model = small_model(setup, device=device).to(weights)
        rows = examples(vocabulary(model), 0, (8, 40), STEP_SIZE)
        run = planned(STEPS, "full", name="full", epochs=STEPS)
        trainee = FullTrainee(run, rows, TRAIN, model, optimizer)
        precision = "bfloat16" if weights == torch.bfloat16 else "float32"
        losses = train(model, [trainee], precision=precision).losses["full"]
        assert not trainee.is_zero_update
        return losses

    exact = curve(torch.float32, "adamw", CPU)
    ways: dict[str, tuple[torch.dtype, str, float, str]] = {
        "float32": (torch.float32, "adamw", 1e-3, ROUNDING),
        "bfloat16": (
            torch.bfloat16,
            "adamw",
            0.05,
            "as the tests on a CPU: bfloat16 has 8 bits",
        ),
        "bfloat16_8bit": (torch.bfloat16, "adamw_8bit", 0.05, "as bfloat16"),
    }
    for name, (weights, optimizer, limit, why) in ways.items():
        if optimizer == "adamw_8bit" and importlib.util.find_spec("torchao") is None:
            found.skip(f"full.{name}", "torchao is not installed")
            continue
        losses = curve(weights, optimizer, setup.device)
        found.check(f"full.{name}", abs(losses[-1] / exact[-1] - 1), limit, why, first=losses[0])


def out_of_memory(setup: Setup, found: Found) -> None:
    """Less than a micro-batch needs is there: it is halved, the losses stay, nothing is left."""
    model = small_model(setup)
    lengths, max_tokens = ((40, 50), 1024) if setup.is_tiny else ((400, 500), 1 << 14)

    def losses(heard: Heard) -> Heard:
        trainees = [new_trainee(model, rank, lengths=lengths, num_steps=3) for rank in (4, 8)]
        return train(model, trainees, heard, max_tokens=max_tokens)

    losses(Heard())  # kernels and their workspaces are there from now on
    before = allocated_bytes(setup)
    plain = losses(Heard())
    needed = allocated_bytes(setup, peak=True) - before
    limited = Heard()
    shorter = no_long_passes(model, max_tokens // 4)
    with short_of_memory(setup, int(0.7 * needed), shorter):
        losses(limited)
    left = allocated_bytes(setup) - before
    found.check(
        "oom.train.losses", apart(limited.losses, plain.losses), 1e-4, ROUNDING,
        halvings=len(limited.budgets),
    )  # fmt: skip
    found.check("oom.train.halved", 0 if limited.budgets else 1, 0, "1: the limit was never met")
    found.check("oom.train.left_bytes", left, 16 << 20, "workspaces that libraries keep")


def out_of_optimizer_memory(setup: Setup, found: Found) -> None:
    """None is left for the moments, or for a step: an error says so, and a new training goes well.

    Neither can be made smaller, so the pass has to end. Half of a step would be the worse answer.
    """
    # the embedding's moments, and its copies in a step, are larger than what lies about free
    model = small_model(setup, vocab_size=400 if setup.is_tiny else 1 << 16).bfloat16()
    start = {name: weights.clone() for name, weights in model.state_dict().items()}
    rows = examples(vocabulary(model), 0, (8, 40), STEP_SIZE)

    class Short(FullTrainee):
        """Has no memory left when it takes a step."""

        def take_step(self, *arguments: Any, **options: Any) -> StepMetrics:
            with short_of_memory(setup, 0, no_memory_for("round_stochastically")):
                return super().take_step(*arguments, **options)

    def trainee(kind: type[FullTrainee] = FullTrainee) -> FullTrainee:
        model.load_state_dict(start)
        run = planned(3, "full", name="full", epochs=3)
        return kind(run, rows, TRAIN, model, "adamw")

    def losses() -> Heard:
        return train(model, [trainee()], precision="bfloat16")

    def without_moments() -> None:
        with short_of_memory(setup, 0, no_memory_for("_moments_of")):
            trainee()

    def without_a_step() -> None:
        train(model, [trainee(Short)], precision="bfloat16")

    plain = losses()
    model.zero_grad()
    before = allocated_bytes(setup)
    for name, attempt in (("moments", without_moments), ("step", without_a_step)):
        try:
            attempt()
            refused = False
        except (RuntimeError, MemoryError) as error:
            refused = is_out_of_memory(error)
        model.zero_grad()
        left = allocated_bytes(setup) - before
        name = f"oom.optimizer.{name}"
        found.check(f"{name}.refused", 0 if refused else 1, 0, "1: it went on, or another error")
        found.check(f"{name}.left_bytes", left, 16 << 20, "workspaces that libraries keep")
        off = apart(losses().losses, plain.losses)
        found.check(f"{name}.losses", off, 1e-2, "of a training anew; bfloat16 has 8 bits")
        model.zero_grad()


def no_memory_for(name: str) -> contextlib.AbstractContextManager[Any]:
    """Within the block, a function of the optimizers finds no memory."""
    return mock.patch.object(optimizers, name, side_effect=torch.OutOfMemoryError("planted"))


def memory(setup: Setup, found: Found) -> None:
    """Planned, allocated and reserved memory of passes over a base, in ragged micro-batches."""
    longest, ranks, num_steps = (40, (2, 4), 2) if setup.is_tiny else (440, (8, 16, 32, 64, 128), 6)
    model = big_model(setup)
    shapes = shapes_of(model)
    planner = _planner(setup, model, longest, FullTraining())
    sizes = [
        AdapterSize(rank, rank * sum(s.in_features + s.out_features for s in shapes.values()))
        for rank in ranks
    ]
    for max_tokens, again in ((1024, False), (4096, False), (4096, True)):
        trainees = [
            new_trainee(model, rank, lengths=(longest // 5, longest), num_steps=num_steps)
            for rank in ranks
        ]
        with _held(setup) as held:
            train(model, trainees, max_tokens=max_tokens, gradient_checkpointing=again)
        del trainees
        name = f"memory.lora.{setup.size}.{max_tokens}{'.checkpointing' if again else ''}"
        estimate = planner.lora_bytes(sizes, max_tokens, again)
        compare(setup, found, name, estimate, held)


def full_memory(setup: Setup, found: Found) -> None:
    """The same of all weights of 8B in bfloat16, with moments in 8 bits; alone they take 48 GB."""
    name, longest = "memory.full_8bit", 40 if setup.is_tiny else 440
    optimizer: OptimizerName = "adamw" if setup.is_tiny else "adamw_8bit"
    if optimizer == "adamw_8bit" and not has_8bit_adamw(setup.device):
        found.skip(name, "torchao is not installed")
        return
    model = big_model(setup).bfloat16()
    max_tokens, again = STEP_SIZE * longest, True  # a whole step
    full = FullTraining(weights="bfloat16", optimizer=optimizer)
    estimate = _planner(setup, model, longest, full).full_bytes(max_tokens, again)
    if setup.is_cuda and estimate > card_bytes(setup):
        found.skip(name, f"it is planned at {estimate / 1e9:.0f} GB, and the card has less")
        return
    rows = examples(vocabulary(model), 0, (longest // 5, longest), STEP_SIZE)
    trainee = FullTrainee(planned(3, "full", name="full", epochs=3), rows, TRAIN, model, optimizer)
    with _held(setup) as held:
        train(
            model, [trainee], max_tokens=max_tokens, precision="bfloat16",
            gradient_checkpointing=again,
        )  # fmt: skip
    compare(setup, found, name, estimate, held, may_take_less=True)


def _planner(setup: Setup, model: Any, longest: int, full: FullTraining) -> PassMemory:
    """Plans passes over a model of 8B's shape."""
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    precision = "bfloat16" if setup.is_cuda else "float32"
    setting = TrainingSetting(setup.device, precision, longest, STEP_SIZE, full=full)
    return PassMemory(skeleton, setting, list(shapes_of(model)), process_bytes=0)


@contextlib.contextmanager
def _held(setup: Setup) -> Generator[dict[str, int]]:
    """The most that is allocated and reserved in the block, which is there after it."""
    held: dict[str, int] = {}
    if setup.is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(setup.device)
    yield held
    if setup.is_cuda:
        held["allocated"] = torch.cuda.max_memory_allocated(setup.device)
        held["reserved"] = torch.cuda.max_memory_reserved(setup.device)


def compare(
    setup: Setup,
    found: Found,
    name: str,
    estimate: int,
    held: dict[str, int],
    *,
    may_take_less: bool = False,
) -> None:
    """A plan with what was held."""
    if not setup.is_cuda:
        found.skip(name, "a CPU's process holds more than the pass")
        return
    allocated, reserved = held["allocated"], held["reserved"]
    figures = {
        f"{kind}_gb": round(size / 1e9, 2) for kind, size in {"planned": estimate, **held}.items()
    }
    off = allocated / estimate - 1
    found.check(
        name, off if may_take_less else abs(off), 0.1,
        "a plan fills 85 % of a card; the rest is for what it does not foresee"
        + may_take_less * ". It counts copies that a compiled step does not make", **figures,
    )  # fmt: skip
    found.check(f"{name}.reserved", reserved / allocated, 1.15, "the same", **figures)
