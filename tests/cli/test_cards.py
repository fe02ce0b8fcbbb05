"""What ``rankwise run`` says of cards that are there and not used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankwise.cli import cards
from tests.support.sentences import Sentences


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A card of this machine, which torch does not find."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(cards, "DEVICE_FILE", tmp_path / "nvidia0")
    monkeypatch.setattr(cards.shutil, "which", lambda _: None)
    return tmp_path / "nvidia0"


@pytest.mark.parametrize("cuda", ["13.0", None])
def test_a_card_that_torch_does_not_find_is_a_warning(
    card: Path, cuda: str | None, monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert cards.unseen_card() is None  # there is none
    card.touch()
    sentence(cards.unseen_card() or "", names=("CUDA", cuda or "build", "the CPU computes"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert cards.unseen_card() is None  # it was hidden


@pytest.mark.parametrize(
    ("listed", "is_card"),
    [
        ("echo 'GPU 0: NVIDIA L4 (UUID: GPU-1)'", True),
        ("echo 'No devices found.'", False),
        ("exit 9", False),
    ],
)
def test_without_the_file_the_driver_s_tool_is_asked(
    card: Path, listed: str, is_card: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = card.with_name("nvidia-smi")
    tool.write_text(f"#!/bin/sh\n{listed}\n")
    tool.chmod(0o755)
    monkeypatch.setattr(cards.shutil, "which", lambda _: str(tool))
    assert (cards.unseen_card() is not None) == is_card


def test_one_of_several_cards_is_a_line_with_the_command_for_all(
    monkeypatch: pytest.MonkeyPatch, sentence: Sentences
) -> None:
    for number in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda number=number: number)
        assert cards.idle_cards("studies/mine") is None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    line = cards.idle_cards("studies/mine") or ""
    sentence(line, names=("8 cards", "rankwise run studies/mine --gpus all"))
