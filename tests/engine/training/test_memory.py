"""Predicted memory against measured memory, and passes that are planned by it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rankwise.engine.models.devices import DTYPES, KERNEL_BYTES, MAX_KERNELS
from rankwise.engine.models.loading import load_frozen
from rankwise.engine.models.packed_attention import check_packable
from rankwise.engine.models.structure import adaptable_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.training import memory as memory_module
from rankwise.engine.training import rehearsal
from rankwise.engine.training.memory import (
    KEPT_TOKENS,
    LIKELY_TOKENS,
    AdapterSize,
    PassMemory,
    TrainingSetting,
    estimate_training_memory,
)
from rankwise.records.config.training import TrainConfig
from rankwise.records.study import FullTraining, PlannedRun
from rankwise.study.planning.passes import USABLE_SHARE, least_bytes, plan_passes
from rankwise.tasks.training_rows import Example

SMALL = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "vocab_size": 8000}
LARGE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10}
LARGE |= {"vocab_size": 16000}
LENGTH = 64
MAX_TOKENS = 1024
RANKS = (4, 64, 16)


def planned(method: str, rank: int | None = None, name: str = "run", **options: Any) -> PlannedRun:
    settings: dict[str, Any] = {
        "name": name,
        "fingerprint": name,
        "method": method,
        "train_task": "sums",
        "rank": rank,
        "alpha": 2.0 * rank if rank else None,
        "alpha_labels": (),
        "scaling": 2.0 if rank else None,
        "learning_rate": 1e-3,
        "rate_labels": (),
        "epochs": 1,
        "target_modules": (),
        "seed": 0,
        "num_steps": 2,
        "num_examples": 16,
        "num_tokens": 0,
        "num_trainable_parameters": rank or 0,
        "trainable_share": 0.0,
        "estimated_memory_bytes": 0,
    }
    return PlannedRun(**(settings | options))


def llama_config(sizes: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(
        num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=True, **sizes
    )


class Silent:
    """An observer that keeps the peak of the last result."""

    def __init__(self) -> None:
        self.peak = 0

    def stepped(self, *_: Any) -> None: ...

    def reached(self, _: Any, result: Any) -> None:
        self.peak = result.peak_memory_bytes

    def dropped(self, _: Any, error: Exception) -> None:
        raise error

    def shrunk(self, max_tokens: int) -> None:
        raise MemoryError(max_tokens)


def predict_and_train(
    sizes: dict[str, int],
    method: str,
    precision: Any,
    checkpointing: bool,
    dropout: float = 0.0,
    lanes: int = 1,
) -> tuple[int, int, int]:
    """Two real steps of several adapters or of the full model.

    Returns:
        Predicted bytes, measured ones, and those of the process before, which both have in them.
    """
    from rankwise.engine.training import trainees
    from rankwise.engine.training.loop import train_pass

    config, device = llama_config(sizes), torch.device("cpu")
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    shapes = adaptable_shapes(skeleton)
    train = TrainConfig(task=("sums",), batch_size=8, gradient_accumulation_steps=1)
    setting = TrainingSetting(device, precision, LENGTH, 8, dropout=dropout, max_lanes=lanes)
    before = psutil.Process().memory_info().rss
    memory = PassMemory(skeleton, setting, list(shapes))
    sides = sum(sum(shape) for shape in shapes.values())
    if method == "lora":
        sizes_of = [AdapterSize(rank, rank * sides) for rank in RANKS]
        predicted = memory.lora_bytes(sizes_of, MAX_TOKENS, checkpointing)
    else:
        predicted = memory.full_bytes(MAX_TOKENS, checkpointing)

    dtype = DTYPES[precision] if method == "lora" else torch.float32
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(method == "full")
    examples = [
        Example(tuple((7 * i + j) % 1000 for j in range(LENGTH + 1)), 20, False) for i in range(16)
    ]
    common: dict[str, Any] = {
        "max_tokens": MAX_TOKENS,
        "precision": precision,
        "gradient_checkpointing": checkpointing,
        "observer": (observer := Silent()),
    }
    if method == "full":
        run = planned("full", num_steps=2)
        weights = list(model.parameters())
        trainee = trainees.Trainee(run, examples, train, weights, "adamw")
        train_pass(model, [trainee], bank=None, **common)
        return predicted, observer.peak, before
    trained = []
    for rank in RANKS:
        adapter = Adapter(
            shapes, rank=rank, scaling=2.0, dropout=dropout, seed=0, device=device, dtype=dtype
        )
        run = planned("lora", rank, num_steps=2)
        trained.append(trainees.AdapterTrainee(run, examples, train, adapter))
    with adapted(model, list(shapes)) as bank:
        train_pass(model, trained, bank=bank, max_lanes=lanes, **common)
    return predicted, observer.peak, before


# as on a CPU without AVX-512: oneDNN then multiplies no bfloat16
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def measured(*arguments: Any, **environment: str) -> tuple[int, int, int]:
    """The same in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    predicted, peak, before = json.loads(done.stdout.splitlines()[-1])
    return predicted, peak, before


