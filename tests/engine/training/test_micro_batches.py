"""How a step is cut into micro-batches, what is packed, and what happens when memory runs out."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rankwise.engine.models.devices import is_out_of_memory
from rankwise.engine.training.loop import _GOOD_STEPS, _Budget
from rankwise.engine.training.micro_batches import (
    Placed,
    families,
    pack,
    shared_out,
    shared_tokens,
    split_by_budget,
)
from rankwise.engine.training.optimizers import make_optimizer
from rankwise.engine.training.trainees import GradientShare
from tests.support.micro_batches import cut, example, placed

CPU = torch.device("cpu")
SHARE = GradientShare(0.25)


def test_a_cpu_puts_equal_lengths_together_and_a_card_the_rows_of_a_trainee() -> None:
    items = placed({0: [4, 9], 1: [9, 4], 2: [9, 4]})
    assert cut(split_by_budget(items, 18)) == [
        [(1, 9), (2, 9)],
        [(0, 9), (0, 4), (1, 4)],
        [(2, 4)],
    ]
    assert cut(split_by_budget(items, 18, "cuda")) == [
        [(0, 9), (0, 4)],
        [(1, 9), (1, 4)],
        [(2, 9), (2, 4)],
    ]
    # an example that is longer than the budget is alone
    assert cut(split_by_budget(items, 5, "cuda"))[0] == [(0, 9)]
    assert all(len(group) == 1 for group in split_by_budget(items, 5, "cuda"))


def test_what_is_packed_is_what_was_asked_for() -> None:
    first = Placed(0, 0, example([10, 11, 12, 13], 2), range(1, 3))
    second = Placed(1, 0, example([20, 21, 22], 1))
    again = Placed(1, 1, example([10, 11, 12, 13], 1), range(2))  # the base reads it once
    shares = {0: GradientShare(0.5, 2.0), 1: GradientShare(0.25, 3.0, masks_targets=True)}
    batch = pack([second, first, again], shares, CPU)
    assert batch.tokens.input_ids.tolist() == [[10, 11, 12, 10, 11, 12, 20, 21]]
    assert batch.tokens.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 1]]
    assert batch.tokens.layout.lengths == (3, 3, 2)
    assert batch.learned.rows.tolist() == [1, 2, 5, 7]
    assert batch.learned.targets.tolist() == [12, 13, 13, 22]
    assert batch.learned.weights.tolist() == [0.5, 0.5, 0.25, 0.25]
    held = batch.held
    assert held is not None
    assert held.rows.tolist() == [1, 2, 3, 4]
    assert held.weights.tolist() == [2.0, 2.0, 3.0, 3.0]
    assert held.left_out.tolist() == [-1, -1, 11, 12]
    assert held.texts.input_ids.tolist() == [[10, 11, 12]]
    assert held.text_rows.tolist() == [1, 2, 0, 1]
    num_losses = [span.num_losses for span in batch.spans]
    losses = batch.sums(torch.tensor([1.0, 2.0, 4.0, 8.0]), num_losses)
    kls = batch.sums(torch.tensor([1.0, 1, 2, 4]), [len(span.placed.held) for span in batch.spans])
    assert (losses, kls) == ({0: 3.0, 1: 12.0}, {0: 2.0, 1: 6.0})


def test_learned_tokens_may_stand_anywhere_in_a_sequence() -> None:
    turns = example([10, 11, 12, 13, 14, 15], 3)._replace(learned=(2, 3, 5))
    batch = pack([Placed(0, 0, turns), Placed(0, 1, example([20, 21], 1))], {0: SHARE}, CPU)
    assert batch.learned.rows.tolist() == [1, 2, 4, 5]
    assert batch.learned.targets.tolist() == [12, 13, 15, 21]
    assert [span.num_losses for span in batch.spans] == [3, 1]
    assert turns.unlearned.places == range(6, 6)


def test_a_budget_that_was_halved_is_tried_again_and_less_often_each_time() -> None:
    budget = _Budget(100)

    def good(steps: int) -> None:
        for _ in range(steps):
            budget.stepped()

    assert budget.shrink(30)
    assert budget.shrink(30)
    assert budget.max_tokens == 30  # not below the longest example
    assert not budget.shrink(30)
    good(_GOOD_STEPS - 1)
    assert budget.max_tokens == 30
    good(1)
    assert budget.max_tokens == 60
    assert budget.shrink(30)  # too early: twice as many steps have to be good now
    good(2 * _GOOD_STEPS - 1)
    assert budget.max_tokens == 30
    good(1)
    assert budget.max_tokens == 60
    good(2 * _GOOD_STEPS)
    assert budget.max_tokens == 100  # no more than was planned
    good(1000)
    assert budget.max_tokens == 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_exist_before_the_first_step_and_change_nothing(dtype: torch.dtype) -> None:
    weights = [nn.Parameter(torch.randn(5, 3, dtype=dtype)), nn.Parameter(torch.randn(4))]
    plain = [nn.Parameter(copy.deepcopy(weight.data)) for weight in weights]
    ours = make_optimizer(weights, name="adamw", learning_rate=0.1, weight_decay=0.1, seed=3)
    assert all({*ours.state[w]} == {"step", "exp_avg", "exp_avg_sq"} for w in weights)
    peer: torch.optim.Optimizer = torch.optim.AdamW(plain, lr=0.1, weight_decay=0.1, fused=True)
    for _ in range(4):
        for weight, other in zip(weights, plain, strict=True):
            weight.grad = torch.randn_like(weight)
            other.grad = weight.grad.clone()
        ours.step()
        peer.step()
    if dtype == torch.float32:
        assert all(torch.equal(a, b) for a, b in zip(weights, plain, strict=True))
    assert all(int(ours.state[weight]["step"]) == 4 for weight in weights)


@pytest.mark.parametrize(
    ("message", "is_memory"),
    [
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True),
        ("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR, when calling `cusolverDnCreate`", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`", False),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_a_full_card_says_is_recognised(message: str, is_memory: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is is_memory
    assert not is_out_of_memory(ValueError(message))


PROMPT = list(range(10, 30))


def test_answers_of_one_prompt_are_read_with_it_once() -> None:
    pair = example([*PROMPT, 40, 41], 2)._replace(rejected=example([*PROMPT, 42], 1))
    other = example([*PROMPT, 43, 44, 45], 3)
    items = [Placed(0, place, each, num_shared=19) for place, each in enumerate((pair, other))]
    batch = pack(items, {0: SHARE}, CPU)
    prompt, last = PROMPT[:-1], PROMPT[-1]
    assert batch.tokens.input_ids.tolist() == [[*PROMPT, 40, last, last, 43, 44]]
    assert batch.tokens.position_ids.tolist() == [[*range(21), 19, 19, 20, 21]]
    assert (batch.tokens.layout.lengths, batch.tokens.layout.shared) == ((21, 1, 3), (0, 19, 19))
    assert len(prompt) == 19
    assert batch.learned.rows.tolist() == [19, 20, 21, 22, 23, 24]
    assert batch.learned.targets.tolist() == [40, 41, 42, 43, 44, 45]
    assert [(span.start, span.stop) for span in batch.spans] == [(0, 21), (21, 22), (22, 25)]


def test_a_family_is_cut_where_it_does_not_fit_and_what_differs_is_none() -> None:
    texts = [example([*PROMPT, *range(40, 44)], 4) for _ in range(4)]
    other = example([9, *PROMPT[1:], 40, 41], 2)
    items = [Placed(0, i, x, num_shared=19) for i, x in enumerate([*texts, other])]
    assert [(len(x.members), x.num_inputs) for x in families(items)] == [(4, 35), (1, 21)]
    assert [(len(x.members), x.num_inputs) for x in families(items, 30)] == [
        (2, 27),
        (2, 27),
        (1, 21),
    ]
    beside = [*items[:2], Placed(1, 0, texts[0], num_shared=19)]  # another trainee's
    assert [len(x.members) for x in families(beside)] == [2, 1]
    assert [len(x.members) for x in families([Placed(0, i, x) for i, x in enumerate(texts)])] == [
        1
    ] * 4
    assert [len(group) for group in split_by_budget(items, 60)] == [5]
    assert [len(part) for part in shared_out(items, 2)] == [4, 1]


@pytest.mark.parametrize(("kind", "expected"), [("cpu", 19), ("cuda", 0)])
def test_only_a_long_prompt_that_is_the_same_is_shared(kind: str, expected: int) -> None:
    pair = example([*PROMPT, 40, 41], 2)._replace(rejected=example([*PROMPT, 42], 1))
    assert shared_tokens(pair, kind) == expected
    assert shared_tokens(example([*PROMPT[:16], 40], 1), "cpu") == 0
    # a prompt that was cut for the longer answer
    cut_off = pair._replace(rejected=example([*PROMPT[1:], 42], 1))
    assert shared_tokens(cut_off, kind) == 0
    assert shared_tokens(example(PROMPT, 0), kind) == 0
