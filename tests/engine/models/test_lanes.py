"""Lanes: work side by side whose result does not depend on who is first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from rankwise.engine.models.lanes import lanes_of, lanes_within, num_lanes, opened, twin
from rankwise.engine.models.trained_adapters import AdapterBank, adapted
from tests.support.tiny_models import tiny


def test_parts_come_back_in_order_and_are_heard_on_the_calling_thread() -> None:
    heard: list[tuple[int, str]] = []

    def work(part: int, tell: Callable[[int], None]) -> tuple[int, int, str]:
        time.sleep(0.02 * (3 - part))  # the first one ends last
        tell(part)
        return part, torch.get_num_threads(), threading.current_thread().name

    def hear(count: int) -> None:
        heard.append((count, threading.current_thread().name))

    before = torch.get_num_threads()
    with opened(3) as lanes:
        found = lanes.map(work, [0, 1, 2], hear)
    here = threading.current_thread().name
    assert [(part, threads) for part, threads, _ in found] == [(0, 1), (1, 1), (2, 1)]
    assert here not in {name for *_, name in found}
    assert sorted(heard) == [(0, here), (1, here), (2, here)]
    assert torch.get_num_threads() == before


def test_one_lane_or_one_part_is_the_calling_thread() -> None:
    here = threading.current_thread()
    for count, parts in ((1, [1, 2]), (2, [1])):
        with opened(count) as lanes:
            assert lanes.map(lambda *_: threading.current_thread(), parts) == [here] * len(parts)


def test_an_error_is_raised_when_all_lanes_have_ended() -> None:
    ended: list[int] = []

    def work(part: int, _: Callable[[int], None]) -> None:
        if part == 0:
            raise MemoryError
        time.sleep(0.05)
        ended.append(part)

    with opened(2) as lanes, pytest.raises(MemoryError):
        lanes.map(work, [0, 1])
    assert ended == [1]


def test_lanes_share_out_what_each_can_read_of() -> None:
    assert [lanes_within(most, 100, 4) for most in (99, 100, 199, 200, 399, 1000)] == [
        *(1, 1, 1, 2, 3, 4)
    ]


def test_a_card_and_weights_that_are_not_there_have_one_lane(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert num_lanes(torch.device("cpu")) == 3
    assert num_lanes(torch.device("cuda")) == 1
    model: nn.Module = tiny("Llama")
    assert lanes_of(model) == 3
    assert lanes_of(model.to("meta")) == 1


def test_a_twin_has_the_same_weights_and_a_bank_of_its_own() -> None:
    model: nn.Module = tiny("Llama")
    (name, *_) = (name for name, _ in model.named_modules() if name.endswith("q_proj"))
    with adapted(model, [name]) as bank:
        other, its_bank = twin(model, bank)
        pairs = zip(model.parameters(), other.parameters(), strict=True)
        assert all(one is same for one, same in pairs)
        assert isinstance(its_bank, AdapterBank)
        assert its_bank is not bank
        assert other.get_submodule(name).bank is its_bank
        assert model.get_submodule(name).bank is bank