IN_FLOAT32 = [
    (SMALL, "lora", "float32", False, 0.0),
    (LARGE, "lora", "float32", True, 0.0),
    (LARGE, "full", "float32", False, 0.0),
    (LARGE, "lora", "float32", False, 0.0, 2),
]
IN_BFLOAT16 = [
    (SMALL, "lora", "bfloat16", False, 0.1),
    (LARGE, "lora", "bfloat16", False, 0.0),
    (LARGE, "full", "bfloat16", False, 0.0),
]


@pytest.mark.parametrize(
    ("case", "environment"),
    [(case, {}) for case in [*IN_FLOAT32, *IN_BFLOAT16]]
    + [(IN_BFLOAT16[0], AVX2)]
    # torch's own loops take minutes for the larger models
    + [pytest.param(case, AVX2, marks=pytest.mark.slow) for case in IN_BFLOAT16[1:]],
)
def test_prediction_is_within_a_quarter_of_what_is_measured(
    case: tuple[Any, ...], environment: dict[str, str]
) -> None:
    predicted, peak, before = measured(*case, **environment)
    assert predicted == pytest.approx(peak, rel=0.25)
    assert predicted - before == pytest.approx(peak - before, rel=0.25)  # of the pass itself


def pass_memory(config: Any, **options: Any) -> PassMemory:
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    settings: dict[str, Any] = {
        "device": torch.device("cpu"),
        "precision": "float32",
        "longest": LENGTH,
        "examples_per_step": 8,
    }
    setting = TrainingSetting(**(settings | options))
    return PassMemory(skeleton, setting, list(adaptable_shapes(skeleton)), process_bytes=0)


ONE = [AdapterSize(8, 0)]


def test_ragged_texts_need_a_kernel_for_every_shape() -> None:
    config = llama_config(SMALL)

    def needed(**options: Any) -> int:
        with torch.device("meta"):
            skeleton = LlamaForCausalLM(config)
        setting = TrainingSetting(torch.device("cpu"), longest=64, examples_per_step=2, **options)
        return PassMemory(skeleton, setting, list(adaptable_shapes(skeleton)))._kernel_bytes()

    num_products = 2 * 4  # q and o, k and v, gate and up, down: forward and back
    assert needed(precision="bfloat16", shortest=63) == 3 * num_products * KERNEL_BYTES
    assert needed(precision="bfloat16", shortest=9) == MAX_KERNELS * KERNEL_BYTES


def test_what_libraries_keep_depends_on_who_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    def kept(device: str, precision: Any, has_kernels: bool) -> int:
        monkeypatch.setattr(memory_module, "has_bfloat16_kernels", lambda: has_kernels)
        monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(rss=7))
        memory = pass_memory(
            llama_config(SMALL), device=torch.device(device), precision=precision, shortest=9
        )
        return memory._process_bytes()

    assert kept("cpu", "bfloat16", True) == 7 + (96 << 20) + MAX_KERNELS * KERNEL_BYTES
    assert kept("cpu", "bfloat16", False) == 7 + (32 << 20)
    assert kept("cpu", "float32", True) == kept("cpu", "float32", False) == 7 + (96 << 20)
    assert kept("cuda", "bfloat16", True) == 0


