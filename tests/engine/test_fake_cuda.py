"""The engine's steps on CUDA tensors without numbers: one device only, and no waits unheard of."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rankwise.engine.models import packed_kernels
from rankwise.engine.models.adapter_folder import ScaledFactors
from rankwise.engine.models.frozen_adapters import FrozenAdapter
from rankwise.engine.models.head import CompletionHead
from rankwise.engine.models.packed_layout import PackedLayout
from rankwise.engine.models.structure import adaptable_shapes, target_shapes
from rankwise.engine.models.trained_adapters import Adapter, adapted
from rankwise.engine.scoring import resident
from rankwise.engine.scoring.divergence import divergences
from rankwise.engine.scoring.resident import ResidentScorer
from rankwise.engine.scoring.tree import layout as tree_layout
from rankwise.engine.training import loop, micro_batches
from rankwise.engine.training.trainees import AdapterTrainee, FullTrainee, Trainee
from rankwise.heads import scorer as head_scorer
from rankwise.heads.interventions import Head
from rankwise.heads.scorer import Ablation, HeadScorer
from rankwise.records.config.mitigations import MitigationConfig
from rankwise.tasks.questions import GenerationSettings, Prompt, RightAnswer
from rankwise.tasks.training_rows import Example
from rankwise.weights.decomposition import refined_svd
from rankwise.weights.lowrank import LowRankUpdate
from rankwise.weights.matrix import NullDraws, matrix_spectrum
from tests.support.fake_cuda import CUDA, HostWaits, fake_cuda, walk_backward
from tests.support.passes import Heard, config, planned
from tests.support.plain_answers import ITEMS
from tests.support.tiny_models import BASE, OWN

# 16 columns a head: kernels for CUDA take no fewer. Every token that is read is 1 and ends no text.
SIZES = {"hidden_size": 64, "head_dim": 16, "eos_token_id": None}

# Where a step may wait for the card, and why.
TRAINING = {"loop.py:_gather_together": "losses and norms of a step, which say who diverged"}
ANSWERS = {"answers.py:log_likelihoods": "the sums, once for all items"}
TEXTS = {
    "samplers.py:begin": "transformers looks at a prompt's tokens, before the first step",
    "decoder.py:_step": "the new tokens, which say what ends",
    "frozen_adapters.py:finite_layers": "of each adapter, once",
}
# Files in which a decomposition decides by its numbers how to go on.
SPECTRA = {"matrix.py", "adapted_svd.py", "spectra.py", "decomposition.py"}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Generator[HostWaits]:
    """A card with flash attention; what probes numbers when a model is loaded is left out.

    Flex attention is missing: dynamo follows no backward pass without a card.
    """
    monkeypatch.setattr(packed_kernels, "_has_flash", lambda _: True)
    monkeypatch.setattr(packed_kernels, "flex_tiles", lambda _: None)
    for module in (loop, resident, head_scorer):
        monkeypatch.setattr(module, "check_packable", lambda _: None)
    monkeypatch.setattr(CompletionHead, "_check", lambda *_: None)
    with fake_cuda() as waits:
        yield waits


def model_of(family: str = "Llama", dtype: torch.dtype = torch.bfloat16) -> Any:
    settings = {**BASE, **OWN[family], **SIZES}
    with torch.device(CUDA):
        made = getattr(transformers, f"{family}ForCausalLM")._from_config(
            getattr(transformers, f"{family}Config")(**settings), dtype=dtype
        )
    return made.eval().requires_grad_(False)


def only(waits: HostWaits, allowed: Mapping[str, str]) -> None:
    assert waits.reads
    assert waits.reads.keys() <= allowed.keys()


# training


def examples() -> list[Example]:
    return [Example(tuple(range(3, 3 + n)), 3, is_truncated=False) for n in (9, 17, 9, 30)]


def train(model: Any, trainees: Sequence[Trainee], waits: HostWaits, **settings: Any) -> None:
    waits.forget()
    loop.train_pass(
        model,
        trainees,
        **{"max_tokens": 40, "precision": "bfloat16", "observer": Heard()},
        **settings,
    )
    assert [trainee.step for trainee in trainees] == [1] * len(trainees)
    assert not waits.copies


def trainee_of(model: Any, rank: int, dropout: float = 0.1, **options: Any) -> AdapterTrainee:
    run = planned(1, rank=rank, name=f"rank {rank}", **options)
    shapes = target_shapes(adaptable_shapes(model), ["q_proj", "v_proj"])
    settings: dict[str, Any] = {"scaling": 2.0, "dropout": dropout, "seed": 0}
    adapter = Adapter(shapes, rank=rank, **settings, device=CUDA, dtype=torch.bfloat16)
    return AdapterTrainee(run, examples(), config(), adapter)


def train_two(
    waits: HostWaits,
    family: str = "Llama",
    *,
    gradient_checkpointing: bool = False,
    dropout: float = 0.1,
) -> None:
    model = model_of(family)
    trainees = [trainee_of(model, rank, dropout) for rank in (2, 8)]
    with adapted(model, list(trainees[0].adapter.factors)) as bank:
        train(model, trainees, waits, bank=bank, gradient_checkpointing=gradient_checkpointing)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Gemma2"])
def test_a_step_of_two_adapters(
    family: str, gradient_checkpointing: bool, waits: HostWaits
) -> None:
    """By flash attention, with a window too; and by products of groups, as there is a softcap."""
    train_two(waits, family, gradient_checkpointing=gradient_checkpointing)
    only(waits, TRAINING)
    assert not waits.kernels["_grouped_mm"]  # there is dropout


def test_a_step_of_two_adapters_at_once(waits: HostWaits) -> None:
    train_two(waits, dropout=0.0)
    only(waits, TRAINING)
    assert waits.kernels["_grouped_mm"]


def test_cards_that_would_loop_over_groups(
    waits: HostWaits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are not asked to: the host would wait to read where groups end."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 0))
    train_two(waits, dropout=0.0)
    assert not waits.kernels["_grouped_mm"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_a_whole_model(dtype: torch.dtype, waits: HostWaits) -> None:
    model = model_of(dtype=dtype)
    trainee = FullTrainee(planned(1, "full"), examples(), config(), model, "adamw")
    train(model, [trainee], waits, bank=None, gradient_checkpointing=True)
    only(waits, TRAINING)
    assert all(state["exp_avg"].device == CUDA for state in trainee._optimizer.state.values())


def test_a_step_that_is_held_to_the_base(waits: HostWaits) -> None:
    held = {"kl": {"at": "completions", "mask_target": True}}
    model = model_of()
    trainee = trainee_of(model, 4, mitigation=MitigationConfig.model_validate(held))
    with adapted(model, list(trainee.adapter.factors)) as bank:
        train(model, [trainee], waits, bank=bank, gradient_checkpointing=False)
    only(waits, TRAINING)


def test_masks_of_packed_rows(waits: HostWaits) -> None:
    mask = packed_kernels._block_mask(PackedLayout((300, 5, 200)), 7, CUDA)
    assert mask.kv_indices.device == mask.full_q_num_blocks.device == CUDA
    assert not waits.reads + waits.copies


# scoring


def frozen(model: Any, rank: int) -> FrozenAdapter:
    def drawn(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=CUDA)

    shapes = adaptable_shapes(model).items()
    layers = {
        name: ScaledFactors(drawn(rank, shape.in_features), drawn(shape.out_features, rank), 2.0)
        for name, shape in shapes
    }
    return FrozenAdapter(layers, is_zero_update=False)


def scorer_of(model: Any) -> ResidentScorer:
    tokenizer = SimpleNamespace(decode=lambda *_, **__: "")
    scorer = ResidentScorer(model, tokenizer, max_batch_tokens=90)
    for name, rank in (("a", 2), ("b", 8)):
        scorer.hold(name, frozen(model, rank))
    return scorer


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_steps_of_a_tree(family: str, waits: HostWaits, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SHARED_KEYS", "_SHARED_QUERIES"):
        monkeypatch.setattr(tree_layout, name, 5)
    scorer = scorer_of(model_of(family))
    waits.forget()
    found = scorer.log_likelihoods([None, "a", "b"], ITEMS)
    assert [len(each) for each in found] == [len(ITEMS)] * 3
    only(waits, ANSWERS)
    assert not waits.copies


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_steps_of_a_tree_by_flex_attention(
    family: str, waits: HostWaits, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[Any] = []

    def attend(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Any:
        """Shapes only, and which query sees which key."""
        assert query.device == key.device == value.device == CUDA
        masks.append(given["block_mask"])
        at = [torch.arange(x.shape[2], device=CUDA) for x in (query, key)]
        seen = masks[-1].mask_mod(None, None, at[0][:, None], at[1])
        assert seen.shape == masks[-1].seq_lengths == (query.shape[2], key.shape[2])
        out = query.new_empty((*query.shape[:3], value.shape[3]))
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)
        return (out, SimpleNamespace(lse=lse)) if "return_aux" in given else out

    monkeypatch.setattr(packed_kernels, "flex_tiles", lambda _: {})
    monkeypatch.setattr(packed_kernels, "_compiled_flex", lambda: attend)
    scorer = scorer_of(model_of(family))
    waits.forget()
    assert len(scorer.log_likelihoods([None, "a", "b"], ITEMS)) == 3
    assert masks
    only(waits, ANSWERS)
    assert not waits.copies


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.05}, {"do_sample": True}])
@pytest.mark.parametrize("family", ["Llama", "Gemma2", "GptOss"])
def test_steps_of_texts(family: str, options: dict[str, Any], waits: HostWaits) -> None:
    scorer = scorer_of(model_of(family))
    settings = GenerationSettings(3, (), tuple(options.items()))
    prompts = [Prompt(tuple(range(3, 3 + n)), settings) for n in (40, 50, 7)]
    waits.forget()
    scorer.generate([None, "a", "b"], prompts)
    assert scorer.decoding.steps == 3
    only(waits, TEXTS)
    # before the first step: transformers' own, and the token that is read to see its size
    assert waits.copies.keys() <= {"samplers.py:begin", "samplers.py:__init__"}


def test_ablations_of_heads(waits: HostWaits) -> None:
    model = model_of()
    scorer, adapter = HeadScorer(model, max_batch_tokens=90), frozen(model, 4)
    waits.forget()
    mean = scorer.mean_outputs(ITEMS, adapter)[Head(1, 0)]
    scorer.log_likelihoods(ITEMS, [Ablation(Head(0, 1)), Ablation(Head(1, 0), mean)])
    scorer.log_likelihoods(ITEMS, [Ablation(Head(1, 2))], adapter)
    only(waits, ANSWERS)
    assert not waits.copies


def test_divergence_of_answers(waits: HostWaits) -> None:
    model = model_of()
    answers = [RightAnswer("task", n, (n, 3, 4), (5, 6)) for n in range(3)]
    reference = [torch.zeros(2, 64) for _ in answers]
    waits.forget()
    assert len(divergences(model, answers, reference, max_batch_tokens=90)) == 3
    assert waits.reads == {"divergence.py:item_divergence": 3}
    assert not waits.copies


# weights


def test_a_spectrum(waits: HostWaits) -> None:
    base = torch.empty(48, 32, device=CUDA)
    update = LowRankUpdate(torch.empty(4, 32), torch.empty(48, 4)).factorization
    spectrum = matrix_spectrum(
        "layers.0.q_proj", refined_svd(base), update, rank=4, top_k=8, nulls=NullDraws(1, 0)
    )
    assert spectrum.change.left.index_matched
    assert {place.split(":")[0] for place in waits.reads} <= SPECTRA


# what has to fail


def test_a_tensor_of_another_device_fails(
    waits: HostWaits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        micro_batches, "moved_together", lambda arrays, _: [torch.from_numpy(x) for x in arrays]
    )
    with pytest.raises(RuntimeError, match="found at least two devices"):
        train_two(waits)


def test_a_read_that_is_not_on_the_list_fails(
    waits: HostWaits, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = CompletionHead.logits

    def read_one(head: CompletionHead, hidden: Tensor) -> Tensor:
        found = logits(head, hidden)
        assert found.sum().item() == 1.0
        return found

    monkeypatch.setattr(CompletionHead, "logits", read_one)
    train_two(waits)
    assert set(waits.reads) - TRAINING.keys() == {"test_fake_cuda.py:read_one"}


def test_gradients_are_those_of_autograd() -> None:
    """The graph of fake tensors is walked in Python."""
    random = torch.Generator().manual_seed(0)
    values = [torch.randn(size, generator=random) for size in ((5, 4), (4, 6), (6,), (2, 3))]

    def gradients(backward: Callable[[Tensor, Tensor | None], None]) -> list[Tensor]:
        x, w, b, unused = leaves = [value.clone().requires_grad_() for value in values]
        hidden, gate = (x @ w + b).double().split(3, dim=1)
        torch.stack([unused, unused])
        mixed = checkpoint(lambda h: h * h.sigmoid(), hidden, use_reentrant=False)
        backward((mixed * gate + hidden.mean(0)).square().float().sum(), None)
        assert unused.grad is None
        return [leaf.grad for leaf in leaves[:3] if leaf.grad is not None]

    found, expected = gradients(walk_backward), gradients(torch.autograd.backward)
    assert len(found) == 3
    assert all(torch.allclose(*pair) for pair in zip(found, expected, strict=True))
