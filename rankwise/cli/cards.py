"""What is said of cards that are there and not used."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

DEVICE_FILE = Path("/dev/nvidia0")
"""Linux has it where NVIDIA's driver has found a card."""


def unseen_card() -> str | None:
    """A warning where torch finds none of the cards of this machine, and nobody has hidden them."""
    import torch

    if torch.cuda.is_available() or "CUDA_VISIBLE_DEVICES" in os.environ or not _has_card():
        return None
    if torch.version.cuda is None:
        return (
            "the CPU computes: this machine has a CUDA card, and this torch is a build without "
            "CUDA; pytorch.org has the pip command for one that has it"
        )
    return (
        f"the CPU computes: this machine has a CUDA card, and torch, built for CUDA "
        f"{torch.version.cuda}, cannot use it; most often the driver is too old for that CUDA: "
        "update it, or install the torch of an older CUDA (pytorch.org has the pip command)"
    )


def _has_card() -> bool:
    if DEVICE_FILE.exists():
        return True
    if (tool := shutil.which("nvidia-smi")) is None:
        return False
    try:
        listed = subprocess.run(
            [tool, "-L"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.stdout.startswith("GPU 0")


def idle_cards(place: str) -> str | None:
    """Where several cards are here and one is used: how to use all for the study at ``place``."""
    import torch

    number = torch.cuda.device_count()
    if number < 2:
        return None
    return (
        f"one of the {number} cards here is used, if the base fits on it; to give each a unit of "
        f"its own (with the extra ray): `rankwise run {place} --gpus all`"
    )