def test_layers_left_out_of_the_rehearsal_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few = pass_memory(llama_config(SMALL | {"num_hidden_layers": 8}))
    expected = few.lora_bytes(ONE, 512, False), few.full_bytes(512, False)
    monkeypatch.setattr(rehearsal, "_kind", lambda layer: str(id(layer)))  # none are alike
    all_of_them = pass_memory(llama_config(SMALL | {"num_hidden_layers": 8}))
    found = all_of_them.lora_bytes(ONE, 512, False), all_of_them.full_bytes(512, False)
    assert found == pytest.approx(expected, rel=0.01)


def test_a_line_through_two_rehearsals_meets_a_third() -> None:
    memory = pass_memory(llama_config(SMALL))
    on_line = memory._peaks_at("lora", False, 12 * LENGTH)
    third = memory._rehearse("lora", False, 12)
    found = on_line.loss, on_line.high
    assert found == pytest.approx((third.loss, third.high), rel=0.02)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_needs_less_is_estimated_to_need_less(device: str) -> None:
    options: dict[str, Any] = {"device": torch.device(device)}
    memory = pass_memory(llama_config(LARGE), **options)
    plain = memory.lora_bytes(ONE, 512, False)
    assert memory.lora_bytes(ONE, 512, True) < 0.7 * plain
    assert memory.lora_bytes(ONE, 256, False) < plain
    assert memory.lora_bytes([AdapterSize(256, 0)], 512, False) > plain
    assert memory.lora_bytes([AdapterSize(8, 10**6)], 512, False) == plain + 20 * 10**6
    held = [AdapterSize(8, 0, num_frozen=10**6)]  # a float32 and the copy
    assert memory.lora_bytes(held, 512, False) == plain + 8 * 10**6
    assert (
        pass_memory(llama_config(LARGE), dropout=0.1, **options).lora_bytes(ONE, 512, False) > plain
    )
    half = pass_memory(llama_config(LARGE), precision="bfloat16", **options)
    assert half.lora_bytes(ONE, 512, False) < 0.7 * plain
    weights = [
        pass_memory(llama_config(LARGE), base_precision=name, **options).base_bytes
        for name in ("4bit", "8bit", "auto")
    ]
    assert weights == sorted(weights)
    eight_bit = FullTraining(weights="bfloat16", optimizer="adamw_8bit")
    smaller = pass_memory(llama_config(LARGE), full=eight_bit, **options)
    assert smaller.full_bytes(512, False) < 0.6 * memory.full_bytes(512, False)
    assert memory.changed(full=eight_bit).full_bytes(512, False) == smaller.full_bytes(512, False)
    assert memory.full == FullTraining()


def test_flash_attention_s_workspace_is_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 8 heads of 64 columns, 4 of keys. Sums in float32, and all heads' dk and dv."""
    config, tokens = llama_config(LARGE | {"vocab_size": 100}), 8 * LENGTH
    cuda: dict[str, Any] = {"device": torch.device("cuda"), "precision": "bfloat16"}

    def planned_bytes(**options: Any) -> int:
        return pass_memory(config, **(cuda | options)).lora_bytes(ONE, tokens, False)

    peaks = pass_memory(config, **cuda)._peaks_at("lora", False, tokens)
    row = 8 * (64 + 1) * 4
    assert peaks.padding == 128 * row
    assert peaks.flash > tokens * (row + 2 * 8 * 64 * 2)
    # rows of one token: as many as there are tokens, or examples of a step
    most = [planned_bytes(shortest=1, examples_per_step=count) for count in (300, 400, 512, 999)]
    assert most[1] - most[0] == 100 * peaks.padding
    assert most[2] - most[1] == 112 * peaks.padding
    assert most[3] == most[2]
    monkeypatch.setattr(rehearsal, "_known", {})
    monkeypatch.setattr(rehearsal.packed_kernels, "_FLASH_WIDTH", 0)  # flex attention has none
    others = pass_memory(config, **cuda)._peaks_at("lora", False, tokens)
    assert (others.flash, others.padding) == (0, 0)
    assert others[:2] == peaks[:2]


def test_lanes_share_the_tokens_and_gather_gradients_of_their_own() -> None:
    memory = pass_memory(llama_config(SMALL))
    lanes, wide = memory.changed(max_lanes=3), [AdapterSize(8, 10**6)]
    added = lanes.lora_bytes(wide, 4 * LENGTH, False) - lanes.lora_bytes(ONE, 4 * LENGTH, False)
    assert added == (20 + 2 * 4) * 10**6
    plain = memory.lora_bytes(ONE, 4 * LENGTH, False)
    assert plain < lanes.lora_bytes(ONE, 4 * LENGTH, False) < 2 * plain
    # each has to read the longest example whole: with less there is one
    assert lanes.lora_bytes(wide, LENGTH, False) == memory.lora_bytes(wide, LENGTH, False)
    assert lanes.full_bytes(4 * LENGTH, False) == memory.full_bytes(4 * LENGTH, False)


def test_a_micro_batch_is_not_larger_than_a_step() -> None:
    memory = pass_memory(llama_config(SMALL))
    assert memory.full_bytes(8 * LENGTH, False) == memory.full_bytes(10**6, False)
    assert memory.lora_bytes(ONE * 2, 8 * LENGTH, False) < memory.lora_bytes(ONE * 2, 10**6, False)


def test_experts_and_other_architectures_are_rehearsed() -> None:
    common: dict[str, Any] = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 4}
    common |= {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for name in ("gpt2", "gemma3_text", "mixtral", "opt"):
        config = AutoConfig.for_model(name, **common)
        memory = pass_memory(config)
        for method in ("lora", "full"):
            few = memory._rehearse(method, False, 1)
            assert few.high < memory._rehearse(method, False, 2).high


def test_what_cannot_be_rehearsed_is_estimated_by_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed = pass_memory(llama_config(SMALL)).lora_bytes(ONE, 512, False)

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr(memory_module, "rehearsed", refuse)
    by_rule = pass_memory(llama_config(SMALL)).lora_bytes(ONE, 512, False)
    assert by_rule == pytest.approx(rehearsed, rel=0.5)


def test_real_attention_finds_no_masks_of_the_rehearsal(tiny_model_folder: Path) -> None:
    model: Any = load_frozen(tiny_model_folder, "float32", torch.device("cpu"))
    pass_memory(model.config).lora_bytes(ONE, 512, False)
    check_packable(model)


def test_layers_on_several_cards_by_hand() -> None:
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        skeleton = LlamaForCausalLM(config)
    setting = TrainingSetting(torch.device("cuda"), "float32", longest=8, examples_per_step=1)
    alone = PassMemory(skeleton, setting, ["model.layers.0.self_attn.q_proj"])
    outside = 2 * 100 * 8 + 8  # embeddings, head, last norm
    layer = 4 * 8 * 8 + 3 * 8 * 16 + 2 * 8  # attention, MLP, norms
    assert alone.base_bytes == 4 * (outside + 8 * layer)
    # embeddings and head take the room of two layers on the first card
    laid = alone.changed(num_cards=2)
    assert laid.base_bytes == 4 * (outside + 3 * layer) > 4 * 5 * layer
    peaks = alone._peaks_at("lora", False, 8)
    logits, inner = alone._loss_bytes("lora", 8), 8 * 4 * 2  # 8 tokens at rank 2
    state = 32 * 20  # weight, gradient, two moments and the copy, of 4 bytes each
    adapter = [AdapterSize(2, 32)]
    assert alone.lora_bytes(adapter, 8, False) == alone.base_bytes + state + max(
        max(peaks.loss + logits, peaks.high) + inner, peaks.end
    )
    # of adapters and activations five layers in eight; logits on one card, or a layer's gradients
    assert laid.lora_bytes(adapter, 8, False) == (
        laid.base_bytes
        + state * 5 // 8
        + math.ceil((peaks.loss + inner) * 5 / 8)
        + max(logits, peaks.high - peaks.loss, peaks.end - peaks.loss)
    )
    assert laid.full_bytes(8, False) == alone.full_bytes(8, False)  # which is on one card


def test_a_run_alone() -> None:
    memory = pass_memory(llama_config(SMALL))
    lora = estimate_training_memory(
        memory, method="lora", rank=8, num_trainable=100, max_tokens=512
    )
    full = estimate_training_memory(
        memory, method="full", rank=None, num_trainable=100, max_tokens=512
    )
    assert lora == memory.lora_bytes([AdapterSize(8, 100)], 512, False) < full


class Planted(PassMemory):
    """A base of 1000 bytes, an adapter of its parameters, a byte per token or a tenth of it."""

    def __init__(self, device: str) -> None:
        self.likely_tokens, self.kept_tokens = LIKELY_TOKENS[device], KEPT_TOKENS[device]
        self.longest = 100

    def lora_bytes(
        self, adapters: Sequence[AdapterSize], max_tokens: int, gradient_checkpointing: bool
    ) -> int:
        held = 1000 + sum(adapter.num_parameters for adapter in adapters)
        return held + max_tokens // (10 if gradient_checkpointing else 1)

    def full_bytes(self, max_tokens: int, gradient_checkpointing: bool) -> int:
        return 4000 + max_tokens // (10 if gradient_checkpointing else 1)


def passes(
    parameters: Sequence[int],
    fits: int,
    *,
    full: bool = False,
    device: str = "cpu",
    **train: Any,
) -> list[tuple[int, int, bool]]:
    """(runs, tokens, checkpointing) of each pass where exactly ``fits`` bytes can be used."""
    runs = [
        planned("lora", 8, f"r{index}", num_trainable_parameters=size)
        for index, size in enumerate(parameters)
    ]
    if full:
        runs.insert(1, planned("full", None, "full"))
    runs.append(planned("lora", 8, "theirs", role="imported"))
    available = math.ceil(fits / USABLE_SHARE)
    found = plan_passes(
        runs,
        Planted(device),
        TrainConfig(task=("sums",), **train),
        available_bytes=available,
    )
    names = [name for each in found for name in each.runs]
    assert names == [run.name for run in runs[:-1] if run.method == "lora"] + ["full"] * full
    return [(len(each.runs), each.max_tokens, each.gradient_checkpointing) for each in found]


def test_all_adapters_share_a_pass_where_they_fit() -> None:
    assert passes([500] * 4, 10**5) == [(4, 2048, False)]
    assert passes([500] * 4, 10**5, device="cuda") == [(4, 16384, False)]
    assert passes([], 10**5) == []


def shared_out(
    parameters: Sequence[int], works: Sequence[float], num_devices: int, fits: int
) -> list[str]:
    """The names of each pass's models where several devices share them; the full one works 10."""
    runs = [
        planned("lora", 8, str(place), num_trainable_parameters=size)
        for place, size in enumerate(parameters)
    ]
    full = planned("full", None, "full")
    found = plan_passes(
        [full, *runs],
        Planted("cpu"),
        TrainConfig(task=("sums",)),
        available_bytes=math.ceil(fits / USABLE_SHARE),
        num_devices=num_devices,
        work_of=lambda models: 10.0 if models[0].method == "full" else works[int(models[0].name)],
    )
    return [" ".join(each.runs) for each in found]


def test_several_devices_share_adapters() -> None:
    # one is busy with the full fine-tuning
    assert shared_out([500] * 4, [4, 3, 2, 1], 2, 10**5) == ["full", "0 1 2 3"]
    assert shared_out([500] * 4, [8, 6, 4, 2], 3, 10**5) == ["full", "0 3", "1 2"]
    assert shared_out([500] * 2, [2, 1], 4, 10**5) == ["full", "0", "1"]
    # memory has room for two adapters at a time, or for one
    assert shared_out([500] * 5, [9, 4, 1, 1, 1], 2, 2150) == ["0 1", "full", "2 3", "4"]
    assert shared_out([5000] * 3, [1, 2, 3], 2, 7048) == ["full", "2", "1", "0"]


def test_full_models_are_trained_alone() -> None:
    assert passes([500] * 4, 10**5, full=True) == [(4, 2048, False), (1, 2048, False)]


def test_the_micro_batch_shrinks_before_the_pass_is_split() -> None:
    assert passes([500] * 4, 3600) == [(4, 600, False)]
    assert passes([500] * 4, 3100) == [(4, 100, False)]
    assert passes([500] * 4, 3099) == [(3, 599, False), (1, 1599, False)]
    assert passes([500] * 4, 2150) == [(2, 150, False), (2, 150, False)]
    assert passes([900, 100, 100, 100], 2000) == [(1, 100, False), (3, 700, False)]


def test_on_a_card_another_pass_is_begun_before_micro_batches_shrink() -> None:
    assert passes([500] * 3, 10692, device="cuda") == [(3, 8192, False)]
    assert passes([500] * 3, 10691, device="cuda") == [(2, 8691, False), (1, 9191, False)]
    # alone none has room for 8192 tokens, and none is put beside another
    assert passes([500] * 2, 3600, device="cuda") == [(1, 2100, False)] * 2
    assert passes([500] * 2, 1599, device="cuda") == [(1, 999, True)] * 2
    # what recomputes is filled as long as there is room for them: 819 bytes
    again = {"device": "cuda", "gradient_checkpointing": True}
    assert passes([20] * 3, 1859, **again) == [(2, 8199, True), (1, 8399, True)]
    assert passes([20] * 3, 1858, **again) == [(1, 8389, True)] * 3
    assert (
        passes([500] * 4, 6096, device="cuda", max_micro_batch_tokens=4096)
        == [(2, 4096, False)] * 2
    )


def test_on_a_card_passes_are_even() -> None:
    assert passes([500] * 4, 10692, device="cuda") == [(2, 8692, False)] * 2  # not 3 and 1
    # 900 + 100 + 100 against 100 + 900, not 900 + 100 + 100 + 100 against 900
    uneven = [900, 100, 100, 100, 900]
    assert passes(uneven, 10392, device="cuda") == [(3, 8292, False), (2, 8392, False)]
    assert passes([500] * 7, 10692, device="cuda") == [(3, 8192, False)] + [(2, 8692, False)] * 2
    assert passes([500] * 4, 3099) == [(3, 599, False), (1, 1599, False)]  # a CPU fills them


def test_the_smallest_way_to_train_alone() -> None:
    def least(adapter: AdapterSize | None, **train: Any) -> int:
        return least_bytes(Planted("cpu"), TrainConfig(task=("sums",), **train), adapter)

    assert (least(AdapterSize(8, 500)), least(None)) == (1510, 4010)
    assert least(None, gradient_checkpointing=False) == 4100
    assert least(None, max_micro_batch_tokens=1000) == 4100


def test_activations_are_recomputed_only_where_a_run_fits_in_no_other_way() -> None:
    assert passes([500], 1600) == [(1, 100, False)]
    assert passes([500], 1599) == [(1, 999, True)]
    assert passes([500, 20, 20], 1599) == [(3, 599, True)]  # it recomputes in any case
    assert passes([50, 20], 1095) == [(2, 259, True)]


def test_a_run_that_fits_in_no_way_is_planned_as_small_as_it_can_be() -> None:
    assert passes([500, 500], 200, full=True) == [(1, 100, True)] * 3


def test_the_study_file_wins() -> None:
    assert passes([500] * 4, 10**5, max_micro_batch_tokens=4096) == [(4, 4096, False)]
    assert passes([500] * 2, 2500, max_micro_batch_tokens=1000) == [(1, 1000, False)] * 2
    assert passes([500], 2000, max_micro_batch_tokens=1000) == [(1, 1000, True)]
    assert passes([500], 10**5, max_micro_batch_tokens=10) == [(1, 100, False)]
    assert passes([500] * 4, 10**5, gradient_checkpointing=True) == [(4, 2048, True)]
    assert passes([500], 1599, gradient_checkpointing=False) == [(1, 100, False)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(predict_and_train(*json.loads(sys.argv[1]))))
